"""Training batches of a given number of real target tokens (`--target-tokens-per-update`).

fairseq's `--max-tokens` bounds what a batch costs: its lines times its longest side, padding
included. An update learns from its real target tokens, and with `--max-tokens` alone their number
depends on the text. Here the user asks for that number, and `--max-tokens` stays the limit of what
fits in memory.
"""

import numpy as np
from fairseq.data import BaseWrapperDataset, LanguagePairDataset, data_utils
from numpy.typing import NDArray

from gqa_fairseq.errors import OptionError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class TargetTokenBatches(BaseWrapperDataset):
    """A training set whose batches add up to updates of the same number of target tokens.

    An update is `batches_per_update` batches over all devices. An epoch is a whole number of
    updates, chosen so that their mean is nearest to `tokens_per_update`. So every device gets the
    same number of batches, and the mean depends neither on the devices nor on the batches.

    `seed` decides which lines of the same length go together.
    """

    def __init__(
        self,
        dataset: LanguagePairDataset,
        tokens_per_update: int,
        batches_per_update: int,
        seed: int,
    ) -> None:
        super().__init__(dataset)
        self._seed = seed
        self._tokens_per_update = tokens_per_update
        self._batches_per_update = batches_per_update

    def ordered_indices(self) -> Integers:
        """All lines in the order of length.

        fairseq shuffles lines of the same length by the epoch in which a process starts: a resumed
        training would go on with other batches.
        """
        with data_utils.numpy_seed(self._seed):
            return self.dataset.ordered_indices()

    def batch_by_size(
        self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ) -> list[Integers]:
        """Every line of `indices`, which are in the order of length, in one batch.

        `required_batch_size_multiple` is ignored, so that no line is dropped for it.

        Raises:
            OptionError: options that exclude each other, or a size that cannot be had.
        """
        if max_sentences is not None:
            raise OptionError("--target-tokens-per-update and --batch-size exclude each other")
        target = self.dataset.tgt_sizes[indices]
        longer_side = np.maximum(self.dataset.src_sizes[indices], target)
        updates = max(1, round(int(target.sum()) / self._tokens_per_update))
        try:
            batches = cut(target, longer_side, updates * self._batches_per_update, max_tokens)
        except ValueError as error:
            raise OptionError(
                f"--target-tokens-per-update {self._tokens_per_update}: {error}"
            ) from error
        return [indices[batch] for batch in batches]


def cut(
    tokens: Integers, longer_side: Integers, count: int, max_tokens: int | None = None
) -> list[Integers]:
    """Cut lines 0, 1, ... into `count` batches of neighbours with nearly the same `tokens`.

    `tokens` and `longer_side` [lines] are in the order of length. A batch costs its lines times its
    longest side. Where that would be more than `max_tokens` (a long source with a short target, or
    lengths that are rare and far apart), batches are smaller and the others are larger, so that the
    mean stays. There are fewer batches only where one line has more tokens than a batch should.

    Raises:
        ValueError: `count` batches cannot hold the lines.
    """
    # What a line takes of the memory of one batch.
    share = 1 / (max_tokens // longer_side) if max_tokens else np.zeros(len(tokens))
    while share.sum() <= count:
        starts = _equal_cuts(_weights(tokens, share, count), count)
        lines, longest = _lines_and_longest(longer_side, starts)
        too_large = lines * longest > (max_tokens or np.inf)
        if not too_large.any():
            return np.split(np.arange(len(tokens)), starts[1:])
        # A line costs as much as the longest line in its batch. With these shares the same batch
        # would fit. New cuts may put other lines together, so shares grow until all batches fit.
        assert max_tokens is not None
        least = np.where(too_large, 1 / (max_tokens // longest), 0)
        share = np.maximum(share, np.repeat(least, lines))
    lines, longest = _lines_and_longest(longer_side, _equal_cuts(tokens, count))
    raise ValueError(
        f"{count} batches of at most {max_tokens} padded tokens do not hold the text: raise "
        f"--update-freq, or --max-tokens (to {max(lines * longest)}, if memory allows)"
    )


def _weights(tokens: Integers, share: Floats, count: int) -> Floats:
    """Each line's part of a batch: of its tokens, or of its memory where that is more.

    They add up to `count`, which the shares alone do not exceed.
    """
    per_token = count / tokens.sum()
    while True:
        # As memory takes more than tokens would, fewer batches are left for the other lines.
        by_memory = share > per_token * tokens
        others = tokens[~by_memory].sum()
        left = (count - share[by_memory].sum()) / others if others else per_token
        if left >= per_token:
            return np.maximum(share, per_token * tokens)
        per_token = left


def _equal_cuts(weights: Floats | Integers, count: int) -> Integers:
    """First line of each of `count` runs of the same weight, up to half a line, none empty."""
    ends = np.cumsum(weights)
    middles = ends - weights / 2
    starts = np.unique(np.searchsorted(middles, ends[-1] * np.arange(count) / count))
    return starts[starts < len(weights)]


def _lines_and_longest(longer_side: Integers, starts: Integers) -> tuple[Integers, Integers]:
    """Of each batch: the number of its lines, and the longest side of one of them."""
    lines = np.diff(starts, append=len(longer_side))
    return lines, np.maximum.reduceat(longer_side, starts)
