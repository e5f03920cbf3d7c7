"""Segments of WMT's SGML test sets, exactly as sacrebleu reads them.

The files are not valid SGML: sacrebleu takes the lines that start with `<seg `, cuts the tags off,
leaves entities such as `&amp;` as they are, and makes each run of white space one space.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.text import read_lines

_SEGMENT = re.compile(r"<seg.*?>(.*)</seg>.*?")
_SPACES = re.compile(r"\s+")


def read_segments(path: Path) -> Iterator[str]:
    """The segments of a file; raises DataError as `read_lines` does."""
    for line in read_lines(path):
        if line.startswith("<seg "):
            yield _SPACES.sub(" ", _SEGMENT.sub(r"\1", line).strip())
