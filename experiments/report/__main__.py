"""`python -m experiments.report --records DIR`: the report of all records below DIR."""

import sys
from pathlib import Path

from data_prep.system.surroundings import console_of, settle
from experiments.arguments import Parser
from experiments.errors import ExperimentError
from experiments.records.record import read_records
from experiments.records.significance import find_comparisons
from experiments.records.speed import find_measurements
from experiments.report.groups import group_records
from experiments.report.reference import read_papers
from experiments.report.render import terminal_table, write_report


def main(arguments: list[str] | None = None) -> int:
    """Write the report and print its overview; returns the exit code."""
    parser = Parser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument(
        "--records",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of record.json files, at any depth (may be given several times)",
    )
    parser.add_argument(
        "--measurements",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of measurements, which all speeds come from (may be given several times; "
        "default: measurements/ beside the records)",
    )
    parser.add_argument(
        "--tests",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of tests that python -m experiments.significance made (may be given several "
        "times; default: tests/ beside the records)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/report"), help="folder (%(default)s)"
    )
    settle()
    try:
        options = parser.parse_args(arguments)
        records = [record for folder in options.records for record in read_records(folder)]
        if not records:
            folders = ", ".join(map(str, options.records))
            raise ExperimentError(
                f"{folders}: no record.json in it (run an experiment first, such as "
                "`make quickstart`)"
            )
        groups = group_records(
            records,
            find_measurements(options.records, options.measurements),
            find_comparisons(options.records, options.tests),
        )
        path = write_report(groups, read_papers(), options.out)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = console_of(wraps=True)
    for group in groups:
        console.print(terminal_table(group))
    console.print(f"report: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
