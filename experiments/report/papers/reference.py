"""The papers' numbers (results/reference/): strictly read, shown as printed."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from experiments.errors import ExperimentError
from experiments.records.storage import read_json
from experiments.report.cells import NOT_APPLICABLE, Table

REFERENCE_FOLDER = Path(__file__).resolve().parents[3] / "results" / "reference"
NOT_COMPARABLE = (
    "As published. Vocabularies, hardware, training and, but for WMT14, the corpora differ from "
    "the runs of this report: the values must not be compared, beyond what the tables of WMT14 "
    "set side by side."
)

Cell = str | int | float | None


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of a published table; `unit` is null where there is none.

    `digits` after the point are shown as printed; by default a number is shown as it is stored.
    """

    name: str
    unit: str | None
    digits: int | None = None

    def show(self, cell: Cell) -> str:
        """The cell as the paper prints it."""
        if cell is None:
            return NOT_APPLICABLE
        return (
            str(cell) if self.digits is None or isinstance(cell, str) else f"{cell:.{self.digits}f}"
        )


class PublishedTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table; a cell that the paper leaves empty is null."""

    name: str
    about: str
    conditions: list[str]
    columns: list[Column]
    rows: list[list[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {row} has {len(row)} cells for {len(self.columns)} columns")

    def shown(self, where: Mapping[str, Cell], column: str) -> str:
        """A cell as the paper prints it, of the one row that has the cells of `where`.

        Raises ExperimentError unless that is one row and the column is there.
        """
        names = [each.name for each in self.columns]
        rows = [dict(zip(names, row, strict=True)) for row in self.rows]
        found = [row for row in rows if where.items() <= row.items()]
        if len(found) != 1 or column not in names:
            raise ExperimentError(
                f"{self.name} ({self.about}): no single cell {column} with {dict(where)} (restore "
                "results/reference from git)"
            )
        return self.columns[names.index(column)].show(found[0][column])


class Paper(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One paper; `arxiv` is its arXiv number."""

    citation: str
    arxiv: str
    tables: list[PublishedTable]


def read_papers(folder: Path = REFERENCE_FOLDER) -> list[Paper]:
    """The papers of a folder, oldest arXiv number first; raises ExperimentError."""
    papers = [read_json(path, Paper) for path in sorted(folder.glob("*.json"))]
    if not papers:
        raise ExperimentError(f"{folder}: no reference numbers (restore it from git)")
    return sorted(papers, key=lambda paper: paper.arxiv)


def find_table(papers: list[Paper], arxiv: str, name: str) -> PublishedTable:
    """The table of that name in the paper of that number; raises ExperimentError."""
    for paper in papers:
        for table in paper.tables:
            if (paper.arxiv, table.name) == (arxiv, name):
                return table
    raise ExperimentError(
        f"{name} of arXiv {arxiv} is missing (restore results/reference from git)"
    )


def paper_tables(paper: Paper) -> list[Table]:
    """The tables of `paper` for showing."""
    return [
        Table(
            title=f"{paper.citation.partition(').')[0]}), {table.name}: {table.about}",
            columns=[
                f"{column.name} ({column.unit})" if column.unit else column.name
                for column in table.columns
            ],
            rows=[
                [column.show(cell) for column, cell in zip(table.columns, row, strict=True)]
                for row in table.rows
            ],
            notes=[f"{paper.citation} arXiv {paper.arxiv}.", *table.conditions],
        )
        for table in paper.tables
    ]
