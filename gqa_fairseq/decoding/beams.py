"""The choices of a search, for every driver: what may come next, what ends, what goes on.

They are those of fairseq's SequenceGenerator. Of the 2 W best continuations of a sentence, those
that end among the first W are finished, the first W that do not end go on, and a sentence is done
with its W-th finished hypothesis. The options are objects of rules.py; a driver keeps the
hypotheses, calls the four methods of Chooser in their order at each step, and moves the beams.

Nothing here waits for a device if the clock is on it (rules.Clock). Legend: see attention.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gqa_fairseq.decoding.cpu.native import Operators
from gqa_fairseq.decoding.rules import Clock, Histories, LengthPenalty, Rule, Temperature
from gqa_fairseq.decoding.top_k import top_k

# (lprobs [rows, V], k, clock) -> the k best log-probabilities and words of each row, [rows, k] both
Best = Callable[[Tensor, int, Clock], tuple[Tensor, Tensor]]


class Candidates(NamedTuple):
    """Continuations of each sentence's beams, best first, [n, K] each."""

    scores: Tensor  # sums of log-probabilities
    words: Tensor
    parents: Tensor  # the beams that they continue

    def of_rows(self, rows: Tensor) -> Candidates:
        return Candidates(*(x[rows] for x in self))


class Strategy(ABC):
    """How candidates are found; `needs_host` as in rules.Rule."""

    needs_host: ClassVar[str | None] = None

    @abstractmethod
    def candidates(self, lprobs: Tensor, totals: Tensor, clock: Clock, best: Best) -> Candidates:
        """From log-probabilities [n * W, V] and the sums [n, W] of the hypotheses so far."""

    def keep(self, rows: Tensor) -> None:  # noqa: B027  most strategies know nothing of sentences
        """Sentences `rows` [n'] of the n are left."""


