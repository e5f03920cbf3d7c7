"""`python -m experiments.tracking --records DIR`: all records below DIR as runs in wandb."""

import sys
from pathlib import Path
from typing import get_args

from data_prep.system.surroundings import settle
from experiments.arguments import Parser
from experiments.errors import ExperimentError
from experiments.records.record import read_records
from experiments.records.speed import find_measurements
from experiments.tracking.runs import PROJECT, Mode, how_to_sync, log_record


def main(arguments: list[str] | None = None) -> int:
    """Log every record of a folder with its speed; returns the exit code."""
    parser = Parser(prog="python -m experiments.tracking", description=__doc__)
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
    parser.add_argument("--mode", choices=get_args(Mode), default="offline")
    parser.add_argument("--project", default=PROJECT, help="wandb's project")
    parser.add_argument("--dir", type=Path, default=Path("outputs"), help="where wandb/ is made")
    settle()
    try:
        options = parser.parse_args(arguments)
        records = read_records(options.records)
        if not records:
            raise ExperimentError(f"{options.records}: no record.json in it (run an experiment)")
        measurements = find_measurements([options.records], options.measurements)
        for record in records:
            log_record(record, options.mode, options.dir, options.project, measurements)
            print(f"{record.name}: {options.mode}")
        if options.mode == "offline":
            print(how_to_sync(options.dir))
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
