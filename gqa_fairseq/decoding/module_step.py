"""One decoding step through the layers' own modules: with dropout, and forward hooks fire.

step.py multiplies by fused copies of the weights, so nothing that is attached to a module happens.
Here each layer's forward runs, over the same cache, in rows and shapes that are fairseq's: [1, B *
W, C], sentence by sentence. It is slower, and is used where it is asked for: with --retain-dropout,
and where `decoder.is_fused` is False. Legend: see attention.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from gqa_fairseq.attention import GroupedQueryAttention, attend_cached
from gqa_fairseq.decoding.cpu.cache import DecoderCache
from gqa_fairseq.layers import LayerStep


class ModuleStep:
    """What step.DecoderStep is for its callers; a change of the weights takes effect at once."""

    native = None  # no operators that a module does not call

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def output(self, x: Tensor) -> Tensor:
        """Features [..., C] -> scores of the vocabulary [..., V]."""
        return self._decoder.output_layer(x)

    def features(
        self, x: Tensor, cache: DecoderCache, alignment_layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embedded newest tokens [B, W, C], in the cache's order -> features [B, W, C].

        Also returns the cross-attention weights [B, W, S] of `alignment_layer`, if one is named.
        """
        decoder, shape, alignment = self._decoder, x.shape, None
        cache.start_step(x.dtype, x.device)
        x = cache.to_sentence_order(x).reshape(1, -1, shape[-1])
        for index, layer in enumerate(decoder.layers):
            step = LayerStep(
                partial(_attend_self, cache, index), partial(_attend_source, cache, index)
            )
            x, weights = layer(x, need_weights=index == alignment_layer, step=step)
            alignment = weights if weights is not None else alignment
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        return cache.to_cache_order(x.view(shape)), alignment


def _attend_self(
    cache: DecoderCache, layer: int, attention: GroupedQueryAttention, query: Tensor, _: bool
) -> tuple[Tensor, None]:
    """[1, B * W, C] -> [1, B * W, H * D]; writes the new keys and values into the cache."""
    q = _split(cache, attention.q_proj(query), attention.num_heads)
    k = _split(cache, attention.k_proj(query), attention.num_kv_heads)
    v = _split(cache, attention.v_proj(query), attention.num_kv_heads)
    kept = cache.append(layer, k, v)
    return _merge(cache, attend_cached(q, *kept, dropout=attention.active_dropout)[0]), None


def _attend_source(
    cache: DecoderCache,
    layer: int,
    attention: GroupedQueryAttention,
    query: Tensor,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """[1, B * W, C] -> [1, B * W, H * D] and weights [B, W, S], in the cache's order, or None."""
    q = _split(cache, attention.q_proj(query), attention.num_heads)
    out, weights = attend_cached(
        q, *cache.source(layer), need_weights=need_weights, dropout=attention.active_dropout
    )
    return _merge(cache, out), weights


def _split(cache: DecoderCache, x: Tensor, heads: int) -> Tensor:
    """[1, B * W, heads * D] by sentence -> [B, W, heads, D] in the cache's order."""
    return cache.to_cache_order(x.view(cache.batch, cache.beam, heads, -1))


def _merge(cache: DecoderCache, x: Tensor) -> Tensor:
    """[B, W, H * D] in the cache's order -> [1, B * W, H * D] by sentence."""
    return cache.to_sentence_order(x).reshape(1, -1, x.shape[-1])
