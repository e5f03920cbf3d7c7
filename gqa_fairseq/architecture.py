"""What a model is, in whole numbers: `Architecture`, and `Variant`, which is what is asked for.

A `Variant` says how the attention of a multi-head baseline is changed; `parity.Baseline.resolve`
makes an `Architecture` of it. Everything that needs a width, a parameter count, a cost, a name or
fairseq's options takes an `Architecture`. Nothing here imports torch.

    D_q, D_kv   widths of all query heads and of all key/value heads: H * D and G * D
    C           d_model;  H, G, D as in attention.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Placement = Literal["all", "decoder"]
PLACEMENTS: tuple[Placement, ...] = ("all", "decoder")
FeedForward = Literal["matched", "kept"]
FEED_FORWARDS: tuple[FeedForward, ...] = ("matched", "kept")
ConversionMethod = Literal["mean", "first", "random", "svd", "svd-product"]
CONVERSION_METHODS: tuple[ConversionMethod, ...] = ("mean", "first", "random", "svd", "svd-product")
BASELINE_NAME = "mha"


@dataclass(frozen=True)
class Variant:
    """What is asked for; an unset value is the baseline's.

    `num_heads` query heads of `head_dim` share `num_kv_heads` key/value heads (unset: as many as
    query heads). Placement `all` changes all three attentions (Shazeer 2019, section 3), `decoder`
    the decoder's two (Ainslie et al. 2023, section 2.2). `window` is decoder self-attention's reach
    in positions, the current one included (Shazeer 2019, section 4.1: 32; unset: all positions).
    `d_ff` is matched to the baseline's parameters or kept as it is.
    """

    num_kv_heads: int | None = None
    placement: Placement = "all"
    num_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    d_ff: FeedForward = "matched"


@dataclass(frozen=True)
class Heads:
    """The heads of one kind of attention: `num_heads` queries of `head_dim` on `num_kv_heads`."""

    num_heads: int
    head_dim: int
    num_kv_heads: int

    @classmethod
    def checked(cls, num_heads: int, head_dim: int, num_kv_heads: int | None) -> Heads:
        """As many key/value heads as query heads where `num_kv_heads` is None.

        Raises:
            ValueError: `num_kv_heads` does not divide `num_heads`, or one of the three is below 1.
        """
        if num_heads < 1:
            raise ValueError(f"num_heads {num_heads} must be at least 1")
        check_head_dim(head_dim)
        heads = cls(num_heads, head_dim, num_heads if num_kv_heads is None else num_kv_heads)
        check_kv_heads(num_heads, heads.num_kv_heads)
        return heads

    @property
    def query_width(self) -> int:
        """D_q: the width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """D_kv: the width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def is_multi_head(self) -> bool:
        return self.num_heads == self.num_kv_heads


@dataclass(frozen=True)
class Architecture:
    """An encoder-decoder Transformer in absolute numbers; `parity.Baseline.resolve` makes them.

    `name` is unique among the architectures of one baseline. Cross-attention has the decoder's
    heads. Of `embeddings` matrices one serves source, target and output; of two the source has its
    own, of three none is shared. They have `vocab_size` words each; 0 counts the layers
    alone. Positions are learned, 0 stands for none. `residual` is what the model has beyond the
    multi-head baseline's parameters.
    """

    name: str
    d_model: int
    encoder_heads: Heads
    decoder_heads: Heads
    window: int | None
    encoder_layers: int
    decoder_layers: int
    encoder_d_ff: int
    decoder_d_ff: int
    bias: bool
    pre_norm: bool
    vocab_size: int
    max_source_positions: int
    max_target_positions: int
    residual: int = 0
    embeddings: int = 1

    @property
    def num_kv_heads(self) -> int:
        """G of the decoder, which is what decoding reads at every step."""
        return self.decoder_heads.num_kv_heads

    @property
    def placement(self) -> Placement:
        """`decoder` where the encoder has multi-head attention of its own, else `all`."""
        is_own = self.encoder_heads != self.decoder_heads and self.encoder_heads.is_multi_head
        return "decoder" if is_own else "all"

    @property
    def is_baseline(self) -> bool:
        """Whether it is the multi-head model that the others are variants of, by its name."""
        return self.name == BASELINE_NAME

    @property
    def is_multi_head(self) -> bool:
        """Whether fairseq's own Transformer is the same."""
        return self.unlike_fairseq is None

    @property
    def unlike_fairseq(self) -> str | None:
        """What fairseq's own Transformer does not have, in words; None: it is the same.

        Every attention there is multi-head and alike. Its heads are together as wide as the model,
        and read all positions.
        """
        heads = self.decoder_heads
        if not heads.is_multi_head:
            return f"{heads.num_kv_heads} key/value heads of {heads.num_heads}"
        if self.window is not None:
            return f"a window of {self.window} positions"
        if heads.query_width != self.d_model or heads != self.encoder_heads:
            return f"{heads.num_heads} heads of {heads.head_dim} for a width of {self.d_model}"
        return None

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; equals what the built model holds (a test compares)."""
        norm = 2 * self.d_model
        encoder_layer = (
            self.attention_parameters(self.encoder_heads)
            + self.ffn_parameters(self.encoder_d_ff)
            + 2 * norm
        )
        decoder_layer = (
            2 * self.attention_parameters(self.decoder_heads)
            + self.ffn_parameters(self.decoder_d_ff)
            + 3 * norm
        )
        layers = self.encoder_layers * encoder_layer + self.decoder_layers * decoder_layer
        final_norms = 2 * norm if self.pre_norm else 0
        # fairseq numbers positions from padding_idx + 1 = 2, so a table has two rows more.
        tables = [n + 2 for n in (self.max_source_positions, self.max_target_positions) if n]
        return (
            layers + final_norms + self.d_model * (self.embeddings * self.vocab_size + sum(tables))
        )

    def attention_parameters(self, heads: Heads) -> int:
        """Parameters of one attention: projections of queries, keys, values and the output."""
        c, q, kv = self.d_model, heads.query_width, heads.kv_width
        return 2 * c * q + 2 * c * kv + (q + 2 * kv + c if self.bias else 0)

    def ffn_parameters(self, d_ff: int) -> int:
        """Parameters of one feed-forward layer of width `d_ff`."""
        c = self.d_model
        return 2 * c * d_ff + (d_ff + c if self.bias else 0)

    def fairseq_options(self) -> dict[str, Any]:
        """Options of the plugin's model, by their names in its dataclass (models/config.py).

        Both d_ff are given as numbers, so that nothing is left to derive. Numbers of positions
        that are 0 are left out: positions are learned, and fairseq's limit is the model's. So are
        a head width that is d_model / heads, and a window over all positions.
        """
        options: dict[str, Any] = {}
        for side, heads in (("encoder", self.encoder_heads), ("decoder", self.decoder_heads)):
            options |= {
                f"{side}_embed_dim": self.d_model,
                f"{side}_attention_heads": heads.num_heads,
                f"{side}_normalize_before": self.pre_norm,
                f"{side}_learned_pos": True,
            }
            if heads.query_width != self.d_model:
                options[f"{side}_head_dim"] = heads.head_dim
        if self.window is not None:
            options["decoder_window"] = self.window
        positions = {
            "max_source_positions": self.max_source_positions,
            "max_target_positions": self.max_target_positions,
        }
        options |= {key: number for key, number in positions.items() if number}
        return options | {
            "num_kv_heads": self.num_kv_heads,
            "attention_placement": self.placement,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "encoder_ffn_embed_dim": self.encoder_d_ff,
            "decoder_ffn_embed_dim": self.decoder_d_ff,
            "use_bias": self.bias,
            **_SHARED[self.embeddings],
        }

    @classmethod
    def from_fairseq_options(
        cls, name: str, options: Mapping[str, Any], vocab_size: int
    ) -> Architecture:
        """The architecture of a model with these options, of which nothing is left to derive.

        Positions that are not learned are no parameters, and stand as 0.
        """
        sides: dict[str, Any] = {}
        for side, kind in (("encoder", "source"), ("decoder", "target")):
            width, num_heads = options[f"{side}_embed_dim"], options[f"{side}_attention_heads"]
            is_grouped = side == "decoder" or options["attention_placement"] != "decoder"
            sides |= {
                f"{side}_heads": Heads(
                    num_heads,
                    options.get(f"{side}_head_dim") or width // num_heads,
                    (is_grouped and options["num_kv_heads"]) or num_heads,
                ),
                f"{side}_layers": options[f"{side}_layers"],
                f"{side}_d_ff": options[f"{side}_ffn_embed_dim"],
                f"max_{kind}_positions": (
                    options.get(f"max_{kind}_positions", 0) if options[f"{side}_learned_pos"] else 0
                ),
            }
        shared = (n for n, given in _SHARED.items() if all(map(options.get, given)))
        return cls(
            name=name,
            d_model=options["decoder_embed_dim"],
            window=options.get("decoder_window"),
            bias=options["use_bias"],
            pre_norm=options["decoder_normalize_before"],
            vocab_size=vocab_size,
            embeddings=next(shared),
            **sides,
        )


# fairseq's options by the number of embedding matrices.
_SHARED = {
    1: {"share_all_embeddings": True},
    2: {"share_decoder_input_output_embed": True},
    3: {},
}


def check_kv_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raise ValueError unless `num_kv_heads` divides `num_heads`."""
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        divisors = [g for g in range(1, num_heads + 1) if num_heads % g == 0]
        raise ValueError(
            f"num_kv_heads {num_kv_heads} does not divide {num_heads} attention heads: "
            f"choose one of {', '.join(map(str, divisors))}"
        )


