"""Text to subword pieces, dropping training pairs by their lengths in pieces."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from data_prep.clean import REASONS, piece_reason_to_drop, require_some
from data_prep.manifest import SPLITS
from data_prep.progress import Advance
from data_prep.text import Pair, pair_writer, read_text
from data_prep.vocabulary import load_pieces, piece_names

CHUNK_PAIRS = 10_000

# The reason to drop a pair with so many pieces on each side, or None.
Rule = Callable[[int, int], str | None]


class Encoded(msgspec.Struct):
    """What encoding a split counted."""

    kept: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    source_pieces: int = 0
    target_pieces: int = 0


class Encoder:
    """A SentencePiece model that encodes on `workers` cores; the result does not depend on them."""

    def __init__(self, model: Path, workers: int) -> None:
        self._pieces = load_pieces(model)
        self._names = piece_names(self._pieces)
        self._workers = workers

    def encode(self, lines: list[str]) -> list[list[str]]:
        """The pieces of each line, by the names that fairseq's dictionary has for them."""
        encoded = self._pieces.encode(lines, num_threads=self._workers)
        return [[self._names[index] for index in line] for line in encoded]


def encode_splits(
    texts: Path, encoder: Encoder, max_pieces: int, max_ratio: float, out: Path, advance: Advance
) -> dict[str, Encoded]:
    """Encode every split of the folder `texts`: `out`/pieces, and `out`/text with the same pairs.

    Training pairs are dropped by `piece_reason_to_drop`; of dev and test every pair stays.
    Raises DataError when no training pair is left.
    """

    def training_rule(source_pieces: int, target_pieces: int) -> str | None:
        return piece_reason_to_drop(source_pieces, target_pieces, max_pieces, max_ratio)

    counts = {
        split: _encode(
            read_text(texts, split),
            encoder,
            training_rule if split == "train" else lambda *_: None,
            out,
            split,
            advance,
        )
        for split in SPLITS
    }
    require_some(counts["train"].kept)
    return counts


def _encode(
    pairs: Iterator[Pair], encoder: Encoder, rule: Rule, out: Path, split: str, advance: Advance
) -> Encoded:
    counts = Encoded()
    with pair_writer(out / "text", split) as text, pair_writer(out / "pieces", split) as pieces:
        while chunk := list(islice(pairs, CHUNK_PAIRS)):
            sources, targets = ([pair[side] for pair in chunk] for side in (0, 1))
            encoded = zip(chunk, encoder.encode(sources), encoder.encode(targets), strict=True)
            for pair, source, target in encoded:
                if reason := rule(len(source), len(target)):
                    counts.dropped[reason] += 1
                    continue
                text(pair)
                pieces((" ".join(source), " ".join(target)))
                counts.kept += 1
                counts.source_pieces += len(source)
                counts.target_pieces += len(target)
            advance(len(chunk))
    return counts
