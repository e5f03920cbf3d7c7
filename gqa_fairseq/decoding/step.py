"""One decoding step of a whole decoder, with weights laid out for few rows.

A step multiplies few rows (sentences x beams) by every weight of the decoder. Matrices with the
same input are fused into one. On a CPU in float32 all are packed once: for the native operators
(cpu/native/), or else into oneDNN's blocked layout, which multiplies few rows 1.3 to 2 times faster
than the row-major layout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gqa_fairseq.decoding.cpu.native import (
    NORMS,
    PRODUCTS,
    Attention,
    Layer,
    Operators,
    Product,
    operators_for,
)
from gqa_fairseq.decoding.int8 import Multiply, int8_multiply

# oneDNN chooses the blocked layout for a number of rows; layouts for 16 to 256 are the same.
_ROWS_HINT = 64


class Cache(Protocol):
    """What a step needs of a cache: cpu/cache.py and gpu/cache.py have it."""

    batch: int
    beam: int

    def start_step(self, dtype: torch.dtype, device: torch.device) -> None: ...

    def attend_self(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor: ...

    def attend_source(
        self, layer: int, query: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]: ...

    def native_attentions(self, layer: int, heads: int) -> tuple[Attention, Attention] | None: ...


class Projection:
    """x -> activation(x W^T + b) for fixed weights: the rows of several linear layers, fused.

    Args:
        linears: layers with the same input width and all with or all without a bias.
        is_relu: apply ReLU to the result.
        native: multiply with these, in float32 on a CPU.
        is_int8: multiply in 8 bits (decoding/int8.py says how, and what it costs).

    Raises:
        ValueError: `is_int8` for weights that are not float32 on a CPU.
    """

    multiply: Multiply

    def __init__(
        self,
        *linears: nn.Linear,
        is_relu: bool = False,
        native: Operators | None = None,
        is_int8: bool = False,
    ) -> None:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        bias = torch.cat(biases) if biases else None
        self.shape = weight.shape  # [out, in]
        is_cpu_float = weight.device.type == "cpu" and weight.dtype == torch.float32
        if is_int8:
            if not is_cpu_float:
                raise ValueError("int8 needs float32 weights on a CPU: leave out --int8")
            self.multiply = int8_multiply(weight, bias, is_relu)
        elif native is not None:
            self.multiply = native.product(weight, bias, is_relu)
        elif is_cpu_float and torch.backends.mkldnn.is_available():
            self.multiply = _packed_multiply(weight, bias, is_relu)
        else:
            self.multiply = _plain_multiply(weight, bias, is_relu)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """[rows, in] -> [rows, out]; `plus` [rows, out] is added (the residual, without ReLU)."""
        return self.multiply(x, plus)


def _packed_multiply(weight: Tensor, bias: Tensor | None, is_relu: bool) -> Multiply:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    activation = "relu" if is_relu else "none"
    multiply = torch.ops.mkldnn._linear_pointwise

    def run(x: Tensor, plus: Tensor | None) -> Tensor:
        if plus is None:
            return multiply(x, packed, bias, activation, [], "")
        return multiply.binary(x, plus, packed, bias, "add")

    return run


def _plain_multiply(weight: Tensor, bias: Tensor | None, is_relu: bool) -> Multiply:
    def run(x: Tensor, plus: Tensor | None) -> Tensor:
        y = F.linear(x, weight, bias)
        y = F.relu(y) if is_relu else y
        return y if plus is None else y + plus

    return run


Norm = Callable[[Tensor], Tensor]


def _norm(module: nn.LayerNorm, native: Operators | None) -> Norm:
    return module if native is None else native.norm(module)


class _Layer:
    """One decoder layer: its norms, and its weights fused."""

    def __init__(self, layer: Any, native: Operators | None, is_int8: bool) -> None:
        project = partial(Projection, native=native, is_int8=is_int8)
        own, source = layer.self_attn, layer.encoder_attn
        self.is_pre_norm = layer.normalize_before
        self.self_norm = _norm(layer.self_attn_layer_norm, native)
        self.source_norm = _norm(layer.encoder_attn_layer_norm, native)
        self.ffn_norm = _norm(layer.final_layer_norm, native)
        self.self_qkv = project(own.q_proj, own.k_proj, own.v_proj)
        self.self_out = project(own.out_proj)
        self.source_q = project(source.q_proj)
        self.source_out = project(source.out_proj)
        is_relu = layer.activation_fn is F.relu
        self.fc1 = project(layer.fc1, is_relu=is_relu)
        self.activation = None if is_relu else layer.activation_fn
        self.fc2 = project(layer.fc2)
        self.native = None if native is None else self._as_one(native)

    def _as_one(self, native: Operators) -> Layer | None:
        """The layer as one operator, if all that it does is native."""
        norms = {name: getattr(self, name) for name in NORMS}
        products = {name: getattr(self, name).multiply for name in PRODUCTS}
        if self.activation or not all(isinstance(p, Product) for p in products.values()):
            return None
        return native.layer(norms, products, self.is_pre_norm)

    def before(self, norm: Norm, x: Tensor) -> Tensor:
        return norm(x) if self.is_pre_norm else x

    def after(self, norm: Norm, x: Tensor) -> Tensor:
        return x if self.is_pre_norm else norm(x)

    def ffn(self, h: Tensor, residual: Tensor) -> Tensor:
        hidden = self.fc1(h)
        return self.fc2(hidden if self.activation is None else self.activation(hidden), residual)


class DecoderStep:
    """The decoder's weights as one step uses them; made from a decoder in evaluation mode.

    On a CPU in float32 it holds a second, packed copy of the weights. Legend: see attention.py.
    """

    native: Operators | None  # what the step and its search may use, in float32 on a CPU

    def __init__(self, decoder: Any) -> None:
        attention = decoder.layers[0].self_attn
        self.H, self.G = attention.num_heads, attention.num_kv_heads
        self.D = attention.head_dim
        weight = decoder.output_projection.weight
        self.native = operators_for(weight) if decoder.is_native else None
        self.layers = [_Layer(layer, self.native, decoder.is_int8) for layer in decoder.layers]
        self.final_norm = decoder.layer_norm and _norm(decoder.layer_norm, self.native)
        self.output = Projection(
            decoder.output_projection, native=self.native, is_int8=decoder.is_int8
        )

    def features(
        self, x: Tensor, cache: Cache, alignment_layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embedded newest tokens [B, W, C], in the cache's order -> features [B, W, C].

        Also returns the cross-attention weights [B, W, S] of `alignment_layer`, if one is named.
        """
        shape, alignment = x.shape, None
        x = x.reshape(-1, shape[-1])
        cache.start_step(x.dtype, x.device)
        for index, layer in enumerate(self.layers):
            native = layer.native if index != alignment_layer else None
            caches = native and cache.native_attentions(index, self.H)
            if native and caches:
                x = native(x, *caches)
                continue
            h = layer.before(layer.self_norm, x)
            x = layer.after(layer.self_norm, self._attend_self(h, x, index, cache))
            h = layer.before(layer.source_norm, x)
            x, probs = self._attend_source(h, x, index, cache, index == alignment_layer)
            x = layer.after(layer.source_norm, x)
            x = layer.after(layer.ffn_norm, layer.ffn(layer.before(layer.ffn_norm, x), x))
            alignment = probs if probs is not None else alignment
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x.view(shape), alignment

    def _attend_self(self, h: Tensor, residual: Tensor, index: int, cache: Cache) -> Tensor:
        """[B * W, C], twice -> [B * W, C]; writes the new keys and values into the cache."""
        H, G, D = self.H, self.G, self.D
        heads = self.layers[index].self_qkv(h).view(cache.batch, cache.beam, H + 2 * G, D)
        q, k, v = heads.split((H, G, G), dim=2)
        out = cache.attend_self(index, q, k, v)
        return self.layers[index].self_out(out.view(h.shape[0], H * D), residual)

    def _attend_source(
        self, h: Tensor, residual: Tensor, index: int, cache: Cache, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[B * W, C], twice -> [B * W, C] and the weights [B, W, S] or None."""
        H, D = self.H, self.D
        q = self.layers[index].source_q(h).view(cache.batch, cache.beam, H, D)
        out, probs = cache.attend_source(index, q, need_weights)
        return self.layers[index].source_out(out.view(h.shape[0], H * D), residual), probs
