"""Named architectures: {mha,gqa4,gqa2,mqa}_transformer_{wmt_en_de,base,small}.

A name fixes the shape and the number of key/value heads; d_ff is derived from the multi-head
width by the parity arithmetic. fairseq-hydra-train takes the same names as `model._name`.
"""

from __future__ import annotations

from typing import Any

from fairseq.models import register_model_architecture

from gqa_fairseq.architecture import Variant
from gqa_fairseq.models.gqa_transformer import MODEL_NAME
from gqa_fairseq.parity import BASELINES, Baseline

NAMED_KV_HEADS = (None, 4, 2, 1)  # None: as many as query heads
_DERIVED = ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim")


def named_options(baseline: Baseline, num_kv_heads: int | None) -> dict[str, Any]:
    """fairseq's options of a named architecture, for those that the user leaves out.

    Both d_ff are left to be derived: they would be wrong for a user's own `--num-kv-heads`.
    """
    options = baseline.multi_head.fairseq_options() | {
        "num_kv_heads": num_kv_heads,
        "mha_ffn_embed_dim": baseline.mha_d_ff,
    }
    return {key: value for key, value in options.items() if key not in _DERIVED}


def _register(name: str, options: dict[str, Any]) -> None:
    def apply_defaults(args) -> None:
        for key, value in options.items():
            if getattr(args, key, None) is None:
                setattr(args, key, value)

    register_model_architecture(MODEL_NAME, name)(apply_defaults)


for _size, _baseline in BASELINES.items():
    for _num_kv_heads in NAMED_KV_HEADS:
        _variant = _baseline.resolve(Variant(_num_kv_heads)).name
        _register(f"{_variant}_transformer_{_size}", named_options(_baseline, _num_kv_heads))
