"""Groups of made-up records, and the cells of their tables, for tests of the report."""

import synthetic_records as synthetic

from experiments.records.measurement import Measurement
from experiments.records.record import Record
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
