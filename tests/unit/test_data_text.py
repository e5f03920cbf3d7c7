"""Reading parallel text: every line as it is, and errors that name file and line."""

import gzip
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.spec import DataError
from data_prep.text import read_lines, read_pairs, same_text_key

LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff")))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "lines.txt"


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]))
def test_lines_are_read_as_written(file, lines, end):
    file.write_bytes("".join(line + end for line in lines).encode())
    assert list(read_lines(file)) == lines


def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes("a\u2028b\x85c\x0bd\re\nlast".encode())
    assert list(read_lines(path)) == ["a\u2028b\x85c\x0bd\re", "last"]


def test_byte_order_mark_is_not_text(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes("\ufeffa\n\ufeffb\n".encode())
    assert list(read_lines(path)) == ["a", "\ufeffb"]


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_compressed_files(tmp_path, suffix, compress):
    path = tmp_path / f"lines.{suffix}"
    path.write_bytes(compress("größer\nx\n".encode()))
    assert list(read_lines(path)) == ["größer", "x"]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=rf"lines\.{suffix}: damaged after line \d"):
        list(read_lines(path))
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=rf"lines\.{suffix}: damaged after line 0"):
        list(read_lines(path))


def test_invalid_utf8_names_file_and_line(tmp_path):
    path = tmp_path / "latin1.de"
    path.write_bytes(b"gut\nsch\xf6n\n")
    with pytest.raises(DataError, match=r"latin1\.de, line 2: not UTF-8 \(byte 0xf6 at column 4\)"):
        list(read_lines(path))


@pytest.mark.parametrize(("left", "right"), [(3, 5), (5, 3), (0, 2), (2, 0)])
def test_sides_of_different_length(tmp_path, left, right):
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_text("x\n" * left)
    target.write_text("x\n" * right)
    (longer, more), (shorter, fewer) = sorted(
        [(source, left), (target, right)], key=lambda side: -side[1]
    )
    with pytest.raises(DataError, match=f"{longer} has {more} lines, {shorter} has {fewer}:"):
        list(read_pairs(source, target))


def test_two_empty_files(tmp_path):
    source, target = tmp_path / "s", tmp_path / "t"
    source.touch()
    target.touch()
    with pytest.raises(DataError, match="are empty"):
        list(read_pairs(source, target))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="nowhere: No such file or directory"):
        list(read_lines(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Press F1!", "press f2", True),
        ("Go to page 12.", "Go to page 7", True),
        ("»Öffnen«", "öffnen", True),
        ("Open it.", "Close it.", False),
        ("→", "←", False),
    ],
)
def test_what_says_the_same(one, other, same):
    assert (same_text_key(one) == same_text_key(other)) == same


@given(st.text())
def test_same_text_key_is_its_own_key(line):
    assert same_text_key(same_text_key(line)) == same_text_key(line)
