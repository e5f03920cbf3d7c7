"""Predicted against measured: decoding times of many loads, and the papers' protocols.

    python -m experiments.grid grid --budget-minutes 120      # the paper's model, 1,024 positions
    python -m experiments.grid grid --dry-run                 # what it would do, and in which order
    python -m experiments.grid table2                         # Shazeer 2019, table 2
    python -m experiments.grid figure6-t5-large               # Ainslie et al. 2023, figure 6
    python -m experiments.grid page                           # docs/intensity.md from the records

Every cell is one load, which the models take in turns at, and one record in --out, which has the
prediction beside the measured times. The cheapest cells come first. A cell whose record is there is
not measured again: the same command goes on where it was. What does not fit the memory or the time
is predicted alone. Quiet machines only: other work makes every figure worse.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import psutil

from experiments.arguments import Parser, asked_threads, command, whole_number
from experiments.errors import ExperimentError
from experiments.intensity import models, plans
from experiments.intensity.campaign import Campaign, Settings
from experiments.intensity.cells import needed_bytes
from experiments.intensity.machines import find_machine
from experiments.intensity.page import RECORDS, write_page
from experiments.measure.request import Dtype

PAGE = "page"
PLANS = ("grid", "table2", *(f"figure6-{preset}" for preset in plans.FIGURE_6))
SHARE_OF_MEMORY = 0.85  # the rest is for Python, torch and whoever else is there


def run(args: argparse.Namespace) -> None:
    """Carry out a plan, or make the page; raises ExperimentError, one line."""
    if args.plan == PAGE:
        for path in write_page(args.records):
            print(path)
        return
    campaign = Campaign(*_plan_and_settings(args))
    if args.dry_run:
        _show(campaign)
        return
    campaign.run()
    close = [one.is_close for record in campaign.done.values() for one in record.predictions]
    missing = len(campaign.plan.cells) - len(campaign.done)
    print(
        f"{len(campaign.done)} cells measured, {missing} predicted alone; "
        f"{sum(close)} of {len(close)} predictions are within 25 % of what was measured"
    )


def _plan_and_settings(args: argparse.Namespace) -> tuple[plans.Plan, Settings]:
    machine = find_machine("here" if args.device == "cpu" else "here-cuda")
    memory = machine.memory_bytes if args.device == "cuda" else psutil.virtual_memory().available
    memory = int(SHARE_OF_MEMORY * memory)
    dtype: Dtype = args.dtype or ("float32" if args.device == "cpu" else "float16")
    try:
        plan = _plan(args, dtype, memory)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    return plan, Settings(
        folder=args.out or Path("outputs/intensity") / args.plan,
        machine=machine,
        memory_bytes=memory,
        budget_s=60 * args.budget_minutes,
        device=args.device,
        dtype=dtype,
        threads=asked_threads(),
        repeats=args.repeats,
    )


def _plan(args: argparse.Namespace, dtype: str, memory: int) -> plans.Plan:
    if args.plan == "table2":
        return plans.table_2(dtype)
    if args.plan != "grid":
        return plans.figure_6(args.plan.removeprefix("figure6-"), dtype, memory)
    weights = [dtype, "int8"] if (args.device, dtype) == ("cpu", "float32") else [dtype]
    for kind in args.weights or []:
        if kind not in weights:
            raise ExperimentError(
                f"--weights {kind} cannot be measured with {dtype} on {args.device}: choose of "
                f"{', '.join(weights)}"
            )
    return plans.grid(
        models.find_model(args)[1],
        kv_heads=args.kv_heads,
        batches=args.batches,
        lengths=args.lengths,
        beams=args.beams,
        weights=args.weights or weights,
        cache=dtype,
        positions=args.positions or plans.POSITIONS,
    )


def _show(campaign: Campaign) -> None:
    """The cells in their order, with the time and the memory that each is expected to take."""
    total = 0.0
    for cell in campaign.to_do():
        cost = campaign.cost_s(cell)
        total += cost
        size = needed_bytes(cell) / 2**30
        print(f"{cell.name:<32} {cost / 60:8.1f} min {total / 60:9.1f} min in all {size:7.1f} GiB")
    for cell in campaign.plan.cells:
        if cell.name in campaign.done:
            print(f"{cell.name:<32} measured")
        elif not campaign.fits(cell):
            print(f"{cell.name:<32} does not fit: {needed_bytes(cell) / 2**30:.1f} GiB")


def _numbers(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m experiments.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", choices=(*PLANS, PAGE))
    parser.add_argument("--out", type=Path, help="records (default: outputs/intensity/PLAN)")
    parser.add_argument("--budget-minutes", type=float, default=120.0, help="default %(default)s")
    parser.add_argument("--repeats", type=whole_number, default=3, help="rounds (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="of all that is not int8 (default: float32, on a GPU float16)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the cells in their order")
    parser.add_argument(
        "--records", type=Path, default=RECORDS,
        help="of the page: a folder with a folder of records for each plan (default %(default)s)",
    )  # fmt: skip
    grid = parser.add_argument_group("of the grid: each batch at each length with each beam")
    for name, default in (
        ("batches", plans.BATCHES),
        ("lengths", plans.LENGTHS),
        ("beams", plans.BEAMS),
        ("kv-heads", plans.KV_HEADS),
    ):
        grid.add_argument(
            f"--{name}", type=_numbers, default=list(default),
            help=f"default {','.join(map(str, default))}",
        )  # fmt: skip
    grid.add_argument(
        "--weights", type=lambda text: text.split(","), help="default: DTYPE and, on a CPU, int8"
    )
    models.add_options(parser)
    return parser


@command(resumes=True)
def main(arguments: list[str] | None = None) -> int:
    """Carry out a plan; returns the exit code."""
    run(_parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
