"""What is asked for (`DataSpec`) and what came out (`Manifest`), as strict schemas.

This module imports msgspec and the standard library alone, so that whoever composes settings can
import it in milliseconds. `data_prep.corpora.registry.request` says which data a spec asks for.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MANIFEST_NAME = "manifest.json"
HELD_OUT = ("dev", "test")
SPLITS = ("train", *HELD_OUT)

Languages = tuple[str, str]  # the source language and the target language

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# A sha256; the md5, so marked, where the publisher gives no other.
Checksum = Annotated[str, Meta(pattern="^([0-9a-f]{64}|md5:[0-9a-f]{32})$")]
# Such as en, gsw or zh_Hans: a language code is a part of file names.
Language = Annotated[str, Meta(pattern=r"^[a-z]{2,3}(_[A-Za-z]+)?\Z")]


class Setting(str):
    """The name of a field of `DataSpec` in a message: each way to give it has a spelling for it."""

    __slots__ = ()


class DataError(Exception):
    """A text, a download or a setting cannot be used; the message says what to do.

    It is the one error of this package that a user is meant to read: the command prints it as one
    line and exits with 2. The message is made of parts; those that are a `Setting` are spelled as
    whoever reads it has written them.
    """

    def __str__(self) -> str:
        return self.spelled(str)

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message with the settings as `spell` writes them."""
        return "".join(spell(each) if isinstance(each, Setting) else each for each in self.args)


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a schema; unknown fields are errors."""


class DataSpec(Strict, frozen=True, kw_only=True):
    """The settings of a prepared corpus, each with the text that `--help` prints for it.

    A corpus reads only the settings that are its own: `sources` belongs to `wmt14_en_de`, the six
    files belong to `local`. Which corpora there are, and which languages they have, is checked
    when the corpus is opened.
    """

    name: Annotated[str, Meta(description="which corpus")]
    source_lang: Annotated[Language, Meta(description="language of the source side")] = "en"
    target_lang: Annotated[Language, Meta(description="language of the target side")] = "de"
    vocab_size: Annotated[int, Meta(ge=1, description="subword pieces of both languages together")]
    max_pieces: Annotated[
        int, Meta(ge=1, description="drop training pairs that have a side of more pieces")
    ] = 250
    max_ratio: Annotated[
        float,
        Meta(
            gt=1,
            le=1e6,
            description="drop training pairs whose longer side has more than this many times the "
            "pieces of the shorter side",
        ),
    ] = 1.5
    mirror: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="take downloads from this folder, file: URL or http: URL, which has files "
            "of the same names"
        ),
    ] = None
    sources: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="wmt14_en_de: a JSON table of other archives, written as "
            "data_prep/corpora/wmt14_en_de.json is"
        ),
    ] = None
    train_source: Annotated[str | None, Meta(description="local: training text")] = None
    train_target: Annotated[str | None, Meta(description="local: its translation")] = None
    dev_source: Annotated[str | None, Meta(description="local: text to choose models on")] = None
    dev_target: Annotated[str | None, Meta(description="local: its translation")] = None
    test_source: Annotated[str | None, Meta(description="local: text to score models on")] = None
    test_target: Annotated[str | None, Meta(description="local: its translation")] = None
    nearest: Annotated[
        bool | None,
        Meta(
            description="local: false leaves out the baseline of the nearest training line, whose "
            "time grows with the training text times the test text (default: true)"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.source_lang == self.target_lang:
            raise ValueError(
                f"source_lang and target_lang are both {self.source_lang}: give two languages"
            )

    @property
    def languages(self) -> Languages:
        """The source language and the target language."""
        return self.source_lang, self.target_lang


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
    """How much of a held-out split's source side the training text holds (transform/overlap.py)."""

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
    name: str
    source_lang: Language
    target_lang: Language
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

    @property
    def languages(self) -> Languages:
        """The source language and the target language."""
        return self.source_lang, self.target_lang


def load_manifest(path: Path) -> Manifest:
    """Read `path` (manifest.json); raises DataError when it is not there or not as it should be."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: prepare the data first") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}: remove the file and prepare the data again") from error


def digest(value: object) -> str:
    """Hexadecimal sha256 of `value` as JSON with sorted keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()
