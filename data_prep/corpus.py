"""What every corpus gives to the pipeline."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.fetch import Download
from data_prep.text import Pair


class Corpus(ABC):
    """Text in three splits.

    `licence` is one line for the user and `note` what else must be known, `inputs` are the
    checksums of the files it is made from, `downloads` those that must be fetched, of which
    `training_pairs` come (0: too few to matter for disk space). `in_archives` asks for `extract`
    before the text is read. `nearest_baseline` says whether
    train is small enough to be searched for each test line.
    """

    licence: str
    note: str = ""
    inputs: dict[str, str]
    downloads: Sequence[Download] = ()
    training_pairs: int = 0
    in_archives: bool = False
    nearest_baseline: bool = True

    @abstractmethod
    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        """The pairs of a split, streamed; downloads, or what `extract` wrote, are in `folder`."""

    def extract(self, downloads: Path, folder: Path) -> None:
        """Make text in `folder` of the archives in `downloads`; for `in_archives` alone."""
        raise AssertionError(f"{type(self).__name__} has no archives")

    def subsets(self, folder: Path) -> dict[str, list[int]]:
        """Parts of test that are scored by themselves: line numbers from 1, by name."""
        return {}
