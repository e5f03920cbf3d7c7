"""A training's forward pass over packed sentences: no row is padding, and no mask is made.

Batches are padded to their longest sentence: one in seven target positions of image captions that
were sorted by their source is padding. Here the rows of a batch are its real tokens, one sentence
after the other, [N, C]. Norms, products and dropout take rows as they are; attention knows where a
sentence begins and ends. It takes native operators (a CPU, float32).

What comes out is what the padded pass gives at real tokens, to rounding; with dropout, what is
dropped is drawn by another generator, with the same probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.modules import LearnedPositionalEmbedding
from torch import Tensor, nn

from gqa_fairseq.attention import GroupedQueryAttention
from gqa_fairseq.layers import GroupedQueryDecoderLayer, GroupedQueryEncoderLayer
from gqa_fairseq.training.native import TrainingOperators, operators_for

_PIECE_BYTES = 2**21


@dataclass(frozen=True)
class Sentences:
    """Where the real tokens of a batch [B, T] are.

    `rows` [N] are their places in the flattened batch, `begin` [B + 1] where each sentence's rows
    begin.
    """

    rows: Tensor
    begin: Tensor

    @classmethod
    def of(cls, tokens: Tensor, padding: int) -> Sentences:
        is_real = tokens.ne(padding)
        begin = torch.zeros(len(tokens) + 1, dtype=torch.int64)
        torch.cumsum(is_real.sum(1), 0, out=begin[1:])
        return cls(is_real.flatten().nonzero()[:, 0], begin)


def can_pack(model: Any) -> bool:
    """Whether `packed_features` can run the model as it is now."""
    encoder, decoder = model.encoder, model.decoder
    if not model.training or operators_for(decoder.embed_tokens.weight) is None:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    for layers, kind in (
        (encoder.layers, GroupedQueryEncoderLayer),
        (decoder.layers, GroupedQueryDecoderLayer),
    ):
        # A forward of its own: recomputed activations, for example.
        if any(type(own) is not kind or "forward" in vars(own) for own in layers.children()):
            return False
    modules = list(model.modules())
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules):
        return False
    attentions = (m for m in modules if isinstance(m, GroupedQueryAttention))
    return all(not m.dropout and m.head_dim % 4 == 0 for m in attentions)


def packed_features(
    model: Any, src_tokens: Tensor, prev_output_tokens: Tensor
) -> tuple[Tensor, Sentences]:
    """Decoder features of the real target tokens.

    Args:
        src_tokens: [B, S]; prev_output_tokens: [B, T]; padded on either side.

    Returns:
        features [N, C], and the rows of prev_output_tokens that they belong to.
    """
    encoder, decoder = model.encoder, model.decoder
    native = operators_for(decoder.embed_tokens.weight)
    assert native is not None
    source = Sentences.of(src_tokens, encoder.padding_idx)
    x = _embed(encoder, src_tokens, source, native)
    for layer in encoder.layers:
        x = _encoder_layer(layer, x, source, native)
    memory = x if encoder.layer_norm is None else encoder.layer_norm(x)
    target = Sentences.of(prev_output_tokens, decoder.padding_idx)
    x = _embed(decoder, prev_output_tokens, target, native)
    for layer in decoder.layers:
        x = _decoder_layer(layer, x, target, memory, source, native)
    return (x if decoder.layer_norm is None else decoder.layer_norm(x)), target


def _embed(side: Any, tokens: Tensor, at: Sentences, native: TrainingOperators) -> Tensor:
    """Token and position embeddings of the real tokens, [N, C]."""
    x = side.embed_scale * side.embed_tokens(tokens.flatten()[at.rows])
    if isinstance(side.embed_positions, LearnedPositionalEmbedding):
        table = side.embed_positions
        positions = utils.make_positions(tokens, table.padding_idx)
        x = x + F.embedding(positions.flatten()[at.rows], table.weight, table.padding_idx)
    elif side.embed_positions is not None:  # sinusoids, which learn nothing
        x = x + side.embed_positions(tokens).flatten(0, 1)[at.rows]
    if side.layernorm_embedding is not None:
        x = side.layernorm_embedding(x)
    return _dropout(side.dropout_module, x, None, native)


def _encoder_layer(
    layer: GroupedQueryEncoderLayer, x: Tensor, at: Sentences, native: TrainingOperators
) -> Tensor:
    pre = layer.normalize_before
    h = layer.self_attn_layer_norm(x) if pre else x
    h = _attend(layer.self_attn, h, at, None, at, native)
    x = _dropout(layer.dropout_module, h, x, native)
    x = x if pre else layer.self_attn_layer_norm(x)
    return _feed_forward(layer, x, native)


def _decoder_layer(
    layer: GroupedQueryDecoderLayer,
    x: Tensor,
    at: Sentences,
    memory: Tensor,
    source: Sentences,
    native: TrainingOperators,
) -> Tensor:
    pre = layer.normalize_before
    h = layer.self_attn_layer_norm(x) if pre else x
    h = _attend(layer.self_attn, h, at, None, at, native, is_causal=True)
    x = _dropout(layer.dropout_module, h, x, native)
    x = x if pre else layer.self_attn_layer_norm(x)

    h = layer.encoder_attn_layer_norm(x) if pre else x
    h = _attend(layer.encoder_attn, h, at, memory, source, native)
    x = _dropout(layer.dropout_module, h, x, native)
    x = x if pre else layer.encoder_attn_layer_norm(x)
    return _feed_forward(layer, x, native)


def _feed_forward(layer: Any, x: Tensor, native: TrainingOperators) -> Tensor:
    pre = layer.normalize_before
    h = layer.final_layer_norm(x) if pre else x
    if layer.activation_fn is F.relu and layer.activation_dropout_module.p == 0:
        weights = layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias
        h = _FeedForward.apply(h, *weights)
    else:
        h = layer.fc2(layer.activation_dropout_module(layer.activation_fn(layer.fc1(h))))
    x = _dropout(layer.dropout_module, h, x, native)
    return x if pre else layer.final_layer_norm(x)


class _FeedForward(torch.autograd.Function):
    """relu(x W1^T + b1) W2^T + b2 by pieces of rows, whose d_ff wide activations stay in the cache.

    The gradient needs the activations alone: where one is 0, so is its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
    ) -> Tensor:
        active, y = x.new_empty(len(x), len(w1)), x.new_empty(len(x), len(w2))
        for rows in _pieces(active):
            _linear(x[rows], w1, b1, active[rows]).relu_()
            _linear(active[rows], w2, b2, y[rows])
        ctx.save_for_backward(x, active, w1, w2)
        ctx.has_bias = b1 is not None
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, active, w1, w2 = ctx.saved_tensors
        d_x, d_w1, d_w2 = torch.empty_like(x), torch.zeros_like(w1), torch.zeros_like(w2)
        d_b1 = x.new_zeros(len(w1)) if ctx.has_bias else None
        for rows in _pieces(active):
            d_active = d_y[rows] @ w2
            d_active = torch.ops.aten.threshold_backward(d_active, active[rows], 0)
            d_w2.addmm_(d_y[rows].t(), active[rows])
            d_w1.addmm_(d_active.t(), x[rows])
            torch.mm(d_active, w1, out=d_x[rows])
            if d_b1 is not None:
                d_b1 += d_active.sum(0)
        return d_x, d_w1, d_b1, d_w2, d_y.sum(0) if ctx.has_bias else None


