"""Which training pairs are dropped, and why; every pair that is read is kept or counted.

Rules on text come first, before there is a vocabulary. Lengths and their ratio are in subword
pieces, as the model sees them, and come after. Dev and test lines are never dropped.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec

from data_prep.spec import HELD_OUT, SPLITS, DataError, Languages, Setting
from data_prep.system.parallel import chunks, ordered_map
from data_prep.system.progress import Advance
from data_prep.text import Pair, pair_writer, same_text_key
from data_prep.transform.near import NearLines

REASONS = ("empty", "control_characters", "held_out", "too_long", "ratio")

CHUNK_PAIRS = 10_000

# C0 and C1 but the tab: they mark broken text, and other tools take some of them for line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class TextRules:
    """Rules that need no vocabulary; `held_out` are the pairs of dev and test.

    With `near_duplicates` a training pair goes as well where a side is nearly a held-out line.
    """

    def __init__(self, held_out: Iterable[Pair], *, near_duplicates: bool = False) -> None:
        self._keys: tuple[set[str], set[str]] = (set(), set())
        for pair in held_out:
            for keys, line in zip(self._keys, pair, strict=True):
                keys.add(same_text_key(line))
        self._near = [NearLines(keys) for keys in self._keys] if near_duplicates else []

    def reason_to_drop(self, pair: Pair) -> str | None:
        """One of REASONS, or None to keep the pair."""
        if not all(line.strip() for line in pair):
            return "empty"
        if any(_CONTROL.search(line) for line in pair):
            return "control_characters"
        texts = [same_text_key(line) for line in pair]
        if any(text in keys for keys, text in zip(self._keys, texts, strict=True)):
            return "held_out"
        if self._near and any(
            lines.has_one_near(text) for lines, text in zip(self._near, texts, strict=True)
        ):
            return "held_out"
        return None


def piece_reason_to_drop(
    source_pieces: int, target_pieces: int, max_pieces: int, max_ratio: float
) -> str | None:
    """The rule on the two lengths in subword pieces: one of REASONS, or None to keep the pair."""
    shorter, longer = sorted((source_pieces, target_pieces))
    if not shorter:  # such as a line of nothing but invisible spaces
        return "empty"
    if longer > max_pieces:
        return "too_long"
    if longer > max_ratio * shorter:
        return "ratio"
    return None


def require_some(training_pairs: int, dropped: Mapping[str, int]) -> None:
    """Raise DataError, with how many were `dropped` by reason, when no training pair is left."""
    if training_pairs:
        return
    counts = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items() if count)
    more: list[str] = []
    if dropped["held_out"]:
        more.append(", which does not repeat dev and test")
    if dropped["control_characters"]:
        more.append(', whose lines end in "\\n" and hold no control characters')
    for reason, setting in (("too_long", "max_pieces"), ("ratio", "max_ratio")):
        if dropped[reason]:
            more += [", or raise ", Setting(setting)]
    raise DataError(
        f"cleaning leaves no training pair of {sum(dropped.values()):,} ({counts}): give other "
        "text",
        *more,
    )


def _sift(rules: TextRules, pairs: list[Pair]) -> tuple[list[Pair], Counter[str]]:
    """The pairs that stay, and how many do not by reason."""
    reasons = [rules.reason_to_drop(pair) for pair in pairs]
    kept = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    return kept, Counter(reason for reason in reasons if reason)


class Cleaned(msgspec.Struct):
    """Pairs of each split that were read, and training pairs that the text rules dropped."""

    read: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    dropped: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(REASONS, 0))


def clean_splits(
    pairs: Callable[[str], Iterator[Pair]],
    languages: Languages,
    folder: Path,
    advance: Advance,
    workers: int = 1,
    *,
    near_duplicates: bool = False,
) -> Cleaned:
    """Write into `folder` all of dev and test, and what the text rules leave of train.

    `pairs(split)` streams the text; dev and test fit in memory, train need not. `near_duplicates`
    of held-out lines go, too, where it is set.
    Raises DataError when nothing is left of train.
    """
    counts = Cleaned()
    held_out: list[Pair] = []
    for split in HELD_OUT:
        lines = list(pairs(split))
        counts.read[split] = len(lines)
        held_out += lines
        with pair_writer(folder, split, languages) as write:
            write(lines)
        advance(len(lines))
    sift = partial(_sift, TextRules(held_out, near_duplicates=near_duplicates))
    with pair_writer(folder, "train", languages) as write:
        for kept, dropped in ordered_map(sift, chunks(pairs("train"), CHUNK_PAIRS), workers):
            write(kept)
            for reason, count in dropped.items():
                counts.dropped[reason] += count
            read = len(kept) + sum(dropped.values())
            counts.read["train"] += read
            advance(read)
    require_some(counts.read["train"] - sum(counts.dropped.values()), counts.dropped)
    return counts
