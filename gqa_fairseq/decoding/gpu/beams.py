"""The hypotheses of a search in memory whose shapes no step changes.

A step writes what beams.Chooser chose and from which beam; nothing that was written moves. A
finished hypothesis is a step and a beam, and is traced back on the host when it is collected.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gqa_fairseq.decoding.beams import Candidates, Finished
from gqa_fairseq.decoding.memory import Capacity


class GpuBeams:
    """The hypotheses of up to `capacity.rows` sentences, `beam` each; `eos` ends them."""

    def __init__(self, capacity: Capacity, *, beam: int, eos: int, device: torch.device) -> None:
        def integers(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        W, rows, slots = beam, capacity.rows, capacity.targets * beam
        self.beam, self._eos = beam, eos
        self.last = integers(1)  # step at which only the end may come
        self.newest = integers(rows, W)  # words of the last step
        self.totals = torch.zeros(rows, W, device=device)  # sums of log-probabilities
        self.count = integers(rows)  # finished hypotheses
        # What each step chose: the word, the beam of the step before it continues, the sum so far.
        self._memory = (integers(slots), integers(slots), torch.zeros(slots, device=device))
        # Finished hypotheses in their order. Column W takes what there is no room for.
        self._end_step, self._end_beam = integers(rows, W + 1), integers(rows, W + 1)
        self._end_total = torch.zeros(rows, W + 1, device=device)

    # Between steps.

    def start(self, rows: int, steps: int, sentences: int, first: int, max_len: int) -> None:
        """New sentences that begin with the word `first`; the other rows are done."""
        size = (rows, steps, self.beam)
        self._histories = [x[: math.prod(size)].view(size) for x in self._memory]
        self.last.fill_(max_len)
        self.newest.fill_(first)
        self.totals.zero_()[:, 1:] = -math.inf  # all beams are the same: look at the first
        self.count.fill_(self.beam)[:sentences] = 0

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Rows `sources` are copied to rows `targets`."""
        ends = (self._end_step, self._end_beam, self._end_total)
        for tensor in (self.newest, self.totals, self.count, *ends, *self._histories):
            tensor[targets] = tensor[sources]

    def finished(self, rows: Tensor, steps: int) -> list[list[Finished]]:
        """The finished hypotheses of some rows [n] after `steps` steps, in their order.

        Returns:
            those of each row, on the host.
        """
        rows = rows.to(self.count.device)
        count = self.count[rows].tolist()
        step, beam = (x[rows, :-1].cpu() for x in (self._end_step, self._end_beam))  # [n, W]
        total = self._end_total[rows, :-1].cpu()
        words, parents, sums = (x[rows, :steps].cpu().transpose(0, 1) for x in self._histories)
        traced = torch.full((steps, *step.shape), self._eos)
        scores = total.expand(steps, -1, -1).clone()
        for t in range(steps - 2, -1, -1):
            is_inside = step > t
            traced[t] = torch.where(is_inside, words[t].gather(1, beam), self._eos)
            scores[t] = torch.where(is_inside, sums[t].gather(1, beam), total)
            beam = torch.where(is_inside, parents[t].gather(1, beam), beam)
        scores[1:] -= scores[:-1].clone()
        traced, scores = (x.permute(1, 2, 0).contiguous() for x in (traced, scores))
        lengths = (step + 1).tolist()
        return [
            [
                Finished(traced[i, w, : lengths[i][w]], scores[i, w, : lengths[i][w]], total[i, w])
                for w in range(count[i])
            ]
            for i in range(len(count))
        ]

    # Inside a step: no shape and no branch depends on a value.

    def finish(self, is_end: Tensor, candidates: Candidates, position: Tensor) -> None:
        """Notes what ends, [B, K], among the W best, while its sentence has room."""
        n, W = is_end.shape[0], self.beam
        is_end, count = is_end[:, :W], self.count[:n]
        place = count[:, None] + is_end.cumsum(1) - 1
        place = place.masked_fill(~is_end, W).clamp(max=W)
        self._end_step[:n].scatter_(1, place, position.expand(n, W))
        self._end_beam[:n].scatter_(1, place, candidates.parents[:, :W])
        self._end_total[:n].scatter_(1, place, candidates.scores[:, :W])
        count.add_(is_end.sum(1)).clamp_(max=W)

    def extend(self, chosen: Candidates, position: Tensor) -> None:
        """Beam j of a sentence becomes `chosen` j, all [B, W], at the step `position` [1]."""
        n = chosen.words.shape[0]
        self.newest[:n], self.totals[:n] = chosen.words, chosen.scores
        news = (chosen.words, chosen.parents, chosen.scores)
        for history, new in zip(self._histories, news, strict=True):
            history[:n].index_copy_(1, position, new[:, None])
