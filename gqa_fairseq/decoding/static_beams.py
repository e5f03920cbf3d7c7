"""Beam search's choices with shapes that no step changes: what search.py does, on the device.

The rules are those of GroupedQueryGenerator (and so of fairseq's SequenceGenerator): of the 2 W
best continuations of a sentence, those that end among the first W are finished, the first W that
do not end go on, and a sentence is done with its W-th finished hypothesis. With at least 2 W words
to choose from, W of the 2 W always go on: at most one ending comes from each of W beams.

A step writes what it chose and from which beam; nothing that was written moves. A finished
hypothesis is a step and a beam, and is traced back on the host when somebody wants it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gqa_fairseq.decoding.top_k import top_k


class TokenRules:
    """What search options add to the log-probability of each word, by step.

    Args:
        pad, unk, eos: word indices; padding is never chosen.
        unk_penalty: subtracted from the unknown word's.
        suppressed: words never to choose.
        min_len: words before the end.
    """

    def __init__(
        self,
        vocabulary: int,
        device: torch.device,
        *,
        pad: int,
        unk: int,
        eos: int,
        unk_penalty: float,
        suppressed: list[int],
        min_len: int,
    ) -> None:
        self.min_len = min_len
        self.max_len = torch.zeros(1, dtype=torch.int64, device=device)
        usual = torch.zeros(vocabulary)
        usual[unk] = -unk_penalty
        usual[[pad, *suppressed]] = -math.inf
        no_end, only_end = usual.clone(), torch.full((vocabulary,), -math.inf)
        no_end[eos] = -math.inf
        only_end[eos] = usual[eos]
        self._usual, self._no_end, self._only_end = (
            x.to(device) for x in (usual, no_end, only_end)
        )

    def __call__(self, position: Tensor) -> Tensor:
        """float32 [V] to add to the log-probabilities of the step at `position` [1]."""
        early = torch.where(position < self.min_len, self._no_end, self._usual)
        return torch.where(position >= self.max_len, self._only_end, early)


class StaticBeams:
    """The hypotheses of `rows` sentences, `beam` each, for up to `steps` steps."""

    def __init__(self, *, rows: int, beam: int, steps: int, eos: int, device: torch.device) -> None:
        def integers(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        W = beam
        self.beam, self.eos = W, eos
        self.newest = integers(rows, W)  # words of the last step
        self.totals = torch.zeros(rows, W, device=device)  # sums of log-probabilities
        self.count = integers(rows)  # finished hypotheses
        # What each step chose: the word, the beam of the step before it continues, the sum so far.
        self._words, self._parents = integers(steps, rows, W), integers(steps, rows, W)
        self._sums = torch.zeros(steps, rows, W, device=device)
        # Finished hypotheses in their order. Column W takes what there is no room for.
        self._end_step, self._end_beam = integers(rows, W + 1), integers(rows, W + 1)
        self._end_total = torch.zeros(rows, W + 1, device=device)
        self._ranks = torch.arange(2 * W, device=device)

    # Between steps.

    def start(self, batch: int, first: int) -> None:
        """`batch` new sentences that begin with the word `first`; the other rows are done."""
        self.newest.fill_(first)
        self.totals.zero_()[:, 1:] = -math.inf  # all beams are the same: look at the first
        self.count.fill_(self.beam)[:batch] = 0

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Rows `sources` are copied to rows `targets`."""
        by_row = (self.newest, self.totals, self.count)
        for tensor in (*by_row, self._end_step, self._end_beam, self._end_total):
            tensor[targets] = tensor[sources]
        for tensor in (self._words, self._parents, self._sums):
            tensor[:, targets] = tensor[:, sources]

    def finished(self, rows: Tensor, steps: int) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
        """The finished hypotheses of some rows [n] after `steps` steps, in their order.

        Returns:
            for each row (words with </s> [T], log-probability of each [T], their sum []), float32,
            on the host.
        """
        rows = rows.to(self.count.device)
        count = self.count[rows].tolist()
        step, beam = (x[rows, :-1].cpu() for x in (self._end_step, self._end_beam))  # [n, W]
        total = self._end_total[rows, :-1].cpu()
        words, parents, sums = (
            x[:steps, rows].cpu() for x in (self._words, self._parents, self._sums)
        )
        traced = torch.full((steps, *step.shape), self.eos)
        scores = total.expand(steps, -1, -1).clone()
        for t in range(steps - 2, -1, -1):
            is_inside = step > t
            traced[t] = torch.where(is_inside, words[t].gather(1, beam), self.eos)
            scores[t] = torch.where(is_inside, sums[t].gather(1, beam), total)
            beam = torch.where(is_inside, parents[t].gather(1, beam), beam)
        scores[1:] -= scores[:-1].clone()
        traced, scores = (x.permute(1, 2, 0).contiguous() for x in (traced, scores))
        lengths = (step + 1).tolist()
        return [
            [
                (traced[i, w, : lengths[i][w]], scores[i, w, : lengths[i][w]], total[i, w])
                for w in range(count[i])
            ]
            for i in range(len(count))
        ]

    # Inside a step: no shape and no branch depends on a value.

    def choose(self, lprobs: Tensor, position: Tensor) -> Tensor:
        """Takes one step: finishes hypotheses and continues others.

        Args:
            lprobs: float32 [B * W, V], options already obeyed; V > 2 W.
            position: int64 [1], the step, on the device.

        Returns:
            [B, W] which beam each new one continues.
        """
        W, K = self.beam, 2 * self.beam
        n = lprobs.shape[0] // W
        values, words = top_k(lprobs, K)
        values = values.masked_fill(values.isnan(), -math.inf)  # never chosen, as in fairseq
        sums = (values.view(n, W, K) + self.totals[:n, :, None]).flatten(1)
        scores, best = sums.topk(K)  # [n, K]
        words, parents = words.view(n, W * K).gather(1, best), best // K
        is_end = words.eq(self.eos) & scores.ne(-math.inf)
        self._finish(is_end[:, :W], scores[:, :W], parents[:, :W], position)
        # The W best that go on: ended ones sort behind all others.
        chosen = (is_end * K + self._ranks).topk(W, dim=1, largest=False).indices
        scores, words, parents = (x.gather(1, chosen) for x in (scores, words, parents))
        self.newest[:n], self.totals[:n] = words, scores
        histories = (self._words, self._parents, self._sums)
        for history, new in zip(histories, (words, parents, scores), strict=True):
            history[:, :n].index_copy_(0, position, new[None])
        return parents

    def _finish(self, is_end: Tensor, scores: Tensor, parents: Tensor, position: Tensor) -> None:
        """Notes the hypotheses that end, while their sentence has room; all [B, W]."""
        n, W = is_end.shape
        count = self.count[:n]
        place = count[:, None] + is_end.cumsum(1) - 1
        place = place.masked_fill(~is_end, W).clamp(max=W)
        self._end_step[:n].scatter_(1, place, position.expand(n, W))
        self._end_beam[:n].scatter_(1, place, parents)
        self._end_total[:n].scatter_(1, place, scores)
        count.add_(is_end.sum(1)).clamp_(max=W)
