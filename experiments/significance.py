"""Test each variant's translations against the baseline's, and keep what came out.

    python -m experiments.significance --records outputs/runs/quickstart --out outputs/tests

Tests that are there are not made again. The counts that records keep suffice: no reference is
needed. A report shows the tests that it finds; it makes none.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from experiments.arguments import Parser, command
from experiments.errors import ExperimentError
from experiments.records.record import Record, read_record, record_files
from experiments.records.significance import (
    Settings,
    comparison_key,
    read_comparison,
    write_comparison,
)
from experiments.records.storage import read_each
from experiments.report.groups import group_records
from experiments.report.quality.comparisons import pairs
from experiments.report.quality.testing import Kept, compared


def make_tests(
    records: Sequence[Record], kept: Kept, out: Path, settings: Settings | None = None
) -> int:
    """Make the tests that `out` lacks, with a line for each that is made or cannot be.

    Returns how many have translations that are not those of their records, or cannot be compared.
    """
    settings = settings or Settings()
    tables = [table for group in group_records(records) for table in pairs(group)]
    failed = 0
    for pair in chain.from_iterable(tables):
        sides = pair.sides
        name = f"{pair.variant.name} against {pair.baseline.name} on {pair.title}"
        if _is_made(out / f"{comparison_key(sides, settings)}.json"):
            continue
        lacking = [digest for digest in [*sides.baseline, *sides.variant] if digest not in kept]
        if lacking:
            print(f"not tested: {name}: translations {lacking[0][:12]} are not beside the records")
            continue
        try:
            write_comparison(out, compared(pair, kept, settings))
            print(f"tested: {name}")
        except ExperimentError as error:
            print(f"error: not tested: {name}: {error}", file=sys.stderr)
            failed += 1
    return failed


def _is_made(path: Path) -> bool:
    """Whether the tests are there; those that are damaged are made again."""
    try:
        return path.exists() and bool(read_comparison(path))
    except ExperimentError as error:
        print(f"made again: {error}")
        return False


@command()
def main(arguments: list[str] | None = None) -> int:
    """Make what is missing; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.significance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--records",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of record.json files with their hypotheses, at any depth (may be given "
        "several times)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/tests"),
        metavar="DIR",
        help="folder (%(default)s)",
    )
    options = parser.parse_args(arguments)
    files = [path for folder in options.records for path in record_files(folder)]
    records, refused = read_each(dict.fromkeys(files), read_record)
    for line in refused:
        print(f"error: left out: {line}", file=sys.stderr)
    failed = make_tests(list(records.values()), Kept(options.records), options.out)
    if records and not options.out.is_dir():
        print("nothing to test: no record of a variant has that of its multi-head model beside it")
    return 2 if failed or refused else 0


if __name__ == "__main__":
    sys.exit(main())