def head_dim_of(d_model: int, num_heads: int) -> int:
    """The width of a head where all heads together are as wide as the model.

    Raises:
        ValueError: `num_heads` does not divide `d_model`.
    """
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(
            f"d_model {d_model} is not divisible by {num_heads} heads: "
            "choose a head count that divides it, or a head width"
        )
    return d_model // num_heads


def check_head_dim(head_dim: int) -> None:
    """Raise ValueError unless a head has at least one element."""
    if head_dim < 1:
        raise ValueError(f"head_dim {head_dim} must be at least 1")


def check_window(window: int | None) -> None:
    """Raise ValueError unless a window, where there is one, holds the current position."""
    if window is not None and window < 1:
        raise ValueError(
            f"window {window} must be at least 1, the current position; unset: all positions"
        )


def check_placement(placement: str) -> None:
    """Raise ValueError unless `placement` is one of PLACEMENTS."""
    if placement not in PLACEMENTS:
        raise ValueError(
            f"attention placement {placement!r} is unknown: choose one of {', '.join(PLACEMENTS)}"
        )


def check_conversion_method(method: str) -> None:
    """Raise ValueError unless `method` is one of CONVERSION_METHODS."""
    if method not in CONVERSION_METHODS:
        raise ValueError(
            f"conversion method {method!r} is unknown: choose one of "
            f"{', '.join(CONVERSION_METHODS)}"
        )


