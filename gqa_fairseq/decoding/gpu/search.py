"""The driver whose step is one function on the device, for CUDA graphs: greedy and beam search.

cpu/search.py looks at every step which sentences are finished and cuts its tensors accordingly; on
a GPU each look waits for the device and each cut is another shape. Here

    a step     embeds the newest words, runs the decoder over cache.GpuCache, chooses with
               beams.Chooser and moves the beams: the host never waits for its values;
    the host   counts steps, so it knows which slots are in view, and sees two steps late which
               sentences are finished: it stops, or goes on with fewer rows.

Rows, lengths and sources come in few sizes (`bucket`), so that a graph serves many batches. What
lies between a batch and its size reads nothing and costs little. The hypotheses are those of
cpu/search.py. `GpuSearch.refusal` says which options it cannot run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gqa_fairseq.decoding.beams import Chooser, Finished
from gqa_fairseq.decoding.gpu.beams import GpuBeams
from gqa_fairseq.decoding.gpu.cache import LEAST_STEPS, GpuCache, attend_visible
from gqa_fairseq.decoding.gpu.graphs import GraphedStep, LateReads
from gqa_fairseq.decoding.gpu.kernels import MAX_BEAM, grouped_decode_attention, has_kernel
from gqa_fairseq.decoding.memory import BatchShape, Capacity
from gqa_fairseq.decoding.rules import Clock
from gqa_fairseq.decoding.step import DecoderStep

_LEAST_SOURCE = 16
_LAG = 2  # steps on their way to the device while the host looks at an earlier one


def bucket(n: int, least: int = 1) -> int:
    """The size that serves `n`: at most an eighth larger, or the next multiple of `least`."""
    unit = max(least, 1 << max(0, n.bit_length() - 4))
    return -(-n // unit) * unit


def shape_of(batch: int, steps: int, source: int) -> BatchShape:
    """The shape that serves so many sentences, target steps and source tokens."""
    return BatchShape(bucket(batch), bucket(steps, LEAST_STEPS), bucket(source, _LEAST_SOURCE))


def source_edges(is_padding: Tensor) -> tuple[Tensor, Tensor] | None:
    """[B, S] bool -> first and one past the last token [B] of each; None if padding is between."""
    S = is_padding.shape[1]
    is_token = (~is_padding).int()
    start, end = is_token.argmax(1), S - is_token.flip(1).argmax(1)
    return (start, end) if torch.equal(end - start, is_token.sum(1)) else None


class GpuSearch:
    """Searches batch after batch with one decoder, in memory that is taken once.

    Args:
        decoder: the plugin's, in evaluation mode.
        weights: what its steps multiply by.
        chooser: one that is not refused.
        capacity: of the memory; a batch's `shape_of` must not ask for more.
    """

    def __init__(
        self, decoder: Any, weights: DecoderStep, chooser: Chooser, capacity: Capacity
    ) -> None:
        weight = decoder.embed_tokens.weight
        device, dtype = weight.device, weight.dtype
        attention = decoder.layers[0].self_attn
        self.capacity, self.chooser, self.weights = capacity, chooser, weights
        self._decoder = decoder
        self._positions = decoder.position_table()
        is_fast = has_kernel(device, dtype, attention.head_dim)
        self.cache = GpuCache(
            capacity,
            beam=chooser.beam,
            layers=len(decoder.layers),
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            dtype=dtype,
            device=device,
            attend=grouped_decode_attention if is_fast else attend_visible,
            window=attention.window,
        )
        self.beams = GpuBeams(capacity, beam=chooser.beam, eos=chooser.eos, device=device)
        self.graphed = GraphedStep(device)

    @staticmethod
    def refusal(chooser: Chooser, vocabulary_size: int) -> str | None:
        """Why a search with these choices needs the CPU's driver, in a few words, or None."""
        if chooser.needs_host:
            return f"{chooser.needs_host} looks at values at every step"
        if chooser.beam > MAX_BEAM:
            return f"{chooser.beam} beams are more than {MAX_BEAM}"
        if vocabulary_size <= 2 * chooser.beam:
            return f"{vocabulary_size} words are not more than twice {chooser.beam} beams"
        return None

    def step(self) -> None:
        """One step of all rows in view, from the newest words to the next ones."""
        cache, beams, chooser = self.cache, self.beams, self.chooser
        n, positions = cache.batch, self._positions
        if positions is not None:
            positions = positions.index_select(0, cache.position)
        x = self._decoder.embed_words(beams.newest[:n], positions)  # [B, W, C]
        features, _ = self.weights.features(x, cache)
        logits = self.weights.output(features.flatten(0, 1))  # [B * W, V]
        clock = Clock(cache.position, beams.last)
        lprobs = chooser.log_probs(logits, clock)
        candidates = chooser.candidates(lprobs, beams.totals[:n], clock)
        is_end = chooser.ends(candidates)
        beams.finish(is_end, candidates, cache.position)
        chosen, _ = chooser.going_on(candidates, is_end)  # V > 2 W: none is dead
        beams.extend(chosen, cache.position)
        cache.is_running[:n] = beams.count[:n] < cache.beam
        cache.end_step(chosen.parents)

    def run(
        self,
        source: Iterable[tuple[Tensor, Tensor]],
        edges: tuple[Tensor, Tensor],
        source_tokens: int,
        max_len: int,
        first: int,
    ) -> list[list[Finished]]:
        """Searches one batch that the capacity holds.

        Args:
            source: each layer's keys and values [B, G, S, D].
            edges: of each source [B], see source_edges.
            source_tokens: S.
            max_len: longest hypothesis, without </s>.
            first: the word that every hypothesis begins with.

        Returns:
            each sentence's finished hypotheses, in the order they finished, on the host.
        """
        batch, W = edges[0].shape[0], self.cache.beam
        shape = shape_of(batch, max_len + 1, source_tokens)
        self.cache.start(shape, *edges, source_tokens)
        for layer, (keys, values) in enumerate(source):
            self.cache.store_source(layer, keys, values)
        self.beams.start(shape.rows, shape.steps, batch, first, max_len)
        self._found: dict[int, list[Finished]] = {}  # by sentence
        self._sentences = [*range(batch), *[None] * (shape.rows - batch)]  # of each row
        reads = LateReads(_LAG)
        for step in range(max_len + 1):
            rows = self.cache.batch
            self.cache.show(step + 1)
            self.graphed(self.step, self.cache.layout)
            reads.push(self.beams.count[:rows])
            count = reads.pop()
            if count is None:
                continue
            is_left = count < W
            left = int(is_left.sum())
            if left == 0:
                break
            if 2 * bucket(left) <= rows:
                self._shrink(is_left, bucket(left))
                reads.clear()
        self._collect(torch.arange(self.cache.batch))
        return [self._found.pop(sentence) for sentence in range(batch)]

    def _shrink(self, is_left: Tensor, size: int) -> None:
        """Goes on with `size` rows; those that are left, [rows] bool on the host, stay."""
        rows = torch.arange(is_left.numel())
        self._collect(rows[~is_left])
        movers = rows[size:][is_left[size:]]
        gaps = rows[:size][~is_left[:size]][: movers.numel()]
        for gap, mover in zip(gaps.tolist(), movers.tolist(), strict=True):
            self._sentences[gap] = self._sentences[mover]
        del self._sentences[size:]
        device = self.cache.position.device
        movers, gaps = movers.to(device), gaps.to(device)
        self.cache.keep(movers, gaps, size)
        self.beams.move(movers, gaps)

    def _collect(self, rows: Tensor) -> None:
        """Takes over what the sentences in these rows have finished; the rows are then free."""
        wanted = [row for row in rows.tolist() if self._sentences[row] is not None]
        finished = self.beams.finished(torch.tensor(wanted, dtype=torch.int64), self.cache.steps)
        for row, hypotheses in zip(wanted, finished, strict=True):
            self._found[self._sentences[row]] = hypotheses
            self._sentences[row] = None
