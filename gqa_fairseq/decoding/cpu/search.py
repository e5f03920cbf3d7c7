"""The driver that looks at every step which sentences are finished.

Looks and cuts are free on a CPU: sentences leave at the step that finishes them, and tensors are
cut to what is filled. It runs every option, and on a GPU what gpu/search.py refuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gqa_fairseq.decoding.beams import Candidates, Chooser, Finished
from gqa_fairseq.decoding.cpu.cache import DecoderCache
from gqa_fairseq.decoding.rules import Clock


class Hypotheses:
    """The unfinished hypotheses of the n sentences in the batch, and the finished ones of all."""

    def __init__(
        self, batch: int, beam: int, max_len: int, first: int, device: torch.device
    ) -> None:
        # Words and cumulative scores; what lies beyond the step is not read.
        self.tokens = torch.zeros(batch, beam, max_len + 2, dtype=torch.int64, device=device)
        self.tokens[:, :, 0] = first
        self.scores = torch.zeros(batch, beam, max_len + 1, device=device)
        self.is_dead = torch.zeros(batch, beam, dtype=torch.bool, device=device)
        self._sentences = torch.arange(batch, device=device)  # place in the original batch
        self.finished: list[list[Finished]] = [[] for _ in range(batch)]

    def finish(self, step: int, is_end: Tensor, candidates: Candidates) -> list[bool]:
        """Takes over what ends, [n, K], among the W best; returns which sentences are left, [n]."""
        W = self.tokens.shape[1]
        rows, columns = is_end[:, :W].nonzero(as_tuple=True)
        if rows.numel():
            parent = candidates.parents[rows, columns]
            words = self.tokens[rows, parent, 1 : step + 2]
            words[:, step] = candidates.words[rows, columns]
            total = candidates.scores[rows, columns]
            positional = self.scores[rows, parent, : step + 1]
            positional[:, step] = total
            positional[:, 1:] = positional[:, 1:] - positional[:, :-1]
            for i, sentence in enumerate(self._sentences[rows].tolist()):
                if len(self.finished[sentence]) < W:
                    self.finished[sentence].append(Finished(words[i], positional[i], total[i]))
        return [len(self.finished[s]) < W for s in self._sentences.tolist()]

    def keep(self, rows: Tensor) -> None:
        """Drops the sentences that are not in `rows`."""
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        self.is_dead, self._sentences = self.is_dead[rows], self._sentences[rows]

    def extend(self, step: int, chosen: Candidates, is_dead: Tensor) -> None:
        """Beam j of a sentence becomes `chosen` j, all [n, W]."""
        history = chosen.parents[:, :, None].expand(-1, -1, step + 1)
        self.tokens[:, :, : step + 1] = self.tokens[:, :, : step + 1].gather(1, history)
        self.tokens[:, :, step + 1] = chosen.words
        self.scores[:, :, :step] = self.scores[:, :, :step].gather(1, history[:, :, :step])
        self.scores[:, :, step] = chosen.scores
        self.is_dead = is_dead


def search_on_host(
    decoder: Any, chooser: Chooser, cache: DecoderCache, max_len: int, first: int
) -> list[list[Finished]]:
    """Searches the sentences of a cache.

    Args:
        decoder: the plugin's, in evaluation mode.
        chooser: the choices; its beam is the cache's.
        cache: holds the source, and no step yet.
        max_len: longest hypothesis, without </s>.
        first: the word that every hypothesis begins with.

    Returns:
        each sentence's finished hypotheses, in the order they finished.
    """
    cache.reserve(max_len + 1)
    device = decoder.embed_tokens.weight.device
    hypotheses = Hypotheses(cache.batch, chooser.beam, max_len, first, device)
    for step in range(max_len + 1):
        clock = Clock(step, max_len)
        logits = decoder.next_logits(hypotheses.tokens[:, :, : step + 1], cache)
        lprobs = chooser.log_probs(logits, clock, hypotheses)
        candidates = chooser.candidates(lprobs, hypotheses.scores.select(2, step - 1), clock)
        is_end = chooser.ends(candidates, hypotheses.is_dead)
        is_left = hypotheses.finish(step, is_end, candidates)
        if step == max_len or not any(is_left):
            break
        if not all(is_left):
            rows = torch.tensor(is_left, device=device).nonzero().squeeze(1)
            hypotheses.keep(rows)
            chooser.keep(rows)
            cache.keep_sentences(rows)
            candidates, is_end = candidates.of_rows(rows), is_end[rows]
        chosen, is_dead = chooser.going_on(candidates, is_end, hypotheses.is_dead)
        hypotheses.extend(step, chosen, is_dead)
        cache.reorder_beams(chosen.parents)
    return hypotheses.finished
