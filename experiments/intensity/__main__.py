"""When do fewer key/value heads pay? Predicted for your model, batch, lengths and machine.

    python -m experiments.intensity --machine A100 --batch 64 --source 256 --target 256
    python -m experiments.intensity --model t5-xxl --kv-heads 8 --machine TPUv4
    python -m experiments.intensity --job outputs/runs/quickstart/JOB       # on this machine
    python -m experiments.intensity --layers 12 --d-model 768 --heads 12 --d-ff 3072 --machine CPU
    python -m experiments.intensity --formulas       # the papers' ratios beside the exact ones
    python -m experiments.intensity --published      # Shazeer 2019, table 2: the implied bandwidth

Times are at least what is shown: counted bytes over the bandwidth, or operations over the rate,
whichever is longer, for each part. docs/intensity.md has the argument, and what it leaves out.

models:
{models}

machines:
{machines}
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from data_prep.system.surroundings import console_of
from experiments.arguments import Parser, command, whole_number
from experiments.errors import ExperimentError
from experiments.intensity import models
from experiments.intensity.answer import Answer, answer, asked_load
from experiments.intensity.machines import PRESETS, find_machine
from experiments.intensity.published import published_table
from experiments.intensity.tables import about, formulas_table, parts_table, ratios, speed_table
from experiments.records.storage import write_bytes
from gqa_fairseq.architecture import FEED_FORWARDS, PLACEMENTS
from gqa_fairseq.roofline import BYTES, Machine, check_load

TABLE_WIDTH = 150  # where there is no terminal to ask


def run(args: argparse.Namespace) -> None:
    """Print what was asked for; raises ExperimentError, one line."""
    console = console_of(width=None if sys.stdout.isatty() else TABLE_WIDTH, wraps=True)
    if args.published:
        console.print(published_table())
        return
    name, architecture = models.find_model(args)
    if args.formulas:
        try:
            console.print(formulas_table(architecture, args.batch))
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        return
    machine = find_machine(args.machine, args.measure_again)
    load = asked_load(
        args.batch, args.source, args.target, args.beam, args.weights, args.cache, machine
    )
    try:
        check_load(architecture, load)
        found = answer(
            name,
            architecture,
            load,
            machine,
            placement=args.placement,
            feed_forward=args.feed_forward,
            chosen=args.kv_heads,
        )
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    if args.picture:
        from experiments.intensity.picture import speed_up_picture  # matplotlib: half a second

        write_bytes(args.picture, speed_up_picture(found))
    if args.json:
        print(as_json(found))
        return
    for line in about(found):
        console.print(line, soft_wrap=True)
    for table in (speed_table(found), parts_table(found)):
        console.print()
        console.print(table)
    for line in (ratios(found), found.verdict):
        console.print()
        console.print(line, soft_wrap=True)


def as_json(found: Answer) -> str:
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


def _sources(presets: Mapping[str, models.Preset] | Mapping[str, Machine]) -> str:
    return "\n".join(f"    {name:<9} {preset.source}" for name, preset in presets.items())


def _parser() -> Parser:
    parser = Parser(
        prog="python -m experiments.intensity",
        description=(__doc__ or "").format(
            models=_sources(models.PRESETS), machines=_sources(PRESETS)
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models.add_options(parser)
    load = parser.add_argument_group("load")
    for option, default, meaning in (
        ("batch", 32, "sentences"),
        ("source", 128, "tokens of a source"),
        ("target", 128, "tokens of a target"),
        ("beam", 1, "hypotheses a sentence"),
    ):
        load.add_argument(
            f"--{option}", type=whole_number, default=default, help=f"{meaning} (default {default})"
        )
    load.add_argument(
        "--weights", choices=BYTES, help="type of the matrices (default: the machine's usual one)"
    )
    load.add_argument("--cache", choices=BYTES, help="type of all else (default: the weights')")
    question = parser.add_argument_group("question")
    question.add_argument(
        "--kv-heads", type=whole_number, help="which the verdict is about (default 1)"
    )
    question.add_argument(
        "--placement", choices=PLACEMENTS, help="which attentions change (default: all)"
    )
    question.add_argument(
        "--feed-forward", choices=FEED_FORWARDS, default=FEED_FORWARDS[0],
        help="d_ff keeps the parameter count, or stays (default %(default)s)",
    )  # fmt: skip
    question.add_argument(
        "--machine", default="here",
        help=f"{', '.join(PRESETS)}, a file of measured rates, here or here-cuda (default here: "
        "measured once, and kept in outputs/machines)",
    )  # fmt: skip
    question.add_argument("--measure-again", action="store_true", help="with here")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--picture", type=Path, metavar="PNG", help="speed-up over batch and length")
    instead = shown.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="all numbers, machine-readable")
    instead.add_argument("--formulas", action="store_true", help="the papers' ratios, and exact")
    instead.add_argument("--published", action="store_true", help="table 2 of Shazeer 2019")
    return parser


@command()
def main(arguments: list[str] | None = None) -> int:
    """Answer; returns the exit code."""
    run(_parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
