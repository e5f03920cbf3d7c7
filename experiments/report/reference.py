"""The papers' numbers (results/reference/): strictly read, shown as printed, never compared."""

from pathlib import Path

import msgspec

from experiments.errors import ExperimentError
from experiments.provenance import ROOT
from experiments.report.tables import NOT_APPLICABLE, Table
from experiments.storage import read_json

REFERENCE_FOLDER = ROOT / "results" / "reference"
NOT_COMPARABLE = (
    "As published. Vocabularies, corpora, hardware and training differ from the runs above: the "
    "values must not be compared."
)


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of a published table; `unit` is null where there is none.

    `digits` after the point are shown as printed; by default a number is shown as it is stored.
    """

    name: str
    unit: str | None
    digits: int | None = None

    def show(self, cell: str | int | float | None) -> str:
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
    rows: list[list[str | int | float | None]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {row} has {len(row)} cells for {len(self.columns)} columns")


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
