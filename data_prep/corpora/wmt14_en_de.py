"""WMT14 English-German out of its archives: several for training, newstest for dev and test."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

from data_prep.corpora.archives import extract_members
from data_prep.corpora.corpus import Corpus
from data_prep.corpora.sgml import read_segments
from data_prep.corpora.sources import WMT14_TABLE, Archive, Sources, read_sources
from data_prep.spec import DataError, DataSpec, digest
from data_prep.text import Pair, read_pairs, same_text_key

FILTERED = "filtered"


class Wmt14(Corpus):
    """The archives of WMT14, or of the user's own table of the same form.

    The `nearest` baseline is off: news is not repeated word by word.
    """

    name = "wmt14_en_de"
    summary = (
        "WMT14, 4.5 million pairs; 1.7 GB of archives, downloaded or from --mirror\n"
        "(docs/wmt14.md has what it costs)"
    )
    vocab_size = 32000
    settings = ("sources",)
    languages = ("en", "de")
    in_archives = True
    nearest_baseline = False

    def __init__(self, spec: DataSpec) -> None:
        table = read_sources(Path(spec.sources) if spec.sources else WMT14_TABLE)
        self._archives = table.archives
        self.licence = table.licence
        self.inputs = _inputs(table)
        if self.inputs != _inputs(read_sources(WMT14_TABLE)):
            self.note = f"{table.title}: from a table of your own, not checked to be WMT14"
        self.downloads = [archive.download for archive in table.archives]
        self.training_pairs = sum(
            archive.pairs for archive in table.archives if archive.role == "train"
        )

    def extract(self, downloads: Path, folder: Path) -> None:
        """Write the two members of each archive into `folder`, archives at the same time."""

        def extract_one(archive: Archive) -> None:
            places = dict(zip(archive.members, self._files(archive, folder), strict=True))
            extract_members(downloads / archive.download.name, places)

        with ThreadPoolExecutor() as pool:
            list(pool.map(extract_one, self._archives))

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        for archive in self._archives:
            if archive.role == split:
                yield from self._pairs(archive, folder)

    def subsets(self, folder: Path) -> dict[str, list[int]]:
        """Which lines of test, from 1, the filtered newstest2014 has.

        A line that the full set lacks has no number. The order is the filtered set's.
        """
        filtered = list(self.pairs("test_filtered", folder))
        if not filtered:
            return {}
        return {FILTERED: line_numbers(filtered, list(self.pairs("test", folder)))}

    def _pairs(self, archive: Archive, folder: Path) -> Iterator[Pair]:
        files = self._files(archive, folder)
        if not archive.members[0].endswith(".sgm"):
            yield from read_pairs(*files)
            return
        count = 0
        for source, target in zip_longest(*map(read_segments, files)):
            if source is None or target is None:
                raise DataError(
                    f"{archive.download.name}: {archive.members[0]} and {archive.members[1]} "
                    "have different numbers of segments: get the archive again"
                )
            count += 1
            yield source, target
        if count != archive.pairs:
            raise DataError(
                f"{archive.download.name}: {count} segments in {archive.members[0]}, expected "
                f"{archive.pairs}: scores on it would not compare; get the archive again"
            )

    def _files(self, archive: Archive, folder: Path) -> tuple[Path, Path]:
        suffix = ".sgm" if archive.members[0].endswith(".sgm") else ""
        source, target = (folder / f"{archive.name}.{lang}{suffix}" for lang in self.languages)
        return source, target


def _inputs(table: Sources) -> dict[str, str]:
    """The checksum of each archive, and of what is taken out of them: not where they come from."""
    used = [(archive.name, archive.role, archive.members) for archive in table.archives]
    checksums = {archive.download.name: archive.checksum for archive in table.archives}
    return checksums | {"members": digest(used)}


def line_numbers(subset: list[Pair], lines: list[Pair]) -> list[int]:
    """The number in `lines`, from 1, of each pair of `subset` that is there, each used once.

    A pair is the same when both sides are; failing that, when both say the same.
    """
    free: dict[Pair, list[int]] = {}
    by_key: dict[Pair, list[int]] = {}
    for number, pair in reversed(list(enumerate(lines, start=1))):
        free.setdefault(pair, []).append(number)
        by_key.setdefault(_key(pair), []).append(number)
    used: set[int] = set()
    found: list[int] = []
    for pair in subset:
        for candidates in (free.get(pair, []), by_key.get(_key(pair), [])):
            while candidates and candidates[-1] in used:
                candidates.pop()
            if candidates:
                found.append(candidates.pop())
                used.add(found[-1])
                break
    return found


def _key(pair: Pair) -> Pair:
    return same_text_key(pair[0]), same_text_key(pair[1])
