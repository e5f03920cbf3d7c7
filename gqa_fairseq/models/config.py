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

from gqa_fairseq.architecture import Heads, check_placement, check_window, head_dim_of
from gqa_fairseq.parity import Baseline, check_matched

# Each option may be unset; see _option.
Int = Optional[int]
Float = Optional[float]
Bool = Optional[bool]
Text = Optional[str]
ActivationChoice: Any = Optional[ChoiceEnum(utils.get_available_activation_fns())]


def _option(fallback: Any, help_text: str) -> Any:
    """A field that is None until the user, a named architecture or `fallback` sets it.

    fairseq-hydra-train fills in a dataclass's defaults before it asks the named architecture, so
    a default other than None would override the name, and no message would say so.
    """
    return field(default=None, metadata={"help": help_text, "fallback": fallback})


@dataclass
class GroupedQueryTransformerConfig(FairseqDataclass):
    """Flat, in fairseq's own names; what is not set has the size of Shazeer 2019's WMT14 model."""

    num_kv_heads: Int = _option(
        None, "key/value heads G: 1 is multi-query, unset is multi-head (G = attention heads)"
    )
    # Text, because argparse refuses a wrong choice with a page; check_placement does with one line.
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
    decoder_attention_heads: Int = _option(8, "query heads in the decoder")
    encoder_head_dim: Int = _option(None, "width of a head in the encoder; unset: d_model / heads")
    decoder_head_dim: Int = _option(None, "width of a head in the decoder; unset: d_model / heads")
    decoder_window: Int = _option(
        None,
        "positions that the decoder's self-attention reads, the current one included; unset: all",
    )
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

    Where both d_ff are given nothing is derived, and `mha_ffn_embed_dim` stays as it is. Derived
    ones match the multi-head Transformer whose heads are together as wide as the model.

    Raises:
        ValueError: heads that do not divide, or an encoder and a decoder of different widths.
    """
    is_derived = None in (cfg.encoder_ffn_embed_dim, cfg.decoder_ffn_embed_dim)
    for option in fields(GroupedQueryTransformerConfig):
        is_needed = is_derived or option.name != "mha_ffn_embed_dim"
        is_option = not option.name.startswith("_")
        if is_option and is_needed and getattr(cfg, option.name, None) is None:
            setattr(cfg, option.name, option.metadata["fallback"])
    if cfg.encoder_embed_dim != cfg.decoder_embed_dim:
        raise ValueError(
            "encoder and decoder embed_dim differ: parity is defined for equal ones; set both"
        )
    check_placement(cfg.attention_placement)
    check_window(cfg.decoder_window)
    encoder_heads, decoder_heads = heads_of(cfg)
    # Sizes are checked here, even where no d_ff is taken from it.
    matched = Baseline(
        d_model=cfg.encoder_embed_dim,
        num_heads=1,  # no number of heads changes the parameters of a multi-head model
        mha_d_ff=cfg.mha_ffn_embed_dim if is_derived else cfg.decoder_ffn_embed_dim,
        encoder_layers=cfg.encoder_layers,
        decoder_layers=cfg.decoder_layers,
        bias=cfg.use_bias,
    ).matched_d_ff(encoder_heads, decoder_heads, cfg.attention_placement)
    for side, d_ff in zip(("encoder", "decoder"), matched, strict=True):
        option = f"{side}_ffn_embed_dim"
        if getattr(cfg, option) is None:
            check_matched(d_ff, decoder_heads)
            setattr(cfg, option, d_ff)
    if cfg.num_kv_heads is None:
        cfg.num_kv_heads = decoder_heads.num_kv_heads
        if encoder_heads.num_kv_heads != cfg.num_kv_heads:
            cfg.attention_placement = "decoder"  # or the encoder would get the decoder's number


def heads_of(cfg) -> tuple[Heads, Heads]:
    """The heads of the encoder and of the decoder, from flat or nested options.

    Raises:
        ValueError: heads that do not divide, or a head without an element.
    """
    made = []
    for side in ("encoder", "decoder"):
        num_heads, head_dim = (getattr(cfg, f"{side}_{k}") for k in ("attention_heads", "head_dim"))
        if head_dim is None:
            head_dim = head_dim_of(getattr(cfg, f"{side}_embed_dim"), num_heads)
        is_grouped = side == "decoder" or cfg.attention_placement == "all"
        num_kv_heads = cfg.num_kv_heads if is_grouped else None
        made.append(Heads.checked(num_heads, head_dim, num_kv_heads))
    return made[0], made[1]


def nested(cfg) -> TransformerConfig:
    """The same options in the nested form that fairseq's encoder and decoder read."""
    names = [f.name for f in fields(GroupedQueryTransformerConfig) if not f.name.startswith("_")]
    flat = Namespace(**{name: getattr(cfg, name) for name in names})
    flat.decoder_input_dim = flat.decoder_output_dim = cfg.decoder_embed_dim
    return TransformerConfig.from_namespace(flat)
