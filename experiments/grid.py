"""Predicted against measured: decoding times of many loads, and the papers' protocols.

    python -m experiments.grid grid --budget-minutes 120      # the paper's model, 1,024 positions
    python -m experiments.grid grid --dry-run                 # what it would do, and in which order
    python -m experiments.grid table2                         # Shazeer 2019, table 2
    python -m experiments.grid figure6-t5-large               # Ainslie et al. 2023, figure 6
    python -m experiments.grid figure6-t5-xxl --kv-heads 64,1 --decoder-layers 2   # for less time
    python -m experiments.grid page                           # docs/intensity.md from the records
    python -m experiments.grid predict-again                  # in the records, by today's model

Every cell is one load, which the models take in turns at, and one record in --out, which has the
prediction beside the measured times. The cheapest cells come first. A cell whose record is there is
not measured again: the same command goes on where it was. What does not fit the memory or the time
is predicted alone. Quiet machines only: other work makes every figure worse.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from experiments.arguments import Parser, asked_threads, command, list_of, whole_number
from experiments.errors import ExperimentError
from experiments.intensity import models, plans
from experiments.intensity.campaign import (
    Campaign,
    Settings,
    predict_again,
    read_cells,
    read_folders,
)
from experiments.intensity.cells import CLOSE, closeness, needed_bytes
from experiments.intensity.machines import find_machine, usable_bytes
from experiments.intensity.page import write_page
from experiments.measure.request import Dtype, refuse_doubled

PAGE, PREDICT_AGAIN = "page", "predict-again"
PLANS = ("grid", "table2", *(f"figure6-{preset}" for preset in plans.FIGURE_6))
FOLDER = Path("outputs/intensity")  # with a folder for each device, which has one for each plan
# Options that some plans alone have a use for, by plan; the grid takes all but --records.
_OF_ALL = {"plan", "out", "budget_minutes", "repeats", "device", "dtype", "dry_run"}
_OF_RECORDS = {"plan", "device", "records"}
_USED = {
    PAGE: _OF_RECORDS,
    PREDICT_AGAIN: _OF_RECORDS,
    "table2": _OF_ALL,
    **{f"figure6-{preset}": _OF_ALL | {"kv_heads", "decoder_layers"} for preset in plans.FIGURE_6},
}


def run(args: argparse.Namespace) -> None:
    """Carry out a plan, or make the page; raises ExperimentError, one line."""
    if args.plan in (PAGE, PREDICT_AGAIN):
        records = args.records or FOLDER / args.device
        if args.plan == PREDICT_AGAIN:
            for folder in read_folders(records):
                predict_again(folder)
            return
        for path in write_page(records):
            print(path)
        return
    campaign = Campaign(*_plan_and_settings(args))
    if args.dry_run:
        _show(campaign)
        return
    campaign.run()
    close, count = closeness(campaign.done.values())
    missing = len(campaign.plan.cells) - len(campaign.done)
    print(
        f"{len(campaign.done)} cells measured, {missing} predicted alone; "
        f"{close} of {count} predictions are within {CLOSE:.0%} of what was measured"
    )


def _plan_and_settings(args: argparse.Namespace) -> tuple[plans.Plan, Settings]:
    folder = args.out or FOLDER / args.device / args.plan
    dtype: Dtype = args.dtype or ("float32" if args.device == "cpu" else "float16")
    if args.plan == "grid":
        _check_grid(args, dtype)
    machine = find_machine(f"here-{args.device}")
    rates = sorted(kind for kind in machine.flops_per_s if kind != "int8")
    if dtype not in rates:
        raise ExperimentError(
            f"--dtype {dtype}: {machine.name} has no rate for it: choose one of {', '.join(rates)}"
        )
    memory = usable_bytes(machine, args.device)
    try:
        plan = _plan(args, dtype, memory, folder)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    return plan, Settings(
        folder=folder,
        machine=machine,
        memory_bytes=memory,
        budget_s=60 * args.budget_minutes,
        device=args.device,
        dtype=dtype,
        threads=asked_threads(),
        repeats=args.repeats,
    )


def _check_grid(args: argparse.Namespace, dtype: Dtype) -> None:
    """Refuse what no cell can be made of, before the machine is asked anything."""
    for name in ("batches", "lengths", "beams", "kv_heads", "weights"):
        refuse_doubled(f"--{name.replace('_', '-')}", getattr(args, name) or [])
    if min(args.lengths) < 2:
        raise ExperimentError(
            "--lengths 1: a target has at least 2 tokens (one ends the sentence): give more"
        )
    longest = max(args.lengths)
    if args.positions is not None and args.positions < longest:
        raise ExperimentError(
            f"--positions {args.positions}: the models of the grid learn a vector for each "
            f"position, and lines have {longest:,} tokens: give at least as many"
        )
    weights = _weights(args, dtype)
    for kind in args.weights or []:
        if kind not in weights:
            raise ExperimentError(
                f"--weights {kind} cannot be measured with {dtype} on {args.device}: choose of "
                f"{', '.join(weights)}"
            )


def _weights(args: argparse.Namespace, dtype: Dtype) -> list[str]:
    """The types of weights that can be measured."""
    return [dtype, "int8"] if (args.device, dtype) == ("cpu", "float32") else [dtype]


def _plan(args: argparse.Namespace, dtype: Dtype, memory: int, folder: Path) -> plans.Plan:
    if args.plan == "table2":
        return plans.table_2(dtype)
    if args.plan != "grid":
        refuse_doubled("--kv-heads", args.kv_heads or [])
        layers = args.decoder_layers or _measured_layers(folder)
        preset = args.plan.removeprefix("figure6-")
        return plans.figure_6(preset, dtype, memory, args.kv_heads, layers)
    return plans.grid(
        models.find_model(args)[1],
        kv_heads=args.kv_heads or plans.KV_HEADS,
        batches=args.batches,
        lengths=args.lengths,
        beams=args.beams,
        weights=args.weights or _weights(args, dtype),
        cache=dtype,
        positions=plans.POSITIONS if args.positions is None else args.positions,
    )


def _measured_layers(folder: Path) -> int | None:
    """Those of the decoder in the first record: a plan goes on with as many as it began with.

    How many fit depends on the memory that is free at the moment.
    """
    record = next(iter(read_cells(folder).values()), None)
    return record.cell.architectures[0].decoder_layers if record else None


def _show(campaign: Campaign) -> None:
    """The cells in their order, with the time and the memory that each is expected to take.

    The budget also has to do for the starts of processes and the overheads.
    """
    total = 0.0
    within = {cell.name for cell in campaign.affordable()}
    for cell in campaign.to_do():
        cost = campaign.cost_s(cell)
        total += cost
        size = needed_bytes(cell) / 2**30
        beyond = "" if cell.name in within else "  beyond the budget"
        print(
            f"{cell.name:<32} {cost / 60:8.1f} min {total / 60:9.1f} min in all {size:7.1f} GiB"
            f"{beyond}"
        )
    for cell in campaign.plan.cells:
        if cell.name in campaign.done:
            print(f"{cell.name:<32} measured")
        elif not campaign.fits(cell):
            print(f"{cell.name:<32} does not fit: {needed_bytes(cell) / 2**30:.1f} GiB")


def _minutes(text: str) -> float:
    """An argparse type: a number that is not below 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes")
    return minutes


