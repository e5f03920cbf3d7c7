"""Which cells a plan has: a grid of one model's loads, or the protocol of a paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.intensity.cells import Cell, needed_bytes
from experiments.intensity.models import PRESETS, architecture_of
from gqa_fairseq.architecture import Architecture, FeedForward, Placement
from gqa_fairseq.parity import regrouped
from gqa_fairseq.roofline import Load

BATCHES, LENGTHS, BEAMS = (1, 4, 16, 64, 256), (32, 128, 512, 1024), (1, 4)
KV_HEADS, POSITIONS = (8, 4, 2, 1), 1024


@dataclass(frozen=True)
class Plan:
    """Cells under one name; `scale` is how many times as many layers the published model has."""

    name: str
    cells: tuple[Cell, ...]
    scale: int = 1


def grid(
    own: Architecture,
    *,
    kv_heads: Sequence[int] = KV_HEADS,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] = LENGTHS,
    beams: Sequence[int] = BEAMS,
    weights: Sequence[str],
    cache: str,
    positions: int = POSITIONS,
) -> Plan:
    """Every batch at every length, source and target alike, with every beam and type of weights.

    Models have at least the positions that the longest line needs. Raises ValueError for key/value
    heads that do not divide the heads.
    """
    models = _models(own, kv_heads, "all", "matched", max(positions, *lengths))
    loads = [
        Load(batch, length, length, beam, kind, cache)
        for batch, length, beam, kind in itertools.product(batches, lengths, beams, weights)
    ]
    return Plan("grid", tuple(Cell(models, load) for load in loads))


def table_2(cache: str) -> Plan:
    """Shazeer 2019, table 2: source and target of 128; training, greedy, beam 4; G = 8 and 1.

    A TPUv2 has 128 sentences on each core. An update here has as many tokens as fit a machine of
    tens of gigabytes.
    """
    paper = architecture_of(PRESETS["paper"])
    models = _models(paper, (8, 1), "all", "matched", paper.max_target_positions)
    decoding = [Cell(models, Load(128, 128, 128, beam, cache, cache)) for beam in (1, 4)]
    training = Cell(models, Load(8, 128, 128, 1, cache, cache), is_training=True)
    return Plan("table2", (*decoding, training))


# Ainslie et al. 2023: figure 6 has 2,048 tokens of input and 512 of output; translation in table 1
# has 512 and 256. By model: the sentences of a batch, and the numbers of key/value heads.
FIGURE_6_LENGTHS = ((2048, 512), (512, 256))
FIGURE_6 = {"t5-large": (4, (16, 8, 4, 2, 1)), "t5-xxl": (4, (64, 8, 1))}


def figure_6(
    preset: str,
    cache: str,
    memory_bytes: int,
    kv_heads: Sequence[int] | None = None,
    asked_layers: int | None = None,
) -> Plan:
    """Time of a sample over key/value heads, with as many of the decoder's layers as fit.

    The number of layers divides that of the published model, so that times can be scaled by the
    count. The encoder, whose time is not in a sample's here, has one layer. T5's gated feed-forward
    layers stand as ungated ones of 1.5 times the width: as many bytes and operations.

    Raises ValueError for layers that do not divide the model's, and for key/value heads that do not
    divide its heads.
    """
    batch, usual_kv_heads = FIGURE_6[preset]
    kv_heads = kv_heads or usual_kv_heads
    whole = architecture_of(PRESETS[preset])
    layers = whole.decoder_layers
    counts = [n for n in range(layers, 0, -1) if layers % n == 0]
    if asked_layers:
        if asked_layers not in counts:
            raise ValueError(
                f"--decoder-layers {asked_layers} does not divide the {layers} of {preset}: choose "
                f"one of {', '.join(map(str, counts))}"
            )
        counts = [asked_layers]
    positions = max(max(lengths) for lengths in FIGURE_6_LENGTHS)
    for count in counts:
        own = replace(whole, decoder_layers=count, encoder_layers=1)
        models = _models(own, kv_heads, "decoder", "kept", positions)
        cells = tuple(
            Cell(models, Load(batch, source, target, 1, cache, cache))
            for source, target in FIGURE_6_LENGTHS
        )
        if count == counts[-1] or max(map(needed_bytes, cells)) <= memory_bytes:
            break
    return Plan(f"figure6-{preset}", cells, layers // count)


def _models(
    own: Architecture,
    kv_heads: Sequence[int],
    placement: Placement,
    d_ff: FeedForward,
    positions: int,
) -> tuple[Architecture, ...]:
    """One model for each number of key/value heads, with learned positions for the longest line."""
    own = replace(own, max_source_positions=positions, max_target_positions=positions)
    return tuple(regrouped(own, G, placement, d_ff) for G in kv_heads)
