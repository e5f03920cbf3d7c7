"""Named architectures: {mha,gqa4,gqa2,mqa}_transformer_{wmt_en_de,base,small}.

A name fixes the shape and the number of key/value heads; d_ff is derived from the multi-head
width by the parity arithmetic. fairseq-hydra-train takes the same names as `model._name`.
"""

from __future__ import annotations

from typing import Any

from fairseq.models import register_model_architecture

from gqa_fairseq import model as _model  # registers the model that the names below refer to

_BOTH = ("encoder", "decoder")


def _shape(d_model: int, mha_d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """Pre-norm is this suite's choice (Shazeer 2019 does not state the norm's place)."""
    per_side = {
        "embed_dim": d_model,
        "layers": layers,
        "attention_heads": heads,
        "normalize_before": True,
        "learned_pos": True,
    }
    options = {f"{side}_{key}": value for side in _BOTH for key, value in per_side.items()}
    return options | {
        "mha_ffn_embed_dim": mha_d_ff,
        "share_all_embeddings": True,
    }


SHAPES: dict[str, dict[str, Any]] = {
    # Shazeer 2019, section 4.1: 6 layers, d_model 1024, d_ff 4096, 8 heads x 128. Its length limit
    # of 256 is an option of the task: --max-source-positions, --max-target-positions.
    "wmt_en_de": _shape(1024, 4096, layers=6, heads=8),
    "base": _shape(512, 2048, layers=6, heads=8),
    "small": _shape(192, 768, layers=2, heads=8),
}
VARIANTS: dict[str, int | None] = {"mha": None, "gqa4": 4, "gqa2": 2, "mqa": 1}


def _register(name: str, options: dict[str, Any]) -> None:
    def apply_defaults(args) -> None:
        for key, value in options.items():
            if getattr(args, key, None) is None:
                setattr(args, key, value)

    register_model_architecture(_model.MODEL_NAME, name)(apply_defaults)


for _variant, _num_kv_heads in VARIANTS.items():
    for _size, _options in SHAPES.items():
        _register(f"{_variant}_transformer_{_size}", _options | {"num_kv_heads": _num_kv_heads})
