"""Text to subword pieces on all cores, dropping training pairs by their lengths in pieces."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import msgspec

from data_prep.spec import SPLITS, Languages
from data_prep.system.parallel import chunks, ordered_map
from data_prep.system.progress import Advance
from data_prep.text import Pair, pair_writer, read_text
from data_prep.transform.clean import CHUNK_PAIRS, REASONS, piece_reason_to_drop, require_some
from data_prep.transform.vocabulary import load_pieces, piece_names


class Encoded(msgspec.Struct):
    """What encoding a split counted."""

    kept: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    source_pieces: int = 0
    target_pieces: int = 0

    def add(self, other: "Encoded") -> None:
        """Count also what `other` counted."""
        self.kept += other.kept
        self.source_pieces += other.source_pieces
        self.target_pieces += other.target_pieces
        for reason, count in other.dropped.items():
            self.dropped[reason] += count


class Encoder:
    """A SentencePiece model in the file `model`, loaded by each process that uses it."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._pieces = load_pieces(model)
        self._names = piece_names(self._pieces)

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return _loaded, (self._model,)

    def encode(self, lines: list[str]) -> list[list[str]]:
        """The pieces of each line, by the names that fairseq's dictionary has for them."""
        encoded = self._pieces.encode(lines, num_threads=1)
        return [[self._names[index] for index in line] for line in encoded]


@cache
def _loaded(model: Path) -> Encoder:
    return Encoder(model)


def encode_splits(
    texts: Path,
    languages: Languages,
    encoder: Encoder,
    max_pieces: int,
    max_ratio: float,
    out: Path,
    advance: Advance,
    workers: int = 1,
    dropped_before: Mapping[str, int] | None = None,
) -> dict[str, Encoded]:
    """Encode every split of the folder `texts`: `out`/pieces, and `out`/text with the same pairs.

    Training pairs are dropped by `piece_reason_to_drop`; of dev and test every pair stays.
    Raises DataError when no training pair is left; its message counts `dropped_before` as well.
    """
    found: dict[str, Encoded] = {}
    for split in SPLITS:
        limits = (max_pieces, max_ratio) if split == "train" else None
        encode = partial(_encode, encoder, limits)
        found[split] = counts = Encoded()
        lines = read_text(texts, split, languages)
        stream = ordered_map(encode, chunks(lines, CHUNK_PAIRS), workers)
        with (
            pair_writer(out / "text", split, languages) as text,
            pair_writer(out / "pieces", split, languages) as pieces,
        ):
            for kept, encoded, more in stream:
                text(kept)
                pieces(encoded)
                counts.add(more)
                advance(more.kept + sum(more.dropped.values()))
    before = dropped_before or {}
    dropped = {reason: n + before.get(reason, 0) for reason, n in found["train"].dropped.items()}
    require_some(found["train"].kept, dropped)
    return found


def _encode(
    encoder: Encoder, limits: tuple[int, float] | None, pairs: list[Pair]
) -> tuple[list[Pair], list[Pair], Encoded]:
    """The pairs that stay, the same in pieces, and the counts; without `limits` all stay."""
    counts = Encoded()
    kept: list[Pair] = []
    pieces: list[Pair] = []
    sides = (encoder.encode([pair[side] for pair in pairs]) for side in (0, 1))
    for pair, source, target in zip(pairs, *sides, strict=True):
        if limits and (reason := piece_reason_to_drop(len(source), len(target), *limits)):
            counts.dropped[reason] += 1
            continue
        kept.append(pair)
        pieces.append((" ".join(source), " ".join(target)))
        counts.kept += 1
        counts.source_pieces += len(source)
        counts.target_pieces += len(target)
    return kept, pieces, counts
