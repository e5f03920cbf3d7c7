"""Tokens in fairseq's binary format: the bytes that fairseq-preprocess writes (a test compares).

Its own command makes a tensor of every line, number by number, which for WMT14 takes longer than
all other steps together. The format (`mmap`) is the numbers of all lines one after the other in
`.bin`, and in `.idx` a header, the length of each line in tokens, and where it starts in bytes.
"""

import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy
import numpy.typing

from data_prep.manifest import SOURCE_LANG, TARGET_LANG
from data_prep.vocabulary import FAIRSEQ_SPECIALS

_END, _UNKNOWN = 2, 3  # fairseq's </s> and <unk>; its dictionary has four specials in front
_MAGIC = b"MMIDIDX\x00\x00"
# fairseq's codes of the number types, and the size of the dictionary that each is for.
_TYPES: tuple[tuple[int, int, type], ...] = ((65_500, 8, numpy.uint16), (1 << 32, 9, numpy.uint32))

# The tokens of lines, one after the other as bytes, and how many each line has.
Tokens = tuple[bytes, list[int]]


class Numbers:
    """The number that fairseq's dictionary gives to each piece; `names` are those of the pieces."""

    def __init__(self, names: list[str]) -> None:
        following = count(len(FAIRSEQ_SPECIALS))
        self._numbers: numpy.typing.NDArray[numpy.integer[Any]] = numpy.array(
            [_UNKNOWN if name in FAIRSEQ_SPECIALS else next(following) for name in names],
            dtype=_type_for(names)[1],
        )

    def tokens(self, lines: list[list[int]]) -> Tokens:
        """The tokens of lines of piece ids, each with the end of the sentence."""
        lengths = [len(line) + 1 for line in lines]
        ends = numpy.cumsum(lengths) - 1
        found = numpy.full(sum(lengths), _END, dtype=self._numbers.dtype)
        is_piece = numpy.ones(len(found), dtype=bool)
        is_piece[ends] = False
        found[is_piece] = self._numbers[[index for line in lines for index in line]]
        return found.tobytes(), lengths


@contextmanager
def binary_writer(
    folder: Path, split: str, names: list[str]
) -> Iterator[Callable[[Tokens, Tokens], None]]:
    """A function that appends the tokens of source and target lines to a split in `folder`."""
    code, dtype = _type_for(names)
    prefix = folder / f"{'valid' if split == 'dev' else split}.{SOURCE_LANG}-{TARGET_LANG}"
    lengths = array("i"), array("i")
    paths = [prefix.with_name(f"{prefix.name}.{lang}") for lang in (SOURCE_LANG, TARGET_LANG)]
    folder.mkdir(parents=True, exist_ok=True)
    with (
        paths[0].with_name(f"{paths[0].name}.bin").open("wb") as source,
        paths[1].with_name(f"{paths[1].name}.bin").open("wb") as target,
    ):

        def write(*sides: Tokens) -> None:
            for stream, known, (tokens, more) in zip((source, target), lengths, sides, strict=True):
                stream.write(tokens)
                known.extend(more)

        yield write
    for path, known in zip(paths, lengths, strict=True):
        sizes = numpy.frombuffer(known, dtype=numpy.int32)
        starts = numpy.cumsum(sizes, dtype=numpy.int64) - sizes
        with path.with_name(f"{path.name}.idx").open("wb") as stream:
            stream.write(_MAGIC + struct.pack("<QBQ", 1, code, len(sizes)))
            stream.write(sizes.tobytes())
            stream.write((starts * numpy.dtype(dtype).itemsize).tobytes())


def _type_for(names: list[str]) -> tuple[int, type]:
    """The code and the type of the numbers of a dictionary of these pieces and fairseq's own."""
    size = len(FAIRSEQ_SPECIALS) + sum(name not in FAIRSEQ_SPECIALS for name in names)
    return next((code, dtype) for below, code, dtype in _TYPES if size < below)
