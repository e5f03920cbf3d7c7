"""What differs between jobs: config, scores with tests, speed, and lines that they translate apart.

    python -m experiments.compare results/runs/quickstart
    python -m experiments.compare outputs/runs/quickstart/JOB outputs/runs/quickstart/JOB
    python -m experiments.compare variant=mha variant=mqa,seed=1 --records results/runs

What is compared is given as a job, a folder of jobs, or a filter: values of `variant`, `seed`,
`experiment` or a key of the config such as `train.max_updates`. The seeds of a variant are one
side where nothing else in their configs differs, and all others are set against the first one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.box
import rich.table

from data_prep.system.surroundings import console_of
from experiments.arguments import Parser, command, whole_number
from experiments.errors import ExperimentError
from experiments.records.record import RECORD_NAME, Record
from experiments.records.significance import Settings
from experiments.report.archive import Archive, in_words, read_archive
from experiments.report.cells import Table
from experiments.report.differences import (
    Side,
    apart,
    config_table,
    facts_of,
    score_tables,
    speed_table,
)
from experiments.report.groups import group_records
from experiments.report.quality.testing import Kept

MOST_COLUMNS = 6  # of those that grow with the sides: more are too narrow to be read


def check_given(given: Sequence[str]) -> None:
    """Raise ExperimentError for what is neither a folder, nor a record, nor a filter."""
    for each in given:
        path = Path(each)
        if path.is_file() and path.name != RECORD_NAME:
            raise ExperimentError(f"{each}: no {RECORD_NAME} (give a job's folder or its record)")
        if not path.exists():
            parts = [part.partition("=") for part in each.split(",")]
            if not all(key and equals and value for key, equals, value in parts):
                raise ExperimentError(f"{each}: no such folder, and no filter such as variant=mqa")


def records_of(archive: Archive, given: str) -> list[Record]:
    """The records of a folder or a filter; raises ExperimentError where there is none."""
    path = Path(given)
    if path.exists():
        inside = path.absolute() if path.is_dir() else path.absolute().parent
        found = [r for p, r in archive.records.items() if inside in p.absolute().parents]
        remedy = "give the folder of a job, or one with jobs in it"
    else:
        wanted = dict(part.split("=", 1) for part in given.split(","))
        facts = [(record, facts_of(record)) for record in archive.records.values()]
        for key in wanted:
            if facts and not any(key in known for _, known in facts):
                raise ExperimentError(
                    f"{given}: no record has a {key} (variant, seed, experiment, or a key of the "
                    "config such as train.max_updates)"
                )
        found = [record for record, known in facts if wanted.items() <= known.items()]
        remedy = "--records DIR says where to look"
    if not found:
        raise ExperimentError(f"{given}: no record that can be read ({remedy})")
    return found


def sides_of(archive: Archive, given: Sequence[str]) -> list[Side]:
    """A side for each row of what each argument names, in the groups that a report has.

    Jobs whose configs differ in more than attention and seed are of different groups. In a group
    the side with the most key/value heads comes first.

    Raises ExperimentError where there are fewer than two.
    """
    named = [group for each in given for group in group_records(records_of(archive, each))]
    sides: list[Side] = []
    for row in (row for group in named for row in group.rows):
        experiment = row.records[0].job.experiment
        seeds = ", ".join(str(record.seed) for record in row.records)
        letter = chr(ord("A") + len(sides)) if len(sides) < 26 else str(len(sides) + 1)
        sides.append(Side(letter, f"{experiment}/{row.name}, seed {seeds}", row))
    if len(sides) < 2:
        raise ExperimentError(
            f"{' '.join(given)}: {len(sides)} variant with a finished job: two are compared"
        )
    return sides


def turned(table: Table) -> Table:
    """A table of a column a side, with a line a side where there are more than a screen takes."""
    if not table.rows or len(table.columns) <= MOST_COLUMNS:
        return table
    heading, *columns = zip(table.columns, *table.rows, strict=True)
    return Table(table.title, ["", *heading[1:]], [list(each) for each in columns], table.notes)


def show(table: Table) -> None:
    """Print a table with its notes."""
    shown = rich.table.Table(
        title=table.title, box=rich.box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
    )
    for place, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    console = console_of(wraps=True)
    console.print(shown if table.rows else f"{table.title}: nothing differs")
    for note in table.notes:
        console.print(note)


@command()
def main(arguments: list[str] | None = None) -> int:
    """Compare and print; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sides", nargs="+", metavar="A", help="a job, a folder, or a filter")
    parser.add_argument(
        "--records",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder that filters look through (may be given several times; outputs/runs)",
    )
    parser.add_argument(
        "--measurements", type=Path, action="append", default=[], metavar="DIR", help="of speed"
    )
    parser.add_argument(
        "--tests", type=Path, action="append", default=[], metavar="DIR", help="of significance"
    )
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of prepared data, for source and reference (outputs/data)",
    )
    parser.add_argument("--lines", type=whole_number, default=20, help="how many (%(default)s)")
    options = parser.parse_args(arguments)
    check_given(options.sides)
    paths = [Path(given) for given in options.sides if Path(given).exists()]
    folders = [path if path.is_dir() else path.parent for path in paths]
    filters = len(paths) < len(options.sides)
    folders += options.records or ([Path("outputs/runs")] if filters else [])
    # A job's measurement and tests lie beside its experiment.
    beside = [f.parent if (f / RECORD_NAME).exists() else f for f in map(Path.absolute, folders)]
    # A job and its own rerun have one id, and may be the two that are compared.
    archive = read_archive(folders, options.measurements, options.tests, beside, each_once=False)
    for line in archive.refused:
        print(f"error: left out: {line}", file=sys.stderr)
    sides = sides_of(archive, options.sides)
    for side in sides:
        files = filter(None, map(archive.path_of, side.records))
        print(f"{side.letter}: {side.label} ({', '.join(in_words(path) for path in files)})")
    show(turned(config_table(sides)))
    for table in score_tables(sides, archive, Kept(folders), Settings()):
        show(table)
    show(turned(speed_table(sides, archive)))
    for line in apart(sides, archive, options.data or [Path("outputs/data")], options.lines):
        print(line)
    return 2 if archive.refused else 0


if __name__ == "__main__":
    sys.exit(main())