# What can set baselines apart whose variants have the same names, in the order of its use.
_MARKS: tuple[Callable[[Architecture], str], ...] = (
    lambda own: f"d{own.d_model}",
    lambda own: f"layers{own.encoder_layers}+{own.decoder_layers}",
    lambda own: f"heads{own.encoder_heads.num_heads}",
    lambda own: f"dim{own.encoder_heads.head_dim}",
    lambda own: f"ff{own.encoder_d_ff}+{own.decoder_d_ff}",
    lambda own: "bias" if own.bias else "nobias",
    lambda own: "prenorm" if own.pre_norm else "postnorm",
    lambda own: f"vocab{own.vocab_size}",
    lambda own: f"positions{own.max_source_positions}+{own.max_target_positions}",
)


def distinct_names(architectures: Iterable[Architecture]) -> dict[Architecture, str]:
    """A name for each that no other of them has, in the order of their first appearance.

    A name is unique among the variants of one baseline. Where the variants of several baselines
    share one, all names get a mark of what sets the baselines apart, such as `mha-d192`, `mqa-d192`
    and `mha-d96`; as few marks as it takes.
    """
    names = {own: own.name for own in architectures}
    for mark in _MARKS:
        if len(set(names.values())) == len(names):
            break
        marked = {own: f"{name}-{mark(own)}" for own, name in names.items()}
        if len(set(marked.values())) > len(set(names.values())):
            names = marked
    return names
