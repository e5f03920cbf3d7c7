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
from experiments.records.record import RECORD_NAME
from experiments.report.archive import read_archive
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
    return log_folder(_options(given))


def log_folder(options: argparse.Namespace) -> int:
    """A run for each record, and one for each group of records that can be compared.

    Files that cannot be read are named and left out; returns the exit code.
    """
    archive = read_archive([options.records], options.measurements, options.tests)
    for line in archive.refused:
        print(f"error: left out: {line}", file=sys.stderr)
    if not archive.records:
        raise ExperimentError(
            f"{options.records}: no {RECORD_NAME} in it that can be read (run an experiment)"
        )
    measurements = list(archive.measurements.values())
    groups = group_records(archive.records.values(), measurements, archive.tests)
    tested = {
        (group.first.job.experiment, job): values  # several may share a job
        for group in groups
        for job, values in differences_of_seeds(group).items()
    }
    wanted = {
        path: record
        for path, record in archive.records.items()
        if not options.only or record.name in options.only
    }
    if unknown := set(options.only) - {record.name for record in wanted.values()}:
        raise ExperimentError(f"{options.records}: no record of {min(unknown)} in it")
    where = options.mode, options.dir, options.project
    for path, record in wanted.items():
        hypotheses = path.parent / "hypotheses"
        log_record(
            record,
            *where,
            measurements,
            more=tested.get((record.job.experiment, record.job.id)),
            hypotheses=hypotheses if hypotheses.is_dir() else None,
        )
        print(f"{record.name}: {options.mode}")
    for group in groups:
        if len(group.finished) > 1:
            print(f"{log_means(group, *where)}: {options.mode}")
    if options.mode == "offline":
        print(how_to_sync(options.dir))
    return 2 if archive.refused else 0


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
