"""What the options of all commands have in common: an error is one line, and counts are counts."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from experiments.environment import usable_cores
from experiments.errors import ExperimentError


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are ExperimentErrors: one line, where it would print its usage."""

    def error(self, message: str) -> NoReturn:
        raise ExperimentError(message)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The folder that a command looks through, as `--outputs`."""
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="folder (default: %(default)s)"
    )


def whole_number(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def asked_threads() -> int:
    """`OMP_NUM_THREADS` where it is a number, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isascii() and given.isdigit() and int(given) else usable_cores()
