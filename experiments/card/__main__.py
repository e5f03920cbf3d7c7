"""One part, in this process: `python -m experiments.card PART --device DEVICE --out FOLDER`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from experiments.arguments import Parser, asked_threads, command
from experiments.card.models import Asked
from experiments.card.parts import BY_NAME


@command()
def main(arguments: list[str] | None = None) -> int:
    """Carry out one part; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=sorted(BY_NAME))
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the card's folder of records")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds")
    args = parser.parse_args(arguments)
    asked = Asked(args.device, args.out, args.limit, asked_threads())
    importlib.import_module(BY_NAME[args.part].module).run(asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
