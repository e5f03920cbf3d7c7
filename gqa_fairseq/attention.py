"""Grouped-query attention: one code path from multi-head (G = H) to multi-query (G = 1).

GQA-G means G key/value heads: the H query heads are split into G groups of R = H // G, and all
queries of a group read the same key and value head (Shazeer 2019, section 3; Ainslie et al. 2023,
section 2.2). Query head h reads key/value head h // R.

Legend, used in every shape below:
    T target length   S source (key) length   B batch (sentences)   H heads   G kv heads
    R = H // G queries per kv head            D head dim            C model width; often H * D
    N slots of a cache                        W beam width (1 when greedy)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gqa_fairseq.architecture import check_head_dim, check_kv_heads, check_window

# Probabilities [B, T, S], averaged over heads; or what computes them when they are looked at.
Weights = Tensor | Callable[[], Tensor]
# (the attention, query [1, rows, C], whether weights are needed) -> what it reads [1, rows, H * D],
# weights: one position over a cache
Step = Callable[["GroupedQueryAttention", Tensor, bool], tuple[Tensor, Tensor | None]]


class GroupedQueryAttention(nn.Module):
    """Attention with `num_heads` query heads and `num_kv_heads` key/value heads.

    The parameters have the names and, at G = H and H * D = C, the shapes of fairseq's
    MultiheadAttention: `q_proj` [H * D, C], `k_proj` and `v_proj` [G * D, C], `out_proj`
    [C, H * D], biases optional.

    Args:
        head_dim: D; unset: C / H. H * D may be another width than C (Shazeer 2019, section 4.1).
        window: positions that a query reads in self-attention: its own and the `window` - 1 before
            it (Shazeer 2019, section 4.1: 32). Unset: all positions before it.

    Raises:
        ValueError: `num_kv_heads` does not divide `num_heads`; or, where `head_dim` is unset,
            `num_heads` not `embed_dim`; or a head or window without an element.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        head_dim: int | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_kv_heads(num_heads, num_kv_heads)
        if head_dim is None:
            if embed_dim % num_heads:
                raise ValueError(f"embed_dim {embed_dim} is not divisible by {num_heads} heads")
            head_dim = embed_dim // num_heads
        check_head_dim(head_dim)
        check_window(window)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.queries_per_kv = num_heads // num_kv_heads
        self.head_dim = head_dim
        self.window = window
        self.dropout = dropout
        self.is_dropout_retained = False
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each weight from the range that its row has in the multi-head layer.

        Xavier's bound depends on the number of inputs and outputs, so narrowing a matrix would
        widen its range. The bound of the full C x C matrix is kept (times 1 / sqrt(2) for Q, K
        and V, as fairseq does for a fused QKV), so that a variant differs from MHA in its shape
        alone.
        """
        bound = math.sqrt(6 / (2 * self.embed_dim))
        qkv_bound = bound / math.sqrt(2)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -qkv_bound, qkv_bound)
        nn.init.uniform_(self.out_proj.weight, -bound, bound)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool | Literal["later"] = False,
        is_causal: bool = False,
        step: Step | None = None,
    ) -> tuple[Tensor, Weights | None]:
        """Attention over whole sequences, in fairseq's time-first order and calling convention.

        Args:
            query: [T, B, C]; key, value: [S, B, C], any floating dtype.
            key_padding_mask: [B, S] bool, True at padding.
            attn_mask: [T, S] or [B, T, S], added to the scores (fairseq: -inf where forbidden).
            need_weights: also return the probabilities, averaged over heads; `later` returns a
                function that computes them, which costs nothing if nobody calls it.
            is_causal: position t reads positions up to t; needs T = S, as a `window` does, which
                cuts what lies before t.
            step: attends in place of all this, for one position over a cache; T = 1, and only
                `query` and `need_weights` matter.

        Returns:
            output [T, B, C], and weights [B, T, S] or None.
        """
        if step is not None:
            read, weights = step(self, query, bool(need_weights))
            return self.out_proj(read), weights
        q = self._split(self.q_proj(query), self.num_heads)  # [B, H, T, D]
        k = self._split(self.k_proj(key), self.num_kv_heads)  # [B, G, S, D]
        v = self._split(self.v_proj(value), self.num_kv_heads)
        if self.window is not None and self.window < k.shape[2]:
            band = _band_mask(q, k, self.window)
            attn_mask = band if attn_mask is None else attn_mask + band
        mask = _merge_masks(q, k, key_padding_mask, attn_mask, is_causal)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.active_dropout,
            is_causal=is_causal and mask is None,
            enable_gqa=self.queries_per_kv > 1,
        )
        B, _, T, _ = q.shape
        out = self.out_proj(out.permute(2, 0, 1, 3).reshape(T, B, -1))
        if not need_weights:
            return out, None
        causal = _causal_mask(q, k) if is_causal and mask is None else mask
        later = partial(_head_average, q, k, causal)
        return out, later if need_weights == "later" else later()

    @property
    def active_dropout(self) -> float:
        """The probability with which a weight is dropped now."""
        return self.dropout if self.training or self.is_dropout_retained else 0.0

    def make_generation_fast_(
        self, retain_dropout: bool = False, retain_dropout_modules: Any = None, **_: Any
    ) -> None:
        """fairseq's hook before translation: --retain-dropout keeps dropout on."""
        self.is_dropout_retained = retain_dropout and (
            retain_dropout_modules is None or type(self).__name__ in retain_dropout_modules
        )

    def project_kv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a time-first sequence [S, B, C]: two tensors [B, G, S, D]."""
        return (
            self._split(self.k_proj(x), self.num_kv_heads),
            self._split(self.v_proj(x), self.num_kv_heads),
        )

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[T, B, heads * D] -> view [B, heads, T, D]."""
        T, B, _ = x.shape
        return x.view(T, B, heads, self.head_dim).permute(1, 2, 0, 3)


