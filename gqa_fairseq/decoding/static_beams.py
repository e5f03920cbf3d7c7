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
    """What search options add to log-probabilities: at few words, so that few are touched.

    Args:
        pad, unk, eos: word indices; padding is never chosen.
        unk_penalty: subtracted from the unknown word's.
        suppressed: words never to choose.
        min_len: words before the end.

    `max_len` int64 [1] on the device is the batch's: then only the end may come.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        pad: int,
        unk: int,
        eos: int,
        unk_penalty: float,
        suppressed: list[int],
        min_len: int,
    ) -> None:
        self.eos, self.min_len = eos, min_len
        self.max_len = torch.zeros(1, dtype=torch.int64, device=device)
        usual = {eos: 0.0, unk: -unk_penalty} | dict.fromkeys((pad, *suppressed), -math.inf)
        self._words = torch.tensor(list(usual), device=device)
        self._usual = torch.tensor(list(usual.values()), device=device)
        early = usual | {eos: -math.inf}
        self._early = torch.tensor(list(early.values()), device=device)

    def best(self, lprobs: Tensor, k: int, position: Tensor) -> tuple[Tensor, Tensor]:
        """The k best words of each row by these rules, at the step `position` [1].

        Args:
            lprobs: float32 [rows, V], changed in place.

        Returns:
            log-probabilities and words, [rows, k] both.
        """
        added = torch.where(position < self.min_len, self._early, self._usual)
        lprobs.index_add_(1, self._words, added.expand(lprobs.shape[0], -1))
        values, words = top_k(lprobs, k)
        is_last = position >= self.max_len
        is_first = torch.arange(k, device=lprobs.device) == 0
        end = lprobs[:, self.eos, None].masked_fill(~is_first, -math.inf)  # [rows, k]
        values = torch.where(is_last, end, values)
        # A NaN is never chosen, as in fairseq.
        values = values.masked_fill(values.isnan(), -math.inf)
        return values, words.masked_fill(is_last, self.eos)


class StaticBeams:
    """The hypotheses of up to `rows` sentences, `beam` each, rows times steps up to `targets`."""

    def __init__(
        self, rules: TokenRules, *, rows: int, targets: int, beam: int, device: torch.device
    ) -> None:
        def integers(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        W = beam
        self.beam, self.rules = W, rules
        self.newest = integers(rows, W)  # words of the last step
        self.totals = torch.zeros(rows, W, device=device)  # sums of log-probabilities
        self.count = integers(rows)  # finished hypotheses
        # What each step chose: the word, the beam of the step before it continues, the sum so far.
        self._memory = (
            integers(targets * W),
            integers(targets * W),
            torch.zeros(targets * W, device=device),
        )
        # Finished hypotheses in their order. Column W takes what there is no room for.
        self._end_step, self._end_beam = integers(rows, W + 1), integers(rows, W + 1)
        self._end_total = torch.zeros(rows, W + 1, device=device)
        self._ranks = torch.arange(2 * W, device=device)

    # Between steps.

    def start(self, rows: int, steps: int, sentences: int, first: int, max_len: int) -> None:
        """New sentences that begin with the word `first`; the other rows are done."""
        size = (rows, steps, self.beam)
        self._histories = [x[: math.prod(size)].view(size) for x in self._memory]
        self.rules.max_len.fill_(max_len)
        self.newest.fill_(first)
        self.totals.zero_()[:, 1:] = -math.inf  # all beams are the same: look at the first
        self.count.fill_(self.beam)[:sentences] = 0

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Rows `sources` are copied to rows `targets`."""
        ends = (self._end_step, self._end_beam, self._end_total)
        for tensor in (self.newest, self.totals, self.count, *ends, *self._histories):
            tensor[targets] = tensor[sources]

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
        words, parents, sums = (x[rows, :steps].cpu().transpose(0, 1) for x in self._histories)
        traced = torch.full((steps, *step.shape), self.rules.eos)
        scores = total.expand(steps, -1, -1).clone()
        for t in range(steps - 2, -1, -1):
            is_inside = step > t
            traced[t] = torch.where(is_inside, words[t].gather(1, beam), self.rules.eos)
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
            lprobs: float32 [B * W, V] of the next word, V > 2 W; changed in place.
            position: int64 [1], the step, on the device.

        Returns:
            [B, W] which beam each new one continues.
        """
        W, K = self.beam, 2 * self.beam
        n = lprobs.shape[0] // W
        values, words = self.rules.best(lprobs, K, position)
        sums = (values.view(n, W, K) + self.totals[:n, :, None]).flatten(1)
        scores, best = sums.topk(K)  # [n, K]
        words, parents = words.view(n, W * K).gather(1, best), best // K
        is_end = words.eq(self.rules.eos) & scores.ne(-math.inf)
        self._finish(is_end[:, :W], scores[:, :W], parents[:, :W], position)
        # The W best that go on: ended ones sort behind all others.
        chosen = (is_end * K + self._ranks).topk(W, dim=1, largest=False).indices
        scores, words, parents = (x.gather(1, chosen) for x in (scores, words, parents))
        self.newest[:n], self.totals[:n] = words, scores
        for history, new in zip(self._histories, (words, parents, scores), strict=True):
            history[:n].index_copy_(1, position, new[:, None])
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
