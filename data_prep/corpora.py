"""The corpora that can be prepared, and how each comes to train, dev and test pairs."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from data_prep import fetch
from data_prep.corpus import Corpus
from data_prep.errors import DataError
from data_prep.manifest import SPLITS, DataSpec
from data_prep.text import Pair, read_pairs, same_text_key, sha256_of_file
from data_prep.wmt14 import Wmt14

SAMPLE_FOLDER = Path(__file__).parent / "sample"


class Sample(Corpus):
    """The embedded LibreOffice help.

    Dev and test are held out by a hash of the English line, one of `SHARES` parts each, so that the
    choice depends on the line alone. Lines that say the same share their hash and their split.
    """

    SHARES = 32
    licence = "LibreOffice help, MPL-2.0: data_prep/sample/LICENSE"

    def __init__(self) -> None:
        self.inputs = fetch.read_sums(SAMPLE_FOLDER / "SHA256SUMS")
        for name, expected in self.inputs.items():
            path = SAMPLE_FOLDER / name
            fetch.check_sum(path, expected, str(path), "get the project's files again")

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        source, target = (SAMPLE_FOLDER / f"libreoffice-help.{lang}.xz" for lang in ("en", "de"))
        return (pair for pair in read_pairs(source, target) if self._split_of(pair) == split)

    def _split_of(self, pair: Pair) -> str:
        digest = hashlib.sha256(same_text_key(pair[0]).encode("utf-8")).digest()
        return {0: "dev", 1: "test"}.get(int.from_bytes(digest) % self.SHARES, "train")


class Multi30k(Corpus):
    """Multi30k task 1: descriptions of photographs; dev is `val`, test is `test_2016_flickr`."""

    URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
    licence = "Multi30k states no licence: for your own use, do not redistribute"

    def __init__(self) -> None:
        self.inputs = {
            "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
            "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
            "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
            "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
            "test_2016_flickr.en.gz": (
                "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"
            ),
            "test_2016_flickr.de.gz": (
                "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"
            ),
        }
        self.downloads = [
            fetch.Download(url=self.URL + name, checksum=checksum)
            for name, checksum in self.inputs.items()
        ]

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        name = {"train": "train", "dev": "val", "test": "test_2016_flickr"}[split]
        return read_pairs(folder / f"{name}.en.gz", folder / f"{name}.de.gz")


class Local(Corpus):
    """The user's own files, one segment a line, plain or .gz or .xz."""

    licence = "your own text: its licence is yours to know"

    def __init__(self, spec: DataSpec) -> None:
        self.inputs = {}
        self._paths = {
            split: (self._file(spec, split, "source"), self._file(spec, split, "target"))
            for split in SPLITS
        }

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        return read_pairs(*self._paths[split])

    def _file(self, spec: DataSpec, split: str, side: str) -> Path:
        option = f"--{split}-{side}"
        given = getattr(spec, f"{split}_{side}")
        if given is None:
            raise DataError(f"local needs the {side} side of {split}: give {option} FILE")
        path = Path(given)
        try:
            self.inputs[f"{split}_{side}"] = sha256_of_file(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}: {option} takes a text file") from error
        if not path.stat().st_size:
            raise DataError(f"{path} is empty: {option} takes a file with text")
        return path


def open_corpus(spec: DataSpec) -> Corpus:
    """The corpus that `spec` names. Raises DataError when its inputs cannot be used."""
    if spec.name == "sample_en_de":
        return Sample()
    if spec.name == "multi30k_en_de":
        return Multi30k()
    if spec.name == "wmt14_en_de":
        return Wmt14(spec)
    return Local(spec)
