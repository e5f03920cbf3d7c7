"""Groups of made-up records, the cells of their tables, and the command's report of a folder."""

from pathlib import Path

import pytest
import synthetic_records as synthetic

from experiments.records.measurement import Measurement
from experiments.records.record import RECORD_NAME, Record, write_record
from experiments.report.__main__ import main
from experiments.report.cells import Table
from experiments.report.groups import Group, group_records
from experiments.report.tables import overview

HEADS = (8, 4, 2, 1)


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Cell texts by row name and column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def group_of(records: list[Record], *measurements: Measurement) -> Group:
    """The one group of the records; without measurements, all of them are measured together."""
    (group,) = group_records(records, measurements or [synthetic.measurement(records)])
    return group


def overview_cells(records: list[Record], *measurements: Measurement) -> dict[str, dict[str, str]]:
    return cells(overview(group_of(records, *measurements)))


def make(folder: Path, *more: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The report of `folder`/results, made as `make report` makes it."""
    monkeypatch.chdir(folder)
    arguments = ["--records", "results/runs", "--measurements", "results/measurements"]
    return main([*arguments, "--tests", "results/tests", "--out", "results/report", *more])


def save(folder: Path, *records: Record) -> list[Path]:
    paths = [folder / f"job{place}" / RECORD_NAME for place in range(len(records))]
    for path, record in zip(paths, records, strict=True):
        write_record(path, record)
    return paths
