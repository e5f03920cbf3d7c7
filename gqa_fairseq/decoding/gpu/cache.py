"""The decoder's cache with shapes that no step changes, so that a CUDA graph can replay the step.

cpu/cache.py cuts its tensors to what is filled, and a graph captured at one length would
replay that length always. Here every step sees the same views; how far they are filled, where a
source begins and which beams descend from a slot are values on the device, which the kernel of
gpu/kernels.py reads there. The slots are the same: W of them a step, never moved, and filled
again after `window` steps where positions read no further.

    source   cross K, V   [B, G, S, D]       one row a SENTENCE, at the right end of S slots
    target   self  K, V   [B, G, N, D]       N = steps * W slots, or window * W if that is less
    readers               [B, N] int32       bit w: beam w descends from the slot

Between steps, and only there, the host may show fewer rows (`keep`) or more slots (`show`): both
are other views of the same memory, so nothing is allocated and no address changes. Legend: see
attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gqa_fairseq.attention import attend_cached
from gqa_fairseq.costs import positions_kept
from gqa_fairseq.decoding.memory import BatchShape, Capacity

LEAST_STEPS = 32  # in view: 32, 64, 128, ... steps

# grouped_decode_attention, or attend_visible with the same arguments and result.
Attention = Callable[..., Tensor]


def attend_visible(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    start: Tensor | None = None,
    end: Tensor | None = None,
    readers: Tensor | None = None,
) -> Tensor:
    """kernels.grouped_decode_attention in plain PyTorch: for any device, dtype and head dim.

    It reads all N slots and hides what lies outside. As in the kernel, the content of hidden slots
    does not matter (they may hold NaN), and a query that sees no slot gives zeros.
    """
    B, W = query.shape[:2]
    slots = torch.arange(keys.shape[2], device=query.device)
    is_visible = torch.ones((B, W, slots.numel()), dtype=torch.bool, device=query.device)
    if start is not None:
        is_visible = is_visible & (slots >= start[:, None, None])
    if end is not None:
        is_visible = is_visible & (slots < end[:, None, None])
    if readers is not None:
        beams = torch.arange(W, dtype=torch.int32, device=query.device)[:, None]
        is_visible = is_visible & ((readers[:, None, :] >> beams) & 1).bool()
    is_hidden = ~is_visible.any(1)[:, None, :, None]  # from all beams
    is_blind = ~is_visible.any(2, keepdim=True)  # its softmax over nothing would be NaN
    mask = torch.zeros(is_visible.shape, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(~(is_visible | is_blind), -math.inf)
    out, _ = attend_cached(
        query, keys.masked_fill(is_hidden, 0), values.masked_fill(is_hidden, 0), mask
    )
    return out.masked_fill(is_blind, 0)


class GpuCache:
    """Memory for the keys and values of batches of many shapes, one after the other.

    Args:
        beam: hypotheses a sentence, W.
        window: how many steps, the newest included, a step reads; None: all.
        attend: the attention over it.

    `batch` rows and the slots of `length` steps are in view; `is_running` [rows] int32 on
    the device is 1 for the sentences that are searched; the other rows read nothing.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        beam: int,
        layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        attend: Attention,
        window: int | None = None,
    ) -> None:
        def pairs(tokens: int) -> list[tuple[Tensor, Tensor]]:
            size = tokens * num_kv_heads * head_dim
            empty = (torch.empty(size, dtype=dtype, device=device) for _ in range(2 * layers))
            return list(zip(empty, empty, strict=True))

        def integers(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.beam, self.attend, self._window = beam, attend, window
        self.position = integers(1, torch.int64)  # of the step that is next
        self.is_running = integers(capacity.rows)
        self._source_start, self._source_end = integers(capacity.rows), integers(capacity.rows)
        self._heads = (num_kv_heads, head_dim)
        slots = capacity.kept_targets(window) * beam
        self._memory = (pairs(slots), pairs(capacity.sources))
        self._all_readers = integers(slots) if beam > 1 else None
        self._beams = torch.arange(beam, device=device)
        self._own = (1 << self._beams).int()  # [W] the bit of each beam

    # Between steps.

    def start(self, shape: BatchShape, start: Tensor, end: Tensor, source_tokens: int) -> None:
        """Lays out the memory for a batch. Its sentences are the first rows; others read nothing.

        Args:
            start, end: [sentences], each one's part of its `source_tokens` that is no padding.
        """
        G, D = self._heads
        self._kept = positions_kept(shape.steps, self._window)
        rows, slots = shape.rows, self._kept * self.beam

        def laid_out(pair: tuple[Tensor, Tensor], slots: int) -> tuple[Tensor, Tensor]:
            k, v = (x[: rows * G * slots * D].view(rows, G, slots, D) for x in pair)
            return k, v

        own, cross = self._memory
        self._self = [laid_out(pair, slots) for pair in own]
        self._cross = [laid_out(pair, shape.source) for pair in cross]
        self._readers = None
        if self._all_readers is not None:
            self._readers = self._all_readers[: rows * slots].view(rows, slots)
        self.batch, self._shape = rows, shape
        self._sentences, self._source_tokens = start.shape[0], source_tokens
        self.show(0)
        self.position.zero_()
        self.is_running.zero_()[: self._sentences] = 1
        shift = shape.source - source_tokens
        self._source_start[: self._sentences] = start + shift
        self._source_end[: self._sentences] = end + shift

    @property
    def layout(self) -> tuple[int, ...]:
        """All that a step's shapes and addresses depend on."""
        return (self.batch, self.length, *self._shape[1:])

    def store_source(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keeps a layer's keys and values [batch, G, source_tokens, D] of the source."""
        for buffer, new in zip(self._cross[layer], (keys, values), strict=True):
            buffer[: new.shape[0], :, buffer.shape[2] - new.shape[2] :] = new

    def show(self, steps: int) -> None:
        """Brings the slots of `steps` steps into view, the last of which is the next one."""
        self.steps, self.length = steps, LEAST_STEPS
        while self.length < steps:
            self.length *= 2
        self.length = min(self.length, self._kept)
        self._used = min(steps, self._kept) * self.beam

    def keep(self, sources: Tensor, targets: Tensor, batch: int) -> None:
        """Shows `batch` rows only; rows `sources` beyond them first move to rows `targets`."""
        tensors = [t for pair in self._cross for t in pair]
        tensors += [t[:, :, : self._used] for pair in self._self for t in pair]
        tensors += [self._source_start, self._source_end, self.is_running]
        if self._readers is not None:
            tensors.append(self._readers)
        for tensor in tensors:
            tensor[targets] = tensor[sources]
        self.batch = batch

    # Inside a step: no shape and no branch depends on a value.

    def start_step(self, dtype: torch.dtype, device: torch.device) -> None:
        """Opens the W slots of the next step; each beam may read its own."""
        n = self.batch
        # Only where steps outnumber the places: a launch less for the others.
        is_ring = self._kept < self._shape.steps
        place = self.position % self._kept if is_ring else self.position
        self._slots = place * self.beam + self._beams
        if self._readers is not None:
            self._readers[:n].index_copy_(1, self._slots, self._own.expand(n, -1))
        running = self.is_running[:n]
        # Past the window it is more than there are: attention cuts it.
        self._filled = running * ((self.position + 1) * self.beam).int()
        self._source_stop = running * self._source_end[:n]

    def attend_self(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As DecoderCache.attend_self: the step's slots are written in place, then all are read."""
        n, N = self.batch, self.length * self.beam
        k, v = self._self[layer]
        k[:n].index_copy_(2, self._slots, keys.transpose(1, 2))
        v[:n].index_copy_(2, self._slots, values.transpose(1, 2))
        readers = None if self._readers is None else self._readers[:n, :N]
        return self.attend(query, k[:n, :, :N], v[:n, :, :N], end=self._filled, readers=readers)

    def native_attentions(self, layer: int, heads: int) -> None:
        """None: native operators need lengths on the host; here they are on the device."""

    def attend_source(
        self, layer: int, query: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """As DecoderCache.attend_source, without the weights.

        Raises:
            ValueError: the weights are asked for: the kernel never holds all of them.
        """
        if need_weights:
            raise ValueError("attention weights need the cache of cpu/cache.py")
        n = self.batch
        keys, values = self._cross[layer]
        start, end = self._source_start[:n], self._source_stop
        return self.attend(query, keys[:n], values[:n], start=start, end=end), None

    def end_step(self, parents: Tensor) -> None:
        """New beam j of a sentence continues its old beam `parents[:, j]`, [B, W]."""
        if self._readers is not None:
            old = self._readers[: self.batch, : self.length * self.beam]
            bits = (old[:, :, None] >> parents[:, None, :].int()) & 1  # [B, N, W]
            old.copy_((bits * self._own).sum(2, dtype=torch.int32))
        self.position.add_(1)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of K and V in use, `self` and `cross`, as DecoderCache.nbytes."""
        n, used, S = min(self._sentences, self.batch), self._used, self._source_tokens
        return {
            "self": sum(t[:n, :, :used].nbytes for pair in self._self for t in pair),
            "cross": sum(t[:n, :, :S].nbytes for pair in self._cross for t in pair),
        }

    @property
    def memory_bytes(self) -> int:
        """Bytes that are taken for K and V, in use or not."""
        return sum(t.nbytes for pairs in self._memory for pair in pairs for t in pair)
