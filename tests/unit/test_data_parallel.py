"""The map that keeps order, holds few items, and gives the same whatever the workers."""

import pytest

from data_prep.system.parallel import chunks, ordered_map


def square(number):
    if number == -1:
        raise ValueError("minus one")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_order(workers):
    assert list(ordered_map(square, range(50), workers)) == [n * n for n in range(50)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [0, 1])
def test_little_to_do(workers, count):
    assert list(ordered_map(square, range(count), workers)) == [0][:count]


def test_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ordered_map(square, items(), 2)
    assert next(results) == 0
    assert len(taken) < 12
    results.close()


def test_an_error_comes_out():
    with pytest.raises(ValueError, match="minus one"):
        list(ordered_map(square, [1, 2, -1, 3], 2))


def test_chunks():
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
