"""Fewer key/value heads from more: by hand, without loss where none is due, never above the mean.

Shapes as in merging.py; what a layer computes with keys is the product of each head with each of
its readers, and so it is with values.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gqa_fairseq.checkpoints.merging import merge

SVD = ("svd", "svd-product")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def products(heads: Tensor, readers: Tensor) -> Tensor:
    """[G, R, Y, X]: what each reader computes with the head that it reads, shared or not."""
    heads = heads.repeat_interleave(len(readers) // len(heads), 0)
    return torch.einsum("grdy,gdx->gryx", readers, heads)


def identity_readers(heads: Tensor) -> Tensor:
    """Readers whose products are the heads themselves."""
    eye = torch.eye(heads.shape[1], dtype=heads.dtype)
    return eye.expand(len(heads), 1, *eye.shape)


# By hand.


def test_mean_and_first_take_neighbours() -> None:
    heads = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]], [[10.0, 0.0]], [[20.0, 4.0]]]).double()
    readers = draw(4, 1, 1, 3)
    mean, same = merge(heads, readers, 2, "mean")
    assert mean.tolist() == [[[2.0, 4.0]], [[15.0, 2.0]]]
    assert same is readers
    first, same = merge(heads, readers, 2, "first")
    assert first.tolist() == [[[1.0, 2.0]], [[10.0, 0.0]]]
    assert same is readers


def test_svd_keeps_the_largest_head_and_svd_product_the_largest_product() -> None:
    """Two orthogonal heads of width 1, of lengths 2 and 1, read with 1 and 4.

    `svd` keeps the longer head, [2, 0]; what is computed is largest with the other one, [0, 4].
    The key row and the root mean square of its two readers are balanced: product p = s * r, with
    s = r / sqrt(2), so r = sqrt(p * sqrt(2)).
    """
    heads = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]).double()
    readers = torch.tensor([1.0, 4.0]).double().view(2, 1, 1, 1)
    for method, kept, product in (("svd", 0, 2.0), ("svd-product", 1, 4.0)):
        shared, mapped = merge(heads, readers, 1, method)
        expected = torch.zeros(2, 1, 1, 2).double()
        expected[kept, 0, 0, kept] = product
        torch.testing.assert_close(products(shared, mapped), expected, rtol=0, atol=1e-12)
        reader = (product * 2**0.5) ** 0.5
        assert shared.abs()[0, 0, kept].item() == pytest.approx(reader / 2**0.5, abs=1e-12)
        assert mapped.abs().flatten()[kept].item() == pytest.approx(reader, abs=1e-12)


def test_random_merges_nothing() -> None:
    with pytest.raises(ValueError, match="method 'random' merges no heads"):
        merge(draw(2, 1, 2), draw(2, 1, 1, 2), 1, "random")


# Without loss.


@pytest.mark.parametrize("method", ["mean", "first", *SVD])
def test_identical_heads_are_shared_without_loss(method: str) -> None:
    heads = draw(2, 3, 7).repeat_interleave(4, 0)
    readers = draw(8, 2, 3, 5, seed=1)
    shared, mapped = merge(heads, readers, 2, method)
    assert shared.shape == (2, 3, 7)
    assert (products(shared, mapped) - products(heads, readers)).abs().max() < 1e-12


@pytest.mark.parametrize("method", SVD)
@pytest.mark.parametrize("width", [7, 2], ids=["wide", "narrower_than_a_head"])
def test_heads_that_share_a_space_are_shared_without_loss(method: str, width: int) -> None:
    space, maps = draw(2, 3, width), draw(8, 3, 3, seed=1)
    heads = maps @ space.repeat_interleave(4, 0)
    readers = draw(8, 2, 3, 5, seed=2)
    shared, mapped = merge(heads, readers, 2, method)
    assert (products(shared, mapped) - products(heads, readers)).abs().max() < 1e-10
    pooled = products(merge(heads, readers, 2, "mean")[0], readers)
    assert (pooled - products(heads, readers)).abs().max() > 1


@pytest.mark.parametrize("method", SVD)
def test_a_head_of_its_own_is_turned_without_loss(method: str) -> None:
    heads, readers = draw(4, 3, 7), draw(4, 2, 3, 5, seed=1)
    turned, mapped = merge(heads, readers, 4, method)
    assert (products(turned, mapped) - products(heads, readers)).abs().max() < 1e-12
    assert (turned - heads).abs().max() > 0.1


@pytest.mark.parametrize("method", SVD)
def test_what_nobody_reads_does_no_harm(method: str) -> None:
    """A query head that is zero, one that ignores a direction, a head that is zero."""
    heads, readers = draw(4, 3, 7), draw(4, 2, 3, 5, seed=1)
    readers[0] = 0
    readers[1, :, 2] = 0
    heads[2] = 0
    shared, mapped = merge(heads, readers, 2, method)
    assert bool(torch.isfinite(shared).all())
    assert bool(torch.isfinite(mapped).all())
    found = products(shared, mapped)
    assert found[0].abs().max() < 1e-12
    if method == "svd-product":  # three and two directions matter, in groups that keep three
        wanted = products(heads, readers)
        assert (found[2:] - wanted[2:]).abs().max() < 1e-12
        assert (found[1] - wanted[1]).abs().max() < 1e-12


# The best of its rank.

sizes = st.integers(1, 4)


@given(
    new=st.integers(1, 3),
    n=sizes,
    readers_of_each=st.integers(1, 3),
    width=sizes,
    columns=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_the_error_is_never_above_that_of_the_mean(
    new: int,
    n: int,
    readers_of_each: int,
    width: int,
    columns: tuple[int, int],
    size: float,
    seed: int,
) -> None:
    """`svd` in the heads, `svd-product` in the products; `first` and `mean` are of rank D too."""
    heads = size * draw(new * n, width, columns[0], seed=seed)
    readers = draw(new * n, readers_of_each, width, columns[1], seed=seed + 1)
    for method, seen in (("svd", identity_readers(heads)), ("svd-product", readers)):
        wanted = products(heads, seen)
        error = (products(*merge(heads, seen, new, method)) - wanted).norm()
        for pooling in ("mean", "first"):
            pooled = products(merge(heads, seen, new, pooling)[0], seen)
            assert error <= (pooled - wanted).norm() + 1e-12 * wanted.norm()


@pytest.mark.parametrize("method", SVD)
def test_the_error_is_what_the_lost_singular_values_say(method: str) -> None:
    """Eckart and Young: the squares of all singular values but the D largest."""
    heads, readers = draw(4, 3, 9), draw(4, 2, 3, 5, seed=1)
    seen = identity_readers(heads) if method == "svd" else readers
    wanted = products(heads, seen)
    lost = torch.linalg.svdvals(wanted.reshape(-1, 9))[3:].square().sum()
    error = (products(*merge(heads, seen, 1, method)) - wanted).square().sum()
    torch.testing.assert_close(error, lost, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", SVD)
def test_each_direction_is_as_long_in_the_head_as_in_its_readers(method: str) -> None:
    heads, readers = 100 * draw(4, 3, 9), draw(4, 2, 3, 5, seed=1)
    shared, mapped = merge(heads, readers, 2, method)
    of_readers = mapped.view(2, 4, 3, 5).square().sum(-1).mean(1).sqrt()  # [2 groups, D]
    torch.testing.assert_close(shared.norm(dim=2), of_readers, rtol=1e-12, atol=0)