def _pieces(rows: Tensor) -> Iterator[slice]:
    """Slices of [N, width] that are small beside a core's cache, and long enough for products."""
    size = max(256, _PIECE_BYTES // (rows.shape[1] * rows.element_size()))
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """x weight^T + bias into `out`, which it returns."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _attend(
    attention: GroupedQueryAttention,
    x: Tensor,
    at: Sentences,
    memory: Tensor | None,
    source: Sentences,
    native: TrainingOperators,
    is_causal: bool = False,
) -> Tensor:
    """Self-attention of x [N, C], or attention to `memory` [M, C], [N, C].

    Products with the same input are one product.
    """
    own = [attention.q_proj]
    others = [attention.k_proj, attention.v_proj]
    if memory is None:
        queries, keys = _project([*own, *others], x), None
    else:
        queries, keys = _project(own, x), _project(others, memory)
    out = _Attention.apply(queries, keys, attention, at.begin, source.begin, is_causal, native)
    return attention.out_proj(out)


def _project(linears: list[nn.Linear], x: Tensor) -> Tensor:
    """[N, C] -> [N, all outputs side by side]."""
    if len(linears) == 1:
        return linears[0](x)
    weight = torch.cat(tuple(linear.weight for linear in linears))
    if linears[0].bias is None:
        return F.linear(x, weight)
    return F.linear(x, weight, torch.cat(tuple(linear.bias for linear in linears)))


class _Attention(torch.autograd.Function):
    """Attention of packed sentences.

    `queries` [N, H * D], with `keys` [M, 2 * G * D] that hold keys and then values; or all three
    in `queries`, and `keys` None. Returns [N, H * D].
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor | None,
        attention: GroupedQueryAttention,
        begin: Tensor,
        key_begin: Tensor,
        is_causal: bool,
        native: TrainingOperators,
    ) -> Tensor:
        H, G, D = attention.num_heads, attention.num_kv_heads, attention.head_dim
        rows = len(queries)
        highest, shares = queries.new_empty(2, H, rows)
        out = queries.new_empty(rows, H * D)
        shape = {
            "query_begin": begin,
            "key_begin": key_begin,
            "B": len(begin) - 1,
            **{"H": H, "G": G, "D": D},
            "is_causal": is_causal,
            "window": getattr(attention, "window", None) or 0,
            "scale": D**-0.5,
        }
        native.sentences(
            **shape,
            **_parts("", queries, keys, H * D, G * D),
            highest=highest,
            shares=shares,
            out=out,
        )
        ctx.save_for_backward(queries, keys, highest, shares)
        ctx.shape, ctx.native = shape, native
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, highest, shares = ctx.saved_tensors
        shape = ctx.shape
        widths = shape["H"] * shape["D"], shape["G"] * shape["D"]
        d_queries = torch.empty_like(queries)
        d_keys = None if keys is None else torch.empty_like(keys)
        gradients = _parts("d_", d_queries, d_keys, *widths)
        del gradients["d_query_stride"], gradients["d_key_stride"]
        ctx.native.sentences(
            **shape,
            **_parts("", queries, keys, *widths),
            **gradients,
            highest=highest,
            shares=shares,
            d_out=d_out.contiguous(),
        )
        return d_queries, d_keys, None, None, None, None, None


