"""What every corpus gives to the pipeline. Nothing in this folder imports a heavy module."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from data_prep.spec import DataSpec, Languages
from data_prep.text import Pair


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A file to have: `checksum` as in the manifest, `size_bytes` None where it is not known."""

    url: str
    checksum: str
    size_bytes: int | None = None

    @property
    def name(self) -> str:
        """The name of the file, here and on a mirror."""
        return self.url.rsplit("/", 1)[-1]


class Corpus(ABC):
    """Text in three splits.

    Of the class: `name` is what a spec calls it, `summary` its lines in `--help`, `vocab_size` what
    the command takes where none is given, `settings` the fields of a spec that it reads and others
    do not.

    `languages` are those of a pair, in its order; a spec may ask for the other direction. `licence`
    is one line for the user and `note` what else must be known, `inputs` are the checksums of the
    files it is made from, `downloads` those that must be fetched, of which `training_pairs` come
    (0: too few to matter for disk space). `in_archives` asks for `extract` before the text is read.
    `nearest_baseline` says whether train is small enough to be searched for each test line, and
    `drops_near_duplicates` whether train loses what is nearly a line of dev or test.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    vocab_size: ClassVar[int]
    settings: ClassVar[Sequence[str]] = ()

    languages: Languages
    licence: str
    note: str = ""
    inputs: dict[str, str]
    downloads: Sequence[Download] = ()
    training_pairs: int = 0
    in_archives: bool = False
    nearest_baseline: bool = True
    drops_near_duplicates: bool = False

    @abstractmethod
    def __init__(self, spec: DataSpec) -> None:
        """Raises DataError when the spec's own settings of this corpus cannot be used."""

    @abstractmethod
    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        """The pairs of a split, streamed, in the order of `languages`.

        The downloads, or what `extract` wrote, are in `folder`.
        """

    def extract(self, downloads: Path, folder: Path) -> None:
        """Make text in `folder` of the archives in `downloads`; for `in_archives` alone."""
        raise AssertionError(f"{type(self).__name__} has no archives")

    def subsets(self, folder: Path) -> dict[str, list[int]]:
        """Parts of test that are scored by themselves: line numbers from 1, by name."""
        return {}
