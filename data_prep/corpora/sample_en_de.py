"""The embedded sample: sentences of the LibreOffice help."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from data_prep.corpora.corpus import Corpus
from data_prep.spec import DataSpec
from data_prep.system.files import check_sum, read_sums
from data_prep.text import Pair, read_pairs, same_text_key

SAMPLE_FOLDER = Path(__file__).parent / "sample"


class Sample(Corpus):
    """The embedded LibreOffice help.

    Dev and test are held out by a hash of the English line, one of `SHARES` parts each, so that the
    choice depends on the line alone. Lines that say the same share their hash and their split. The
    lines are in no order, so that whole pages cannot be held out. In their place train loses what
    is nearly a line of dev or test, since help texts repeat themselves with a word changed.
    """

    SHARES = 32
    name = "sample_en_de"
    summary = "the embedded LibreOffice help, 25,621 pairs; needs no network"
    vocab_size = 4000
    languages = ("en", "de")
    drops_near_duplicates = True
    licence = "LibreOffice help, MPL-2.0: data_prep/corpora/sample/LICENSE"

    def __init__(self, spec: DataSpec | None = None) -> None:
        self.inputs = read_sums(SAMPLE_FOLDER / "SHA256SUMS")

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        """The pairs of a split; raises DataError when the files are not those of SHA256SUMS."""
        for name, expected in self.inputs.items():
            path = SAMPLE_FOLDER / name
            check_sum(path, expected, str(path), "get the project's files again")
        source, target = (SAMPLE_FOLDER / f"libreoffice-help.{lang}.xz" for lang in self.languages)
        return (pair for pair in read_pairs(source, target) if self._split_of(pair) == split)

    def _split_of(self, pair: Pair) -> str:
        digest = hashlib.sha256(same_text_key(pair[0]).encode("utf-8")).digest()
        return {0: "dev", 1: "test"}.get(int.from_bytes(digest) % self.SHARES, "train")