def _parts(
    start: str, queries: Tensor, keys: Tensor | None, width: int, key_width: int
) -> dict[str, Tensor | int]:
    """Queries, keys and values, with the distance from one row to the next."""
    other, first = (queries, width) if keys is None else (keys, 0)
    return {
        f"{start}queries": queries,
        f"{start}keys": other[:, first:],
        f"{start}values": other[:, first + key_width :],
        f"{start}query_stride": queries.stride(0),
        f"{start}key_stride": other.stride(0),
    }


def _dropout(module: Any, x: Tensor, plus: Tensor | None, native: TrainingOperators) -> Tensor:
    """plus + dropout(x)."""
    if module.p == 0:
        return x if plus is None else plus + x
    return _Dropout.apply(x, plus, module.p, native)


class _Dropout(torch.autograd.Function):
    """plus + dropout(x); what is dropped is drawn again for the gradient, so no mask is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plus: Tensor | None, p: float, native: TrainingOperators
    ) -> Tensor:
        # Out of PyTorch's generator, which fairseq seeds for every update.
        ctx.drawn = p, int(torch.randint(2**62, ()))
        ctx.native, ctx.has_plus = native, plus is not None
        return native.dropout(x.contiguous(), plus, *ctx.drawn)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        d_x = ctx.native.dropout(d_y.contiguous(), None, *ctx.drawn)
        return d_x, d_y if ctx.has_plus else None, None, None
