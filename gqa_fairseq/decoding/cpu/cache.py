"""What a decoder keeps between steps: G heads of keys and values, written once and never moved.

    source   cross K, V   [B, G, S, D]       one row a SENTENCE, whatever the beam
    target   self  K, V   [B, G, N, D]       N = capacity * W slots; step t fills W of them
    mask                  [B, W, N]          which slots a beam descends from: 0, else -inf

Where a position reads the last `window` positions alone, `window` * W slots are all there are: step
t fills those of step t - window again, which nothing reads any more. Attention is a sum over slots,
so their order does not matter.

Beam search reorders beams at every step. Moving their cached keys and values costs a read and a
write of the whole cache; here the W beams of a sentence share its slots, and only their ancestry
(the mask) is reordered. A beam's row of the mask selects exactly its own history, so the result is
that of a private cache.

Sentences leave the batch when they finish. Their rows are refilled with the last rows, so a step
moves at most as many rows as left; `_order` says which row each sentence has. Legend: see
attention.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gqa_fairseq.attention import attend_cached
from gqa_fairseq.costs import positions_kept
from gqa_fairseq.decoding.cpu.native import Attention, Operators

INITIAL_CAPACITY = 32


class DecoderCache:
    """Keys and values of all layers for `batch` sentences with `beam` hypotheses each.

    `native` operators attend where they can; the cache then has to be float32 on a CPU.
    `window`: how many steps, the newest included, a step reads and the cache keeps; None: all.
    Tensors take dtype and device from the first keys that are stored. Rows (sentences) are in
    the cache's own order: `to_cache_order` and `to_sentence_order` convert at the decoder's edges.
    """

    def __init__(
        self,
        batch: int,
        beam: int,
        capacity: int = INITIAL_CAPACITY,
        native: Operators | None = None,
        window: int | None = None,
    ) -> None:
        self.batch = batch
        self.beam = beam
        self.window = window
        self.length = 0  # steps so far
        self.capacity = positions_kept(capacity, window)  # steps that there is room for
        self._newest = self._used = 0  # the newest step's first slot; slots in use
        self.source_mask: Tensor | None = None
        self._native = native
        self._cross: list[tuple[Tensor, Tensor]] = []
        self._self: list[tuple[Tensor, Tensor]] = []
        self._mask: Tensor | None = None
        self._order: Tensor | None = None  # [batch] cache row of each sentence; None: identity

    # Cross-attention: stored once.

    def store_source(
        self, layers: list[tuple[Tensor, Tensor]], is_padding: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Keeps each layer's (keys, values) [B, G, S, D] and the mask of padding [B, S] bool."""
        self._cross = [(k.contiguous(), v.contiguous()) for k, v in layers]
        if is_padding is not None and bool(is_padding.any()):
            zeros = torch.zeros(is_padding.shape, dtype=dtype, device=is_padding.device)
            self.source_mask = zeros.masked_fill(is_padding, -math.inf)[:, None, :]  # [B, 1, S]

    def source(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """(keys, values) [B, G, S, D] of a layer and the additive mask [B, 1, S] or None."""
        keys, values = self._cross[layer]
        n = self.batch
        mask = self.source_mask
        return keys[:n], values[:n], mask if mask is None else mask[:n]

    def attend_source(
        self, layer: int, query: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention of query [B, W, H, D]: [B, W, H * D], weights [B, W, S] or None."""
        native = self._native_for(query.shape[-1])
        if native is None or need_weights:
            return attend_cached(query, *self.source(layer), need_weights)
        return native.attend(self._native_source(native, layer, query.shape[2]), query), None

    # The same for native operators: they take a description of the cache.

    def _native_for(self, head_dim: int) -> Operators | None:
        """The native operators if they have code for these beams and heads."""
        native = self._native
        return native if native and native.can_attend(self.beam, head_dim) else None

    def _native_source(self, native: Operators, layer: int, heads: int) -> Attention:
        keys, values, mask = self.source(layer)
        shape = self.batch, self.beam, heads
        return native.attention(keys, values, keys.shape[2], mask, shape)

    def _native_self(self, native: Operators, layer: int, heads: int, like: Tensor) -> Attention:
        """For new keys like `like` [B, ..., G, D]; the operator writes them before it reads."""
        shape, ancestry = (self.batch, self.beam, heads), self._ancestry()
        buffers = self._buffers(layer, like)
        return native.attention(*buffers, self._used, ancestry, shape, new_slot=self._newest)

    def native_attentions(self, layer: int, heads: int) -> tuple[Attention, Attention] | None:
        """This step's self- and cross-attention for a native layer; None without such operators."""
        keys = self._cross[layer][0]
        native = self._native_for(keys.shape[3])
        if native is None:
            return None
        own = self._native_self(native, layer, heads, keys.transpose(1, 2))
        return own, self._native_source(native, layer, heads)

    # Self-attention: one slot a beam and step.

    def start_step(self, dtype: torch.dtype, device: torch.device) -> None:
        """Opens the W slots of the next step; each beam may read its own."""
        place = self.length if self.window is None else self.length % self.window
        if place == self.capacity:
            self._grow()
        W = self.beam
        self._newest = place * W
        self._used = max(self._used, self._newest + W)
        if W > 1:
            if self._mask is None:
                size = (self.batch, W, self.capacity * W)
                self._mask = torch.full(size, -math.inf, dtype=dtype, device=device)
            own = self._mask[: self.batch, :, self._newest : self._newest + W]
            own.fill_(-math.inf).diagonal(dim1=1, dim2=2).zero_()
        self.length += 1

    def append(
        self, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Writes this step's keys and values [B, W, G, D] in place; returns all that are kept.

        Returns:
            (keys, values) views [B, G, n * W, D] and the mask [B, W, n * W] or None; n is the
            length, at most the window.
        """
        n, newest, used = self.batch, self._newest, self._used
        buffers = self._buffers(layer, keys)
        for buffer, new in zip(buffers, (keys, values), strict=True):
            buffer[:n, :, newest : newest + self.beam] = new.transpose(1, 2)
        k, v = buffers
        return k[:n, :, :used], v[:n, :, :used], self._ancestry()

    def _buffers(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [>= B, G, capacity * W, D], for new `like` [..., G, D]."""
        if layer == len(self._self):
            G, D = like.shape[-2:]
            size = (self.batch, G, self.capacity * self.beam, D)
            self._self.append((like.new_empty(size), like.new_empty(size)))
        return self._self[layer]

    def _ancestry(self) -> Tensor | None:
        """The mask [B, W, slots in use]; None for one beam."""
        mask = self._mask
        return mask if mask is None else mask[: self.batch, :, : self._used]

    def attend_self(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Appends keys and values; self-attention of query [B, W, H, D]: [B, W, H * D]."""
        native = self._native_for(query.shape[-1])
        if native is None:
            return attend_cached(query, *self.append(layer, keys, values))[0]
        work = self._native_self(native, layer, query.shape[2], keys)
        return native.attend(work, query, (keys, values))

    def reserve(self, steps: int) -> None:
        """Makes room for `steps` in all, so that a known length is allocated once."""
        if self.length == 0:
            self.capacity = positions_kept(max(1, steps), self.window)

    def _grow(self) -> None:
        """Doubles the capacity: the copies add up to less than one more pass over the cache."""
        used, self.capacity = self._used, positions_kept(2 * self.capacity, self.window)

        def wider(old: Tensor, dim: int) -> Tensor:
            size = list(old.shape)
            size[0], size[dim] = self.batch, self.capacity * self.beam
            new = old.new_empty(size)
            new.narrow(dim, 0, used).copy_(old[: self.batch].narrow(dim, 0, used))
            return new

        self._self = [(wider(k, 2), wider(v, 2)) for k, v in self._self]
        if self._mask is not None:
            self._mask = wider(self._mask, 2)

    # Beams move, sentences leave.

    def reorder(self, rows: Tensor) -> None:
        """Takes over fairseq's reordering: new row i continues old row `rows[i]`.

        Args:
            rows: [B' * W] indices into the old B * W rows, in the order of sentences. As beam
                search makes them: the W rows of a sentence stay together, sentences keep their
                order and some may be gone.

        Raises:
            ValueError: the beams of a sentence would come from different sentences.
        """
        W = self.beam
        if rows.numel() % W:
            raise ValueError(f"{rows.numel()} rows are not a multiple of the beam width {W}")
        parents = rows.view(-1, W)
        sentences = parents[:, 0] // W  # [B']
        if bool((parents // W != sentences[:, None]).any()):
            raise ValueError("the beams of a sentence must continue beams of one sentence")
        if sentences.numel() < self.batch or bool(
            (sentences != torch.arange(self.batch, device=rows.device)).any()
        ):
            self.keep_sentences(sentences)
        if self._mask is not None:
            self.reorder_beams(parents % W)

    def reorder_beams(self, parents: Tensor) -> None:
        """New beam j of a sentence continues its old beam `parents[:, j]`; [B, W], sentence order.

        Only the ancestry moves: B * W * N elements instead of 2 * layers * G * D times as many.
        """
        if self._mask is None:
            return
        history = self._mask[: self.batch, :, : self._used]
        index = self.to_cache_order(parents)[:, :, None].expand_as(history)
        history.copy_(history.gather(1, index))

    def keep_sentences(self, sentences: Tensor) -> None:
        """Drops all sentences but `sentences` [B'] (distinct indices, any order).

        Rows of the last sentences refill the gaps, so at most the rows that left are copied.

        Raises:
            ValueError: a sentence is named twice: beams share slots, so it cannot be split.
        """
        if sentences.unique().numel() != sentences.numel():
            raise ValueError("a sentence of the cache cannot be continued twice")
        order = sentences if self._order is None else self._order[sentences]
        n = order.numel()
        is_taken = torch.zeros(self.batch, dtype=torch.bool, device=order.device)
        is_taken[order] = True
        gaps = (~is_taken[:n]).nonzero().squeeze(1)
        late = order >= n
        movers = order[late]
        for tensor in self._row_tensors():
            tensor[gaps] = tensor[movers]
        order = order.clone()
        order[late] = gaps
        self._order = order
        self.batch = n

    def _row_tensors(self) -> list[Tensor]:
        """Everything with a row a sentence, cut to what is in use."""
        used = self._used
        tensors = [t for pair in self._cross for t in pair]
        tensors += [t[:, :, :used] for pair in self._self for t in pair]
        if self._mask is not None:
            tensors.append(self._mask[:, :, :used])
        if self.source_mask is not None:
            tensors.append(self.source_mask)
        return tensors

    def to_cache_order(self, x: Tensor) -> Tensor:
        """[B, ...] by sentence -> by cache row."""
        if self._order is None:
            return x
        out = torch.empty_like(x)
        out[self._order] = x
        return out

    def to_sentence_order(self, x: Tensor) -> Tensor:
        """[B, ...] by cache row -> by sentence."""
        return x if self._order is None else x[self._order]

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of K and V in use, `self` and `cross`; compare costs.cache_bytes."""
        used, n = self._used, self.batch
        return {
            "self": sum(t[:n, :, :used].nbytes for pair in self._self for t in pair),
            "cross": sum(t[:n].nbytes for pair in self._cross for t in pair),
        }
