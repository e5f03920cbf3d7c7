"""`python -m experiments.tracking --records DIR`: all records below DIR as runs in wandb.

`python -m experiments.tracking workspace` saves the view that shows them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from experiments.arguments import Parser, command
from experiments.errors import ExperimentError
from experiments.records.record import RECORD_NAME, Record, read_record
from experiments.records.significance import find_comparisons
from experiments.records.speed import find_measurements
from experiments.report.groups import group_records
from experiments.tracking import workspace
from experiments.tracking.means import differences_of_seeds, log_means
from experiments.tracking.runs import PROJECT, Mode, how_to_sync, log_record


@command()
def main(arguments: list[str] | None = None) -> int:
    """Log every record of a folder with what was measured and tested; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["workspace"]:
        return workspace.main(given[1:])
    log_folder(_options(given))
    return 0


def log_folder(options: argparse.Namespace) -> None:
    """A run for each record, and one for each group of records that can be compared."""
    records = _read(options.records)
    measurements = find_measurements([options.records], options.measurements)
    comparisons = find_comparisons([options.records], options.tests)
    groups = group_records(records.values(), measurements, comparisons)
    tested = {job: values for g in groups for job, values in differences_of_seeds(g).items()}
    wanted = {p: r for p, r in records.items() if not options.only or r.name in options.only}
    if unknown := set(options.only) - {record.name for record in wanted.values()}:
        raise ExperimentError(f"{options.records}: no record of {min(unknown)} in it")
    where = options.mode, options.dir, options.project
    for path, record in wanted.items():
        hypotheses = path.parent / "hypotheses"
        log_record(
            record,
            *where,
            measurements,
            more=tested.get(record.job.id),
            hypotheses=hypotheses if hypotheses.is_dir() else None,
        )
        print(f"{record.name}: {options.mode}")
    for group in groups:
        if len(group.finished) > 1:
            print(f"{log_means(group, *where)}: {options.mode}")
    if options.mode == "offline":
        print(how_to_sync(options.dir))


def _read(folder: Path) -> dict[Path, Record]:
    if not folder.is_dir():
        raise ExperimentError(f"{folder}: no such folder of records (run an experiment first)")
    found = {path: read_record(path) for path in sorted(folder.rglob(RECORD_NAME))}
    if not found:
        raise ExperimentError(f"{folder}: no {RECORD_NAME} in it (run an experiment)")
    return found


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=Path, required=True, help="folder of record.json files")
    parser.add_argument(
        "--measurements",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of measurements (may be given several times; default: measurements/ beside "
        "the records)",
    )
    parser.add_argument(
        "--tests",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of tests of quality (may be given several times; default: tests/ beside the "
        "records)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="log the record of this name alone (may be given several times); summaries are of all",
    )
    parser.add_argument("--mode", choices=get_args(Mode), default="offline")
    parser.add_argument("--project", default=PROJECT, help="wandb's project")
    parser.add_argument("--dir", type=Path, default=Path("outputs"), help="where wandb/ is made")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
