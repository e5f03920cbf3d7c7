"""The user's own files, of any two languages."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.corpora.corpus import Corpus
from data_prep.spec import SPLITS, DataError, DataSpec, Setting
from data_prep.system.files import sha256_of_file
from data_prep.text import Pair, read_pairs

SIDES = ("source", "target")
FILES = tuple(f"{split}_{side}" for split in SPLITS for side in SIDES)


class Local(Corpus):
    """Six files, one segment a line, plain or .gz or .xz, which are hashed where they lie."""

    name = "local"
    summary = (
        "your own files in any two languages: one segment a line, UTF-8, plain, .gz or .xz;\n"
        "line n of the source file is the translation of line n of the target file"
    )
    vocab_size = 8000
    settings = (*FILES, "nearest")
    licence = "your own text: its licence is yours to know"

    def __init__(self, spec: DataSpec) -> None:
        self.languages = spec.languages
        self.nearest_baseline = spec.nearest is not False
        paths = {setting: _file(spec, setting) for setting in FILES}
        self.inputs = {setting: _sha256(paths[setting], setting) for setting in paths}
        self._paths = {split: [paths[f"{split}_{side}"] for side in SIDES] for split in SPLITS}

    def pairs(self, split: str, folder: Path) -> Iterator[Pair]:
        """The pairs of a split."""
        return read_pairs(*self._paths[split])


def _file(spec: DataSpec, setting: str) -> Path:
    given = getattr(spec, setting)
    if not given:
        raise DataError("local needs ", Setting(setting), ": give the path of a text file")
    return Path(given)


def _sha256(path: Path, setting: str) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(
                f"{path} is a pipe or a device, and the text is read several times: ",
                Setting(setting),
                " takes a file (write the text to one)",
            )
        sha256 = sha256_of_file(path)
        empty = not path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}: ", Setting(setting), " takes a text file"
        ) from error
    if empty:
        raise DataError(f"{path} is empty: ", Setting(setting), " takes a file with text")
    return sha256