class BeamSearch(Strategy):
    """The 2 W best continuations, so that W are left if W of them end; greedy search is W = 1."""

    def candidates(self, lprobs: Tensor, totals: Tensor, clock: Clock, best: Best) -> Candidates:
        W, V = totals.shape[1], lprobs.shape[1]
        # At first all beams of a sentence are the same: look at the first. (Where the host does
        # not know the step, the driver starts the others' sums at -inf.)
        if isinstance(clock.step, int) and clock.step == 0:
            values, words = best(lprobs[::W], min(2 * W, V - 1), clock)
            return Candidates(values, words, torch.zeros_like(words))
        k = min(2 * W, V)
        values, words = best(lprobs, k, clock)
        sums = (values.view(-1, W, k) + totals.unsqueeze(2)).flatten(1)
        scores, chosen = sums.topk(min(2 * W, W * V - 1))
        return Candidates(scores, words.view(-1, W * k).gather(1, chosen), chosen // k)


class Sampling(Strategy):
    """--sampling: each beam draws one continuation; `draw` is fairseq's search.Sampling.step."""

    needs_host: ClassVar[str | None] = "--sampling"

    def __init__(self, draw: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
        self._draw = draw

    def candidates(self, lprobs: Tensor, totals: Tensor, clock: Clock, best: Best) -> Candidates:
        W, V = totals.shape[1], lprobs.shape[1]
        rows = lprobs.nan_to_num(nan=-math.inf, neginf=-math.inf).view(-1, W, V)
        sums = totals[:, :, None].expand(-1, -1, int(clock.step))  # it reads the last one
        return Candidates(*self._draw(clock.step, rows, sums))


class DiverseGroups(Strategy):
    """--diverse-beam-groups (Vijayakumar et al. 2016): a group avoids what those before it choose.

    `step` is fairseq's search.DiverseBeamSearch.step. It keeps what the groups of a sentence have
    in common by the sentence's place in the batch.
    """

    needs_host: ClassVar[str | None] = "--diverse-beam-groups"

    def __init__(self, step: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
        self._step = step
        self._places: Tensor | None = None

    def candidates(self, lprobs: Tensor, totals: Tensor, clock: Clock, best: Best) -> Candidates:
        n, W = totals.shape
        if self._places is None:
            self._places = torch.arange(n, device=lprobs.device)
        rows = lprobs.nan_to_num(nan=-math.inf, neginf=-math.inf).view(n, W, -1)
        sums = totals[:, :, None].expand(-1, -1, int(clock.step))  # it reads the last one
        return Candidates(*self._step(clock.step, rows, sums, None, self._places))

    def keep(self, rows: Tensor) -> None:
        assert self._places is not None
        self._places = self._places[rows]


@dataclass(frozen=True)
class Chooser:
    """The choices of one search with its options. W is `beam`; `native` operators are for a CPU."""

    beam: int
    eos: int
    temperature: Temperature
    rules: list[Rule]
    strategy: Strategy
    native: Operators | None = None

    @property
    def needs_host(self) -> str | None:
        """The first option that looks at values on the host, or None."""
        options: Iterable[Rule | Strategy] = (*self.rules, self.strategy)
        return next((o.needs_host for o in options if o.needs_host), None)

    def log_probs(self, logits: Tensor, clock: Clock, histories: Histories | None = None) -> Tensor:
        """Scores [n * W, V] -> float32 log-probabilities that obey the rules."""
        logits = self.temperature(logits)
        if self.native is None:
            lprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        else:
            lprobs = self.native.log_softmax_(logits)
        for rule in self.rules:
            rule.change(lprobs, clock, histories)
        return lprobs

    def candidates(self, lprobs: Tensor, totals: Tensor, clock: Clock) -> Candidates:
        """What may come next, K = 2 W or fewer; `totals` [n, W] are the sums so far."""
        return self.strategy.candidates(lprobs, totals, clock, self._best)

    def _best(self, lprobs: Tensor, k: int, clock: Clock) -> tuple[Tensor, Tensor]:
        """The k best words of each row; a NaN is never chosen, as in fairseq."""
        if self.native is not None:
            return self.native.top_k(lprobs, k)
        values, words = top_k(lprobs, k)
        if clock.is_on_host:
            if bool(values.isnan().any()):
                return top_k(lprobs.nan_to_num(nan=-math.inf, neginf=-math.inf), k)
            return values, words
        for rule in self.rules:
            values, words = rule.limit(values, words, lprobs, clock)
        return values.masked_fill(values.isnan(), -math.inf), words

    def ends(self, candidates: Candidates, is_dead: Tensor | None = None) -> Tensor:
        """Which candidates end, bool [n, K]; among the first W they are finished hypotheses.

        `is_dead` [n, W] bool are the places among the first W that nothing good fills any more.
        """
        is_end = candidates.words.eq(self.eos) & candidates.scores.ne(-math.inf)
        if is_dead is not None:
            is_end[:, : self.beam] &= ~is_dead
        return is_end

    def going_on(
        self, candidates: Candidates, is_end: Tensor, is_dead: Tensor | None = None
    ) -> tuple[Candidates, Tensor]:
        """The W best that go on, [n, W], and which of them are dead, bool [n, W].

        Ended and dead ones come behind all others, and fill up where fewer than W go on. With more
        than 2 W words there always are W: at most one ending comes from each of the W beams.
        """
        if is_dead is not None:
            is_end[:, : self.beam] |= is_dead
        count = is_end.shape[1]
        rank = is_end * count + torch.arange(count, device=is_end.device)
        rank, chosen = rank.topk(self.beam, dim=1, largest=False)
        scores, words, parents = candidates
        going_on = Candidates(
            scores.gather(1, chosen), words.gather(1, chosen), parents.gather(1, chosen)
        )
        return going_on, rank >= count

    def keep(self, rows: Tensor) -> None:
        """Sentences `rows` [n'] of the n are left."""
        self.strategy.keep(rows)
        for rule in self.rules:
            rule.keep(rows)


class Finished(NamedTuple):
    """A finished hypothesis."""

    words: Tensor  # [T] with </s>
    positional: Tensor  # [T] log-probability of each
    total: Tensor  # [] their sum


def ranked(finished: Iterable[Finished], penalty: LengthPenalty) -> list[dict[str, Any]]:
    """The hypotheses of a sentence as fairseq returns them, best first.

    `attention` is empty; search.py puts in its place what computes it.
    """
    hypotheses = [
        {
            "tokens": words,
            "score": penalty(total, len(words)),
            "attention": torch.empty(0),
            "alignment": torch.empty(0),
            "positional_scores": positional,
        }
        for words, positional, total in finished
    ]
    return sorted(hypotheses, key=lambda h: -h["score"].item())
