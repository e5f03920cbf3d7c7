"""Models: presets with their sources, changed by options; or those of jobs and checkpoints."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.arguments import Parser, whole_number
from experiments.errors import ExperimentError
from experiments.records.record import RECORD_NAME, read_record
from gqa_fairseq.architecture import (
    BASELINE_NAME,
    Architecture,
    Heads,
    check_window,
    head_dim_of,
)
from gqa_fairseq.parity import PAPER


@dataclass(frozen=True)
class Preset:
    """A multi-head model; `d_ff` is its feed-forward width as published.

    A gated feed-forward layer has three matrices where others have two. It is counted as one that
    is 1.5 times as wide, which has the same matrices and operations; no gated layer is built.
    """

    source: str
    d_model: int
    heads: int
    d_ff: int
    layers: int
    vocab_size: int
    positions: int = 0
    gated: bool = False
    bias: bool = False
    pre_norm: bool = True
    embeddings: int = 1


_VASWANI = "Vaswani et al. 2017, table 3; biases, post-norm, sinusoidal positions"
_T5 = "T5.1.1: gated feed-forward, an output layer of its own; relative positions are not counted"
PRESETS = {
    "paper": Preset(
        "Shazeer 2019, section 4.1; the number of words and pre-norm are this suite's",
        d_model=PAPER.d_model, heads=PAPER.num_heads, d_ff=PAPER.mha_d_ff,
        layers=PAPER.decoder_layers, vocab_size=PAPER.vocab_size,
        positions=PAPER.max_target_positions,
    ),
    "base": Preset(
        _VASWANI, d_model=512, heads=8, d_ff=2048, layers=6, vocab_size=37_000, bias=True,
        pre_norm=False,
    ),
    "big": Preset(
        _VASWANI, d_model=1024, heads=16, d_ff=4096, layers=6, vocab_size=37_000, bias=True,
        pre_norm=False,
    ),
    "t5-large": Preset(
        _T5, d_model=1024, heads=16, d_ff=2816, layers=24, vocab_size=32_128, gated=True,
        embeddings=2,
    ),
    "t5-xxl": Preset(
        _T5, d_model=4096, heads=64, d_ff=10_240, layers=24, vocab_size=32_128, gated=True,
        embeddings=2,
    ),
}  # fmt: skip
DEFAULT = "paper"
# Options that change a preset; a job and a checkpoint have their own.
_NUMBERS = {
    "layers": "of the encoder and of the decoder",
    "encoder_layers": "",
    "decoder_layers": "",
    "d_model": "width",
    "heads": "query heads",
    "head_dim": "width of a head (default: d_model / heads)",
    "d_ff": "width of the feed-forward layers of the multi-head model",
    "vocab_size": "words",
}
_SWITCHES = {"gated": "feed-forward layers with a gate", "bias": "projections with biases"}


def add_options(parser: Parser) -> None:
    model = parser.add_argument_group("model: a preset, changed by options; or one that is there")
    which = model.add_mutually_exclusive_group()
    which.add_argument("--model", help=f"{', '.join(PRESETS)} (default {DEFAULT})")
    which.add_argument("--job", type=Path, help="the folder of a job, or its record.json")
    which.add_argument("--checkpoint", type=Path, help="a checkpoint of fairseq's or the plugin's")
    for name, meaning in _NUMBERS.items():
        model.add_argument(f"--{name.replace('_', '-')}", type=whole_number, help=meaning)
    model.add_argument("--positions", type=int, help="longest line; 0: no limit")
    model.add_argument("--window", type=whole_number, help="of decoder self-attention")
    for name, meaning in _SWITCHES.items():
        model.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=meaning)


def find_model(args: argparse.Namespace) -> tuple[str, Architecture]:
    """What the model is called, and its numbers; raises ExperimentError, one line."""
    if args.job is None and args.checkpoint is None:
        try:
            return _of_preset(args)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
    for name in (*_NUMBERS, *_SWITCHES, "positions", "window"):
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise ExperimentError(
                f"--{option} changes a preset (--model), not a model that is there"
            )
    if args.job is not None:
        path = args.job / RECORD_NAME if args.job.is_dir() else args.job
        record = read_record(path)
        return f"{record.job.experiment}/{record.name}", record.architecture
    from experiments.stages.uptraining.parent import read_recipe  # a checkpoint takes seconds

    if not args.checkpoint.is_file():
        raise ExperimentError(f"--checkpoint {args.checkpoint}: no such file")
    return args.checkpoint.name, read_recipe(args.checkpoint).architecture


def _of_preset(args: argparse.Namespace) -> tuple[str, Architecture]:
    name = args.model or DEFAULT
    if name not in PRESETS:
        raise ValueError(f"--model {name} is unknown: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    asked = {
        key: value
        for key in (*_NUMBERS, *_SWITCHES, "positions")
        if key in Preset.__dataclass_fields__ and (value := getattr(args, key)) is not None
    }
    if args.positions is not None and args.positions < 0:
        raise ValueError(f"--positions {args.positions} must be 0, which is no limit, or more")
    check_window(args.window)
    preset = replace(preset, **asked)
    multi_head = architecture_of(preset, args.head_dim)
    layers = {
        f"{side}_layers": number
        for side in ("encoder", "decoder")
        if (number := getattr(args, f"{side}_layers")) is not None
    }
    changed = asked.keys() | layers.keys() or args.window or args.head_dim
    return name + (" (changed)" if changed else ""), replace(
        multi_head, window=args.window, **layers
    )


def architecture_of(preset: Preset, head_dim: int | None = None) -> Architecture:
    """The numbers of a preset, with heads of its width over heads or of another.

    Raises ValueError, one line, for what cannot be.
    """
    if preset.gated and preset.d_ff % 2:
        raise ValueError(f"d_ff {preset.d_ff} of a gated layer must be even to be counted")
    d_ff = 3 * preset.d_ff // 2 if preset.gated else preset.d_ff
    if head_dim is None:
        head_dim = head_dim_of(preset.d_model, preset.heads)
    heads = Heads.checked(preset.heads, head_dim, None)
    return Architecture(
        name=BASELINE_NAME,
        d_model=preset.d_model,
        encoder_heads=heads,
        decoder_heads=heads,
        window=None,
        encoder_layers=preset.layers,
        decoder_layers=preset.layers,
        encoder_d_ff=d_ff,
        decoder_d_ff=d_ff,
        bias=preset.bias,
        pre_norm=preset.pre_norm,
        vocab_size=preset.vocab_size,
        max_source_positions=preset.positions,
        max_target_positions=preset.positions,
        embeddings=preset.embeddings,
    )
