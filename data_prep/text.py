"""Parallel text as streams: lines split on "\\n" alone, strict UTF-8, errors with file and line."""

import gzip
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from data_prep.spec import DataError, Languages

Pair = tuple[str, str]

_BYTE_ORDER_MARK = "\ufeff"
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file (plain, .gz or .xz) without their line ends ("\\n" or "\\r\\n").

    A corpus may hold U+2028 and the like inside a line, so that only "\\n" ends one.
    Raises DataError for a missing or damaged file and for invalid UTF-8.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                yield line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at column "
            f"{error.start + 1}): convert the file, for example with iconv"
        ) from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged after line {number} ({error}): get the file again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: give a file that can be read") from error


def read_pairs(source: Path, target: Path) -> Iterator[Pair]:
    """Line n of `source` with line n of `target`.

    Raises DataError where `read_lines` does, for empty files and for sides of different length.
    """
    count = 0
    sides = (read_lines(source), read_lines(target))
    for left, right in zip_longest(*sides):
        if left is None or right is None:
            longer, shorter = (target, source) if left is None else (source, target)
            rest = 1 + sum(1 for _ in sides[0 if right is None else 1])
            raise DataError(
                f"{longer} has {count + rest} lines, {shorter} has {count}: "
                "line n of one must be the translation of line n of the other"
            )
        count += 1
        yield left, right
    if not count:
        raise DataError(f"{source} and {target} are empty: give files with text")


def text_files(folder: Path, split: str, languages: Languages) -> tuple[Path, Path]:
    """Where a folder of this package has the two sides of a split, such as `dev.en`, `dev.de`."""
    source_lang, target_lang = languages
    return folder / f"{split}.{source_lang}", folder / f"{split}.{target_lang}"


def read_text(folder: Path, split: str, languages: Languages) -> Iterator[Pair]:
    """The pairs of a split that `pair_writer` wrote; raises as `read_pairs` does."""
    return read_pairs(*text_files(folder, split, languages))


@contextmanager
def pair_writer(
    folder: Path, split: str, languages: Languages
) -> Iterator[Callable[[Sequence[Pair]], None]]:
    """A function that appends pairs to the files of a split in `folder`, which is made."""
    source, target = text_files(folder, split, languages)
    with open_for_writing(source) as left, open_for_writing(target) as right:

        def write(pairs: Sequence[Pair]) -> None:
            left.writelines(f"{source}\n" for source, _ in pairs)
            right.writelines(f"{target}\n" for _, target in pairs)

        yield write


def open_for_writing(path: Path) -> TextIO:
    """`path` as a UTF-8 text file whose newlines are written as they are; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")


def same_text_key(line: str) -> str:
    """The key that two lines share when they say the same: words in lower case, numbers as 0."""
    words = " ".join(_WORD.findall(unicodedata.normalize("NFKC", line).casefold()))
    return _NUMBER.sub("0", words) or line.strip()


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    return path.open("rb")