def attend_cached(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    need_weights: bool = False,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """One decoding step over a compact cache: every K and V element is read once.

    The beams of a sentence and the queries of a group become the rows of one matrix product, so
    neither beams nor groups repeat keys or values (Shazeer 2019, section 3: incremental
    multi-query attention is bound by reading K and V).

    Args:
        query: [B, W, H, D], not scaled.
        keys, values: [B, G, N, D] (may be strided views).
        mask: [B, W or 1, N] added to the scores, 0 or -inf; None reads all N.
        need_weights: also return the probabilities, averaged over heads.
        dropout: of the probabilities that meet the values, not of those that are returned.

    Returns:
        output [B, W, H * D] and weights [B, W, N] or None.
    """
    B, W, H, D = query.shape
    G, N = keys.shape[1], keys.shape[2]
    R = H // G
    rows = query.reshape(B, W, G, R, D).transpose(1, 2).reshape(B * G, W * R, D)
    # beta = 0: the product scales as it stores, and what it would add to is not read.
    product = query.new_empty(B * G, W * R, N)
    scores = torch.baddbmm(
        product, rows, keys.reshape(B * G, N, D).transpose(1, 2), beta=0, alpha=D**-0.5
    ).view(B, G, W, R, N)
    if mask is not None:
        scores = scores + mask[:, None, :, None, :]
    probs = torch.softmax(scores, dim=-1, dtype=_softmax_dtype(scores)).to(values.dtype)
    used = F.dropout(probs, dropout) if dropout else probs
    out = torch.bmm(used.view(B * G, W * R, N), values.reshape(B * G, N, D))
    # Where G or R * D is 1, reshape need not copy, and rows would not be contiguous.
    out = out.view(B, G, W, R, D).transpose(1, 2).reshape(B, W, H * D).contiguous()
    return out, probs.mean(dim=(1, 3)) if need_weights else None


def _softmax_dtype(scores: Tensor) -> torch.dtype:
    """Half precision is normalized in float32, as fairseq does."""
    return torch.promote_types(scores.dtype, torch.float32)


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """[T, S] additive: -inf above the diagonal."""
    size = (q.shape[2], k.shape[2])
    return torch.full(size, -math.inf, dtype=q.dtype, device=q.device).triu(1)


def _band_mask(q: Tensor, k: Tensor, window: int) -> Tensor:
    """[T, S] additive: -inf at keys that lie `window` or more positions before the query."""
    size = (q.shape[2], k.shape[2])
    return torch.full(size, -math.inf, dtype=q.dtype, device=q.device).tril(-window)


def _merge_masks(
    q: Tensor,
    k: Tensor,
    is_padding: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Tensor | None:
    """One additive mask that broadcasts to [B, H, T, S], or None where nothing is masked.

    A causal mask alone stays None: the caller's `is_causal` lets the fast kernels run.
    """
    if is_padding is None and attn_mask is None:
        return None
    mask = torch.zeros((), dtype=q.dtype, device=q.device)
    if attn_mask is not None:
        mask = attn_mask[:, None] if attn_mask.dim() == 3 else attn_mask
    if is_padding is not None:
        padding = torch.zeros(is_padding.shape, dtype=q.dtype, device=q.device)
        padding = padding.masked_fill(is_padding.to(torch.bool), -math.inf)
        mask = mask + padding[:, None, None, :]
    return mask + _causal_mask(q, k) if is_causal else mask


def _head_average(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Attention probabilities averaged over heads, [B, T, S]; for alignments, not for speed."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1, dtype=_softmax_dtype(scores)).mean(dim=1).to(q.dtype)
