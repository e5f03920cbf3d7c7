"""Encoder and decoder layers: fairseq's, with grouped-query attention and optional biases."""

from __future__ import annotations

from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import Tensor, nn

from gqa_fairseq.attention import GroupedQueryAttention, attend_cached
from gqa_fairseq.decoding.cache import DecoderCache


class _Linears:
    """The two feed-forward matrices, with or without biases (the paper's model has none)."""

    def build_fc1(self, input_dim: int, output_dim: int, *_quant_noise: object) -> nn.Linear:
        return nn.Linear(input_dim, output_dim, bias=self.use_bias)

    build_fc2 = build_fc1

    use_bias: bool


class GroupedQueryEncoderLayer(_Linears, TransformerEncoderLayerBase):
    """fairseq's encoder layer; `num_kv_heads` is the encoder's own (H under placement decoder)."""

    def __init__(self, cfg, num_kv_heads: int, use_bias: bool) -> None:
        self.num_kv_heads, self.use_bias = num_kv_heads, use_bias
        super().__init__(cfg)

    def build_self_attention(self, embed_dim: int, cfg) -> GroupedQueryAttention:
        return _attention(embed_dim, cfg.encoder.attention_heads, self, cfg)


class GroupedQueryDecoderLayer(_Linears, TransformerDecoderLayerBase):
    """fairseq's decoder layer with a compact cache in place of its own incremental state."""

    def __init__(self, cfg, num_kv_heads: int, use_bias: bool) -> None:
        self.num_kv_heads, self.use_bias = num_kv_heads, use_bias
        super().__init__(cfg)

    def build_self_attention(
        self, embed_dim: int, cfg, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> GroupedQueryAttention:
        return _attention(embed_dim, cfg.decoder.attention_heads, self, cfg)

    def build_encoder_attention(self, embed_dim: int, cfg) -> GroupedQueryAttention:
        return _attention(embed_dim, cfg.decoder.attention_heads, self, cfg)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor,
        encoder_is_padding: Tensor | None = None,
        self_is_padding: Tensor | None = None,
        is_causal: bool = True,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Whole sequences: x [T, B, C], encoder_out [S, B, C] -> [T, B, C], weights [B, T, S]."""

        def attend_self(h: Tensor) -> tuple[Tensor, None]:
            return self.self_attn(h, h, h, self_is_padding, is_causal=is_causal)[0], None

        def attend_source(h: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.encoder_attn(
                h, encoder_out, encoder_out, encoder_is_padding, need_weights=need_weights
            )

        return self._blocks(x, attend_self, attend_source)

    def step(
        self, x: Tensor, cache: DecoderCache, layer: int, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """One position: x [B, W, C] in the cache's order -> [B, W, C], weights [B, W, S]."""

        def attend_self(h: Tensor) -> tuple[Tensor, None]:
            attn = self.self_attn
            B, W, _ = h.shape
            kv = (B, W, attn.num_kv_heads, attn.head_dim)
            keys, values, mask = cache.append(
                layer, attn.k_proj(h).view(kv), attn.v_proj(h).view(kv)
            )
            q = attn.q_proj(h).view(B, W, attn.num_heads, attn.head_dim)
            return attn.out_proj(attend_cached(q, keys, values, mask)[0]), None

        def attend_source(h: Tensor) -> tuple[Tensor, Tensor | None]:
            attn = self.encoder_attn
            q = attn.q_proj(h).view(*h.shape[:2], attn.num_heads, attn.head_dim)
            out, weights = attend_cached(q, *cache.source(layer), need_weights)
            return attn.out_proj(out), weights

        return self._blocks(x, attend_self, attend_source)

    def _blocks(self, x: Tensor, attend_self, attend_source) -> tuple[Tensor, Tensor | None]:
        """Self-attention, cross-attention and FFN, each with its residual and norm."""
        x, _ = self._block(x, self.self_attn_layer_norm, attend_self)
        x, weights = self._block(x, self.encoder_attn_layer_norm, attend_source)
        x, _ = self._block(x, self.final_layer_norm, self._ffn)
        return x, weights

    def _block(self, x: Tensor, norm: nn.Module, inner) -> tuple[Tensor, Tensor | None]:
        y, weights = inner(norm(x) if self.normalize_before else x)
        x = x + self.dropout_module(y)
        return (x if self.normalize_before else norm(x)), weights

    def _ffn(self, x: Tensor) -> tuple[Tensor, None]:
        hidden = self.activation_dropout_module(self.activation_fn(self.fc1(x)))
        return self.fc2(hidden), None


def _attention(embed_dim: int, num_heads: int, layer, cfg) -> GroupedQueryAttention:
    return GroupedQueryAttention(
        embed_dim,
        num_heads,
        layer.num_kv_heads,
        dropout=cfg.attention_dropout,
        bias=layer.use_bias,
    )
