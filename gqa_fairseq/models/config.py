"""The options of the Transformer, as fairseq's dataclass, and what is derived where they are unset.

No `from __future__ import annotations` here: fairseq reads the dataclass's types at run time, and
its parser knows `Optional` but not `X | None`.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import interpret_dc_type
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


_ADAPTIVE = "adaptive inputs and softmax are not supported: leave it out"
_NOISE = "quantization noise is not supported: leave it out"
_ENDS = "the decoder begins and ends with --decoder-embed-dim: leave it out"
_CROSS = "each decoder layer has self- and cross-attention, one after the other: leave it out"
_BASE = "BASE layers are not supported: leave it out"
_XFORMERS = "attention is the plugin's own: leave it out"

# Options of fairseq's Transformer that the plugin's refuses, and why; its others are supported.
REFUSED: dict[str, str] = {
    "adaptive_input": _ADAPTIVE,
    "adaptive_softmax_cutoff": _ADAPTIVE,
    "adaptive_softmax_dropout": _ADAPTIVE,
    "adaptive_softmax_factor": _ADAPTIVE,
    "tie_adaptive_weights": _ADAPTIVE,
    "tie_adaptive_proj": _ADAPTIVE,
    "quant_noise_pq": _NOISE,
    "quant_noise_pq_block_size": _NOISE,
    "quant_noise_scalar": _NOISE,
    "decoder_input_dim": _ENDS,
    "decoder_output_dim": _ENDS,
    "no_cross_attention": _CROSS,
    "cross_self_attention": _CROSS,
    "base_layers": _BASE,
    "base_sublayers": _BASE,
    "base_shuffle": _BASE,
    "encoder_xformers_att_config": _XFORMERS,
    "decoder_xformers_att_config": _XFORMERS,
    "merge_src_tgt_embed": "prepare the data with --joined-dictionary and give "
    "--share-all-embeddings in its place",
    "min_params_to_wrap": "--ddp-backend fully_sharded is not supported: leave it out",
    "char_inputs": "the encoder reads words, not characters: leave it out",
    "export": "the model cannot be compiled by TorchScript: leave it out",
}


def stock_options() -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each option of fairseq's Transformer, as its commands name them."""
    for option in fields(TransformerConfig):
        if option.name.startswith("_"):
            continue
        if not (isinstance(option.type, type) and issubclass(option.type, FairseqDataclass)):
            yield option.name, interpret_dc_type(option.type), option.default
            continue
        for part in fields(option.type):
            if not part.name.startswith("_"):
                yield f"{option.name}_{part.name}", interpret_dc_type(part.type), part.default


def _plain(default: Any) -> Any:
    """A default that stands by itself: None where it is taken over from another option."""
    return None if isinstance(default, str) and default.startswith("${") else default


_DEFAULTS = {name: _plain(default) for name, _, default in stock_options()}


def _refused(name: str, kind: Any) -> tuple[str, Any, Any]:
    """The field of a refused option: it has to be known, to be refused by its name.

    It has fairseq's default, which fairseq's trainer reads for some of them.
    """
    plain = kind if kind in (bool, int, float) else str
    help_text = f"refused: {REFUSED[name]}"
    return name, Optional[plain], field(default=_DEFAULTS[name], metadata={"help": help_text})


RefusedOptions: Any = make_dataclass(
    "RefusedOptions",
    [_refused(name, kind) for name, kind, _ in stock_options() if name in REFUSED],
    bases=(FairseqDataclass,),
)


@dataclass
class GroupedQueryTransformerConfig(RefusedOptions):
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
    no_token_positional_embeddings: Bool = _option(False, "no positions, on neither side")
    no_scale_embedding: Bool = _option(False, "embeddings are not multiplied by sqrt(d_model)")
    layernorm_embedding: Bool = _option(False, "layer norm of embeddings with their positions")
    no_decoder_final_norm: Bool = _option(False, "no layer norm after a decoder with norms before")
    relu_dropout: Float = _option(0.0, "an older name of --activation-dropout")
    encoder_embed_path: Text = _option(None, "text file of embeddings that the source begins with")
    decoder_embed_path: Text = _option(None, "text file of embeddings that the target begins with")
    encoder_layerdrop: Float = _option(0.0, "probability that an encoder layer is left out")
    decoder_layerdrop: Float = _option(0.0, "probability that a decoder layer is left out")
    encoder_layers_to_keep: Text = _option(
        None, "encoder layers that are taken from a checkpoint, such as 0,2,4; unset: all"
    )
    decoder_layers_to_keep: Text = _option(
        None, "decoder layers that are taken from a checkpoint, such as 0,2,4; unset: all"
    )
    checkpoint_activations: Bool = _option(
        False, "compute the activations of layers again in the backward pass: less memory"
    )
    offload_activations: Bool = _option(
        False, "keep what the backward pass begins with in the host's memory"
    )


def resolve(cfg) -> None:
    """Fill in, in place, what is not set and what is derived: `num_kv_heads` and both d_ff.

    Where both d_ff are given nothing is derived, and `mha_ffn_embed_dim` stays as it is. Derived
    ones match the multi-head Transformer whose heads are together as wide as the model. `cfg` may
    lack options, as a Namespace made by hand does.

    Raises:
        ValueError: heads that do not divide, an encoder and a decoder of different widths, or an
            option of fairseq's that is refused.
    """
    for name, reason in REFUSED.items():
        if getattr(cfg, name, None) not in (None, _DEFAULTS[name]):
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")
    widths = ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim")
    is_derived = None in (getattr(cfg, name, None) for name in widths)
    for each in fields(GroupedQueryTransformerConfig):
        is_needed = is_derived or each.name != "mha_ffn_embed_dim"
        if not each.name.startswith("_") and getattr(cfg, each.name, None) is None:
            fallback = each.metadata.get("fallback", each.default)
            setattr(cfg, each.name, fallback if is_needed else None)
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
        name = f"{side}_ffn_embed_dim"
        if getattr(cfg, name) is None:
            check_matched(d_ff, decoder_heads)
            setattr(cfg, name, d_ff)
    for side in ("encoder", "decoder"):
        _keep_layers(cfg, side)  # last: their d_ff is that of the whole model, which was trained
    if cfg.num_kv_heads is None:
        cfg.num_kv_heads = decoder_heads.num_kv_heads
        if encoder_heads.num_kv_heads != cfg.num_kv_heads:
            cfg.attention_placement = "decoder"  # or the encoder would get the decoder's number


def _keep_layers(cfg, side: str) -> None:
    """Takes over --encoder-layers-to-keep or the decoder's: as many layers are built.

    Raises:
        ValueError: it is no list of different numbers.
    """
    option = f"{side}_layers_to_keep"
    given = getattr(cfg, option)
    if not given:
        return
    text = given if isinstance(given, str) else ",".join(map(str, given))
    numbers = text.strip("[]() ").split(",")
    if not all(n.strip().isdecimal() for n in numbers) or len(set(map(int, numbers))) < len(
        numbers
    ):
        raise ValueError(
            f"--{option.replace('_', '-')} {given}: different numbers of layers, such as 0,2,4"
        )
    setattr(cfg, option, ",".join(n.strip() for n in numbers))
    setattr(cfg, f"{side}_layers", len(numbers))


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
    flat = Namespace(**{name: getattr(cfg, name) for name in names if name not in REFUSED})
    flat.decoder_input_dim = flat.decoder_output_dim = cfg.decoder_embed_dim
    return TransformerConfig.from_namespace(flat)
