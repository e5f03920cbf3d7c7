"""Encoder and decoder layers: fairseq's, with grouped-query attention and optional biases."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn

from gqa_fairseq.architecture import Heads
from gqa_fairseq.attention import GroupedQueryAttention, Step, Weights


class _Linears:
    """The two feed-forward matrices, with or without biases (the paper's model has none)."""

    def build_fc1(self, input_dim: int, output_dim: int, *_quant_noise: object) -> nn.Linear:
        return nn.Linear(input_dim, output_dim, bias=self.use_bias)

    build_fc2 = build_fc1

    use_bias: bool


class GroupedQueryEncoderLayer(_Linears, TransformerEncoderLayerBase):
    """fairseq's encoder layer with `heads` of its own."""

    def __init__(self, cfg, heads: Heads, use_bias: bool) -> None:
        self.heads, self.use_bias = heads, use_bias
        super().__init__(cfg)

    def build_self_attention(self, embed_dim: int, cfg) -> GroupedQueryAttention:
        return _attention(embed_dim, self, cfg)


class LayerStep(NamedTuple):
    """What the two attentions of a layer do for one position over a cache."""

    attend_self: Step
    attend_source: Step


class GroupedQueryDecoderLayer(_Linears, TransformerDecoderLayerBase):
    """fairseq's decoder layer for whole sequences.

    One position runs in decoding/step.py, or here with a `step` (decoding/module_step.py).
    Both attentions have the same `heads`; self-attention reads a `window` of positions.
    """

    def __init__(self, cfg, heads: Heads, window: int | None, use_bias: bool) -> None:
        self.heads, self.window, self.use_bias = heads, window, use_bias
        super().__init__(cfg)

    def build_self_attention(
        self, embed_dim: int, cfg, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> GroupedQueryAttention:
        return _attention(embed_dim, self, cfg, self.window)

    def build_encoder_attention(self, embed_dim: int, cfg) -> GroupedQueryAttention:
        return _attention(embed_dim, self, cfg)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_is_padding: Tensor | None = None,
        self_is_padding: Tensor | None = None,
        is_causal: bool = True,
        need_weights: bool | Literal["later"] = False,
        step: LayerStep | None = None,
    ) -> tuple[Tensor, Weights | None]:
        """Whole sequences: x [T, B, C], encoder_out [S, B, C] -> [T, B, C], weights [B, T, S].

        With a `step` one position, over a cache that holds all before it and the source: T = 1, and
        of the rest only `need_weights` matters.
        """
        own, source = (step.attend_self, step.attend_source) if step else (None, None)
        pre = self.normalize_before
        h = self.self_attn_layer_norm(x) if pre else x
        h, _ = self.self_attn(h, h, h, self_is_padding, is_causal=is_causal, step=own)
        x = x + self.dropout_module(h)
        x = x if pre else self.self_attn_layer_norm(x)

        h = self.encoder_attn_layer_norm(x) if pre else x
        h, weights = self.encoder_attn(
            h,
            encoder_out,
            encoder_out,
            encoder_is_padding,
            need_weights=need_weights,
            step=source,
        )
        x = x + self.dropout_module(h)
        x = x if pre else self.encoder_attn_layer_norm(x)

        h = self.final_layer_norm(x) if pre else x
        h = self.activation_dropout_module(self.activation_fn(self.fc1(h)))
        x = x + self.dropout_module(self.fc2(h))
        return (x if pre else self.final_layer_norm(x)), weights


def _attention(embed_dim: int, layer, cfg, window: int | None = None) -> GroupedQueryAttention:
    return GroupedQueryAttention(
        embed_dim,
        layer.heads.num_heads,
        layer.heads.num_kv_heads,
        head_dim=layer.heads.head_dim,
        window=window,
        dropout=cfg.attention_dropout,
        bias=layer.use_bias,
    )