def _refuse_unused(args: argparse.Namespace, parser: Parser) -> None:
    """Refuse options that a plan would leave aside."""
    used = _USED.get(args.plan, vars(args).keys() - {"records"})
    for name, value in vars(args).items():
        if name not in used and value != parser.get_default(name):
            raise ExperimentError(
                f"--{name.replace('_', '-')} has no use in {args.plan} (leave it out)"
            )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m experiments.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", choices=(*PLANS, PAGE, PREDICT_AGAIN))
    parser.add_argument("--out", type=Path, help=f"records (default: {FOLDER}/DEVICE/PLAN)")
    parser.add_argument(
        "--budget-minutes", type=_minutes, default=120.0, help="default %(default)s"
    )
    parser.add_argument("--repeats", type=whole_number, default=3, help="rounds (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="of all that is not int8 (default: float32, on a GPU float16)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the cells in their order")
    parser.add_argument(
        "--records", type=Path,
        help=f"of the page: a folder with a folder for each plan (default: {FOLDER}/DEVICE)",
    )  # fmt: skip
    parser.add_argument(
        "--kv-heads", type=list_of(whole_number),
        help=f"of grid and figure6 (default: {','.join(map(str, plans.KV_HEADS))}; the figure's)",
    )  # fmt: skip
    grid = parser.add_argument_group("of the grid: each batch at each length with each beam")
    for name, default in (
        ("batches", plans.BATCHES),
        ("lengths", plans.LENGTHS),
        ("beams", plans.BEAMS),
    ):
        grid.add_argument(
            f"--{name}", type=list_of(whole_number), default=list(default),
            help=f"default {','.join(map(str, default))}",
        )  # fmt: skip
    grid.add_argument("--weights", type=list_of(str), help="default: DTYPE and, on a CPU, int8")
    models.add_options(parser)
    return parser


@command(resumes=True)
def main(arguments: list[str] | None = None) -> int:
    """Carry out a plan; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    _refuse_unused(args, parser)
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
