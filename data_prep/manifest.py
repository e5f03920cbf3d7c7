"""What was asked for (`DataSpec`) and what came out (`Manifest`), as strict schemas."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from data_prep.errors import DataError

MANIFEST_NAME = "manifest.json"
HELD_OUT = ("dev", "test")
SPLITS = ("train", *HELD_OUT)
SOURCE_LANG = "en"
TARGET_LANG = "de"
LANGS = (SOURCE_LANG, TARGET_LANG)

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# A sha256; the md5, so marked, where the publisher gives no other.
Checksum = Annotated[str, Meta(pattern="^([0-9a-f]{64}|md5:[0-9a-f]{32})$")]
CorpusName = Literal["sample_en_de", "multi30k_en_de", "wmt14_en_de", "local"]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a schema; unknown fields are errors."""


class DataSpec(Strict, frozen=True, kw_only=True):
    """A corpus and the settings that decide what comes out of it.

    `max_pieces` and `max_ratio` (longer side to shorter) are in subword pieces. `sources` is a
    table of other archives for `wmt14_en_de`; the six paths are for `local` alone.
    """

    name: CorpusName
    vocab_size: Positive
    max_pieces: Positive = 250
    max_ratio: Annotated[float, Meta(gt=1)] = 1.5
    sources: str | None = None
    train_source: str | None = None
    train_target: str | None = None
    dev_source: str | None = None
    dev_target: str | None = None
    test_source: str | None = None
    test_target: str | None = None


class SplitCounts(Strict, frozen=True, kw_only=True):
    """Pairs of a split; `dropped` by reason. Pieces count those of the kept pairs."""

    read: Count
    kept: Count
    dropped: dict[str, Count]
    source_pieces: Count
    target_pieces: Count

    def __post_init__(self) -> None:
        total = self.kept + sum(self.dropped.values())
        if total != self.read:
            raise ValueError(f"kept + dropped is {total}, read is {self.read}")


class Overlap(Strict, frozen=True, kw_only=True):
    """How much of a held-out split's source side the training text holds (see overlap.py)."""

    four_grams_seen_share: Share
    lines_covered_share: Share
    duplicate_lines: Count


class Subset(Strict, frozen=True, kw_only=True):
    """A part of test that is scored by itself: its line numbers in test, from 1, are in `file`."""

    file: str
    lines: Count


class Manifest(Strict, frozen=True, kw_only=True):
    """The prepared corpus.

    `request` is the sha256 of what was asked for: settings and the checksum of every input.
    `files` are the sha256 of what came out, by path in the folder, and `checksum` is theirs: it
    changes when and only when the prepared data does.
    """

    schema_version: Literal[1] = 1
    name: CorpusName
    source_lang: str
    target_lang: str
    licence: str
    vocab_size: Positive
    max_pieces: Positive
    max_ratio: float
    request: Sha256
    inputs: dict[str, Checksum]
    splits: dict[str, SplitCounts]
    overlap: dict[str, Overlap]
    subsets: dict[str, Subset] = {}
    note: str = ""
    files: dict[str, Sha256]
    checksum: Sha256
    versions: dict[str, str]


def digest(value: object) -> str:
    """Hexadecimal sha256 of `value` as JSON with sorted keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def load_manifest(path: Path) -> Manifest:
    """Read `path` (manifest.json); raises DataError when it is not there or not as it should be."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: prepare the data first") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}: remove the file and prepare the data again") from error


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON in one step: a reader sees all of it or none."""
    encoded = msgspec.json.encode(value, order="deterministic")
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    os.replace(temporary, path)
