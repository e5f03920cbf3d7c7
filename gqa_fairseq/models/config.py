"""The options of the Transformer, as fairseq's dataclass, and what is derived where they are unset.

No `from __future__ import annotations` here: fairseq reads the dataclass's types at run time, and
its parser knows `Optional` but not `X | None`.
"""

from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig

from gqa_fairseq.architecture import Variant
from gqa_fairseq.parity import Baseline

# Each option may be unset; see _option.
Int = Optional[int]
Float = Optional[float]
Bool = Optional[bool]
Text = Optional[str]
ActivationChoice: Any = Optional[ChoiceEnum(utils.get_available_activation_fns())]


def _option(fallback: Any, help_text: str) -> Any:
    """A field that is None until it is set: by the user, a named architecture or `fallback`.

    fairseq-hydra-train fills in a dataclass's defaults before the named architecture is asked, so
    a default that is a value would silently win over the name.
    """
    return field(default=None, metadata={"help": help_text, "fallback": fallback})


@dataclass
class GroupedQueryTransformerConfig(FairseqDataclass):
    """Flat, in fairseq's own names; what is not set has the size of Shazeer 2019's WMT14 model."""

    num_kv_heads: Int = _option(
        None, "key/value heads G: 1 is multi-query, unset is multi-head (G = attention heads)"
    )
    # Plain text and no choice: argparse would refuse with a page, check_placement has one line.
    attention_placement: Text = _option(
        "all",
        "which attentions have G heads: all (Shazeer 2019), or the decoder's self- and "
        "cross-attention (Ainslie et al. 2023)",
    )
    mha_ffn_embed_dim: Int = _option(
        4096, "d_ff of the multi-head baseline; an unset d_ff is derived to match its parameters"
    )
    encoder_ffn_embed_dim: Int = _option(None, "encoder d_ff; unset: derived")
    decoder_ffn_embed_dim: Int = _option(None, "decoder d_ff; unset: derived")
    encoder_embed_dim: Int = _option(1024, "encoder width (d_model)")
    decoder_embed_dim: Int = _option(1024, "decoder width, equal to the encoder's")
    encoder_attention_heads: Int = _option(8, "query heads in the encoder")
    decoder_attention_heads: Int = _option(8, "query heads in the decoder, equal to the encoder's")
    encoder_layers: Int = _option(6, "encoder layers")
    decoder_layers: Int = _option(6, "decoder layers")
    encoder_normalize_before: Bool = _option(False, "layer norm before each encoder block")
    decoder_normalize_before: Bool = _option(False, "layer norm before each decoder block")
    encoder_learned_pos: Bool = _option(False, "learned source positions")
    decoder_learned_pos: Bool = _option(False, "learned target positions")
    use_bias: Bool = _option(
        False, "biases in projections and feed-forward layers; without, parity is exact"
    )
    activation_fn: ActivationChoice = _option("relu", "activation of the feed-forward layers")
    dropout: Float = _option(0.1, "dropout probability")
    attention_dropout: Float = _option(0.0, "dropout probability for attention weights")
    activation_dropout: Float = _option(0.0, "dropout probability after the activation")
    share_decoder_input_output_embed: Bool = _option(False, "tie decoder input and output")
    share_all_embeddings: Bool = _option(False, "tie encoder, decoder and output embeddings")
    max_source_positions: Int = _option(1024, "longest source, in tokens")
    max_target_positions: Int = _option(1024, "longest target, in tokens")


def resolve(cfg) -> None:
    """Fill in, in place, what is not set and what is derived: `num_kv_heads` and both d_ff.

    Where both d_ff are given nothing is derived, and `mha_ffn_embed_dim` stays as it is.

    Raises:
        ValueError: heads that do not divide, or an encoder and a decoder of different widths.
    """
    is_derived = None in (cfg.encoder_ffn_embed_dim, cfg.decoder_ffn_embed_dim)
    for option in fields(GroupedQueryTransformerConfig):
        is_needed = is_derived or option.name != "mha_ffn_embed_dim"
        is_option = not option.name.startswith("_")
        if is_option and is_needed and getattr(cfg, option.name, None) is None:
            setattr(cfg, option.name, option.metadata["fallback"])
    for name in ("embed_dim", "attention_heads"):
        if getattr(cfg, f"encoder_{name}") != getattr(cfg, f"decoder_{name}"):
            raise ValueError(
                f"encoder and decoder {name} differ: parity is defined for equal ones; set both"
            )
    # Heads and placement are checked here, even where no d_ff is taken from it.
    matched = Baseline(
        d_model=cfg.encoder_embed_dim,
        num_heads=cfg.encoder_attention_heads,
        mha_d_ff=cfg.mha_ffn_embed_dim if is_derived else cfg.decoder_ffn_embed_dim,
        encoder_layers=cfg.encoder_layers,
        decoder_layers=cfg.decoder_layers,
        bias=cfg.use_bias,
    ).resolve(Variant(cfg.num_kv_heads, cfg.attention_placement))
    cfg.num_kv_heads = matched.num_kv_heads
    if cfg.encoder_ffn_embed_dim is None:
        cfg.encoder_ffn_embed_dim = matched.encoder_d_ff
    if cfg.decoder_ffn_embed_dim is None:
        cfg.decoder_ffn_embed_dim = matched.decoder_d_ff


def nested(cfg) -> TransformerConfig:
    """The same options in the nested form that fairseq's encoder and decoder read."""
    names = [f.name for f in fields(GroupedQueryTransformerConfig) if not f.name.startswith("_")]
    flat = Namespace(**{name: getattr(cfg, name) for name in names})
    flat.decoder_input_dim = flat.decoder_output_dim = cfg.decoder_embed_dim
    return TransformerConfig.from_namespace(flat)
