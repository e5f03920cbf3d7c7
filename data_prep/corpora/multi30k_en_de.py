"""Multi30k: descriptions of photographs."""

import gzip
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from data_prep.corpora.corpus import Corpus, Download
from data_prep.spec import DataSpec
from data_prep.text import Pair, read_pairs

URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"


# The lines of test are those of these sets, one after the other; each is scored by itself as well.
TESTS = ("2016_flickr", "2017_flickr")


class Multi30k(Corpus):
    """Multi30k task 1; dev is `val`, test is `test_2016_flickr` and then `test_2017_flickr`."""

    name = "multi30k_en_de"
    summary = "Multi30k, 29,000 image captions; downloaded (1.3 MB), or from --mirror"
    vocab_size = 6000
    languages = ("en", "de")
    in_archives = True
    licence = "Multi30k states no licence: for your own use, do not redistribute"

    def __init__(self, spec: DataSpec | None = None) -> None:
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
            "test_2017_flickr.en.gz": (
                "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074"
            ),
            "test_2017_flickr.de.gz": (
                "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee"
            ),
        }
        self.downloads = [
            Download(url=URL + name, checksum=checksum) for name, checksum in self.inputs.items()
        ]

    def extract(self, downloads: Path, folder: Path) -> None:
        """Write the text of each file into `folder`."""
        for name in self.inputs:
            with (
                gzip.open(downloads / name) as packed,
                (folder / Path(name).stem).open("wb") as out,
            ):
                shutil.copyfileobj(packed, out)

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        """The pairs of a split."""
        names = {"train": ["train"], "dev": ["val"], "test": [f"test_{name}" for name in TESTS]}
        return chain.from_iterable(self._pairs(name, folder) for name in names[split])

    def subsets(self, folder: Path) -> dict[str, list[int]]:
        """The lines of each test set."""
        found, before = {}, 0
        for name in TESTS:
            count = sum(1 for _ in self._pairs(f"test_{name}", folder))
            found[name] = list(range(before + 1, before + count + 1))
            before += count
        return found

    def _pairs(self, name: str, folder: Path) -> Iterator[Pair]:
        source, target = (folder / f"{name}.{lang}" for lang in self.languages)
        return read_pairs(source, target)
