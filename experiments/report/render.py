"""Groups and papers as Markdown with plots beside it, and as tables for a terminal."""

from pathlib import Path

import jinja2
import rich.box
import rich.table

from experiments.records.storage import write_bytes, write_text
from experiments.report.cells import NOT_MEASURED, Table, markdown_rows
from experiments.report.document import Document, document, group_heading
from experiments.report.groups import Group
from experiments.report.made_by import made_by
from experiments.report.papers.reference import NOT_COMPARABLE, Paper
from experiments.report.papers.wmt14 import INTRODUCTION
from experiments.report.tables import BELOW, overview, overview_columns

TEMPLATE = Path(__file__).with_name("report.md.j2")


def write_report(groups: list[Group], papers: list[Paper], out: Path) -> Path:
    """Write `out`/report.md and its plots, the report last; returns its path.

    Raises ExperimentError when the folder cannot be written.
    """
    return write_markdown(document(groups, papers), out)


def write_markdown(found: Document, out: Path) -> Path:
    """Write `out`/report.md and its plots, the report last; returns its path.

    Raises ExperimentError when the folder cannot be written.
    """
    plots = [
        *(plot for section in found.sections for plot in section.plots),
        *(plot for section in found.sections for _, plot in section.exhibits),
        *(plot for _, plot in found.across),
    ]
    for plot in plots:
        write_bytes(out / plot.path, plot.drawn.png)
    for stale in (out / "plots").glob("[0-9]*-*.png"):
        if f"plots/{stale.name}" not in [plot.path for plot in plots]:
            stale.unlink()
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        report=found,
        wmt14_introduction=INTRODUCTION,
        not_comparable=NOT_COMPARABLE,
        markdown=markdown_table,
    )
    path = out / "report.md"
    write_text(path, text)
    return path


def markdown_table(table: Table) -> str:
    """A Markdown table, text to the left and numbers to the right."""
    return markdown_rows(table.columns, table.rows)


def terminal_table(group: Group) -> rich.table.Table:
    """The overview for a terminal: the same rows, narrow columns."""
    table = overview(group)
    shown = rich.table.Table(
        title=group_heading(group),
        caption=" ".join(
            [
                "µs/token: decoder, per output token (below it the speed-up over MHA).",
                *table.notes,
                *made_by(group.records),
            ]
        ),
        box=rich.box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        padding=0,
    )
    short = list(overview_columns(group).values())
    for heading in filter(None, short):
        name = heading == "variant"
        shown.add_column(
            heading,
            justify="left" if name else "right",
            no_wrap=not name,
            min_width=9 if name else None,
            overflow="fold",  # the end of a name is what tells uptrained models apart
        )
    for row in table.rows:
        cells: list[str] = []
        for cell, under in zip(row, short, strict=True):
            if under == BELOW and cell != cells[-1]:
                cells[-1] += f"\n{cell}"
            elif under:
                cells.append(cell)
        # What is beside a number goes below it: the table fits 80 characters.
        shown.add_row(
            *(
                c.replace(" ± ", "\n±")
                .replace(" (", "\n(")
                .replace(" / ", "\n")
                .replace(NOT_MEASURED, NOT_MEASURED.replace(" ", "\n"))
                for c in cells
            )
        )
    return shown
