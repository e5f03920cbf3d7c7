"""Which d_ff keeps the parameter count when key/value heads are removed: exact integer arithmetic.

Fewer key/value heads make the K and V projections narrower; the weights saved go into wider
feed-forward layers (FFN), so that variants differ in attention and not in size (Shazeer 2019,
section 4.1: d_ff 4096 -> 5440 for multi-query attention). Nothing here imports torch.

    python -m gqa_fairseq.parity                      # the paper's shape
    python -m gqa_fairseq.parity --d-model 512 --mha-d-ff 2048 --placement decoder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Placement = Literal["all", "decoder"]
PLACEMENTS: tuple[Placement, ...] = ("all", "decoder")


@dataclass(frozen=True)
class Shape:
    """The multi-head baseline of a comparison; the defaults are the paper's WMT14 model.

    `vocab_size` 0 counts the layers alone. A joint vocabulary shares one embedding matrix with
    the output layer. Positions are learned, and fairseq's table has 2 rows more than positions.
    """

    d_model: int = 1024
    num_heads: int = 8
    mha_d_ff: int = 4096
    encoder_layers: int = 6
    decoder_layers: int = 6
    bias: bool = False
    pre_norm: bool = True
    vocab_size: int = 0
    max_source_positions: int = 0
    max_target_positions: int = 0

    def __post_init__(self) -> None:
        if min(self.d_model, self.num_heads, self.mha_d_ff) < 1:
            raise ValueError("d_model, num_heads and d_ff must be at least 1")
        if min(self.encoder_layers, self.decoder_layers) < 1:
            raise ValueError("the encoder and the decoder need at least one layer each")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by {self.num_heads} heads: "
                "choose a head count that divides it"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads


@dataclass(frozen=True)
class Widths:
    """d_ff of the encoder's and of the decoder's feed-forward layers."""

    encoder_d_ff: int
    decoder_d_ff: int


@dataclass(frozen=True)
class ParityRow:
    """One row of the parity table; `residual` = parameters - the MHA baseline's, never above 0."""

    num_kv_heads: int
    encoder_d_ff: int
    decoder_d_ff: int
    parameters: int
    residual: int


def check_kv_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raises ValueError unless `num_kv_heads` divides `num_heads`."""
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        divisors = [g for g in range(1, num_heads + 1) if num_heads % g == 0]
        raise ValueError(
            f"num_kv_heads {num_kv_heads} does not divide {num_heads} attention heads: "
            f"choose one of {', '.join(map(str, divisors))}"
        )


def check_placement(placement: str) -> None:
    """Raises ValueError unless `placement` is one of PLACEMENTS."""
    if placement not in PLACEMENTS:
        raise ValueError(
            f"attention placement {placement!r} is unknown: choose one of {', '.join(PLACEMENTS)}"
        )


def attention_parameters(shape: Shape, num_kv_heads: int) -> int:
    """Parameters of one attention with `num_kv_heads` key/value heads."""
    c, kv = shape.d_model, num_kv_heads * shape.head_dim
    weights = 2 * c * c + 2 * c * kv
    return weights + (2 * c + 2 * kv if shape.bias else 0)


def ffn_parameters(shape: Shape, d_ff: int) -> int:
    """Parameters of one feed-forward layer of width `d_ff`."""
    c = shape.d_model
    return 2 * c * d_ff + (d_ff + c if shape.bias else 0)


def matched_widths(shape: Shape, num_kv_heads: int, placement: Placement = "all") -> Widths:
    """The largest d_ff whose parameter count does not exceed the multi-head baseline's.

    Placement `all` (Shazeer 2019: all three attentions) widens every FFN by the same amount;
    placement `decoder` (Ainslie et al. 2023: the decoder's two) widens the decoder's alone.

    Raises:
        ValueError: `num_kv_heads` does not divide the heads, or the placement is unknown.
    """
    check_kv_heads(shape.num_heads, num_kv_heads)
    check_placement(placement)
    saved_each = attention_parameters(shape, shape.num_heads) - attention_parameters(
        shape, num_kv_heads
    )
    per_unit_of_width = ffn_parameters(shape, 1) - ffn_parameters(shape, 0)
    attentions, ffns = 2 * shape.decoder_layers, shape.decoder_layers
    if placement == "all":
        attentions, ffns = attentions + shape.encoder_layers, ffns + shape.encoder_layers
    wider = shape.mha_d_ff + attentions * saved_each // (ffns * per_unit_of_width)
    return Widths(wider if placement == "all" else shape.mha_d_ff, wider)


def parameter_count(
    shape: Shape, num_kv_heads: int, placement: Placement, widths: Widths | None = None
) -> int:
    """Parameters of the whole model; equals what the built model holds (a test compares)."""
    check_kv_heads(shape.num_heads, num_kv_heads)
    widths = widths or matched_widths(shape, num_kv_heads, placement)
    norm = 2 * shape.d_model
    encoder_kv_heads = num_kv_heads if placement == "all" else shape.num_heads
    encoder_layer = (
        attention_parameters(shape, encoder_kv_heads)
        + ffn_parameters(shape, widths.encoder_d_ff)
        + 2 * norm
    )
    decoder_layer = (
        2 * attention_parameters(shape, num_kv_heads)
        + ffn_parameters(shape, widths.decoder_d_ff)
        + 3 * norm
    )
    layers = shape.encoder_layers * encoder_layer + shape.decoder_layers * decoder_layer
    final_norms = 2 * norm if shape.pre_norm else 0
    # fairseq numbers positions from padding_idx + 1 = 2, so a table has two rows more.
    tables = [n + 2 for n in (shape.max_source_positions, shape.max_target_positions) if n]
    return layers + final_norms + shape.d_model * (shape.vocab_size + sum(tables))


def parity_table(shape: Shape, placement: Placement) -> list[ParityRow]:
    """One row for each number of key/value heads that divides the heads, from MQA to MHA."""
    baseline = parameter_count(shape, shape.num_heads, placement)
    rows = []
    for g in (g for g in range(1, shape.num_heads + 1) if shape.num_heads % g == 0):
        widths = matched_widths(shape, g, placement)
        count = parameter_count(shape, g, placement, widths)
        rows.append(ParityRow(g, widths.encoder_d_ff, widths.decoder_d_ff, count, count - baseline))
    return rows
