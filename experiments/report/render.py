"""Groups and papers as Markdown with plots beside it, and as tables for a terminal."""

from dataclasses import dataclass
from pathlib import Path

import jinja2
import msgspec
import rich.box
import rich.table

from experiments.records.record import Diverged
from experiments.records.storage import write_bytes, write_text
from experiments.report.cells import NOT_MEASURED, Table
from experiments.report.exhibits import group_exhibits
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.trade_off import trade_offs
from experiments.report.groups import Group, shared_config
from experiments.report.made_by import made_by
from experiments.report.reference import NOT_COMPARABLE, Paper, paper_tables
from experiments.report.tables import (
    BELOW,
    diverged_name,
    group_tables,
    overview,
    overview_columns,
)
from experiments.report.verdicts import untested, verdict_tables
from experiments.report.wmt14 import INTRODUCTION, wmt14_tables

TEMPLATE = Path(__file__).with_name("report.md.j2")
CAPTIONS = {
    "bleu-latency": "BLEU against decoding time: small dots are runs, large ones their means.",
    "training-curves": "Dev loss during training, one line a run.",
    "raw-latency": "Every timed round of the decoder; bars are the medians of the rounds.",
}


@dataclass(frozen=True)
class Plot:
    """A plot of the report; `path` is relative to it."""

    path: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A group of comparable records, for the template."""

    heading: str
    facts: list[str]
    tables: list[Table]
    plots: list[Plot]
    exhibits: list[tuple[Table, Plot]]
    config: str


def write_report(groups: list[Group], papers: list[Paper], out: Path) -> Path:
    """Write `out`/report.md and its plots, the report last; returns its path.

    Raises ExperimentError when the folder cannot be written.
    """
    beside_papers = wmt14_tables(groups, papers)
    sections = [_section(number, group, out) for number, group in enumerate(groups, start=1)]
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        record_count=sum(len(group.records) for group in groups),
        sections=sections,
        across=[_shown(exhibit, "", out) for exhibit in trade_offs(groups)],
        wmt14_introduction=INTRODUCTION,
        wmt14=beside_papers,
        papers=[table for paper in papers for table in paper_tables(paper)],
        not_comparable=NOT_COMPARABLE,
        markdown=markdown_table,
    )
    path = out / "report.md"
    write_text(path, text)
    return path


def markdown_table(table: Table) -> str:
    """A Markdown table, text to the left and numbers to the right."""
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [table.columns, rule, *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )


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


def group_heading(group: Group) -> str:
    """Data and model in a line."""
    record = group.first
    model = record.architecture
    return (
        f"{record.data.name}: {model.encoder_layers} + {model.decoder_layers} layers, d_model "
        f"{model.d_model}, {record.config['model']['num_heads']} heads"
    )


def _section(number: int, group: Group, out: Path) -> Section:
    # Here alone, because matplotlib takes long to import and only plots need it.
    from experiments.report.plots import group_plots

    plots = []
    for name, content in group_plots(group).items():
        path = f"plots/{number}-{name}.png"
        write_bytes(out / path, content)
        plots.append(Plot(path, CAPTIONS[name]))
    overview_table, *others = group_tables(group)
    return Section(
        heading=group_heading(group),
        facts=_facts(group),
        tables=[overview_table, *verdict_tables(group), *others],
        plots=plots,
        exhibits=[_shown(exhibit, f"{number}-", out) for exhibit in group_exhibits(group)],
        config=msgspec.json.format(
            msgspec.json.encode(shared_config(group.first)), indent=2
        ).decode(),
    )


def _shown(exhibit: Exhibit, prefix: str, out: Path) -> tuple[Table, Plot]:
    path = f"plots/{prefix}{exhibit.name}.png"
    write_bytes(out / path, exhibit.picture())
    return exhibit.table, Plot(path, exhibit.caption)


def _facts(group: Group) -> list[str]:
    data = group.first.data
    train = data.splits["train"]
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(train.dropped.items()))
    facts = [
        f"Data {data.name} ({data.source_lang} to {data.target_lang}), checksum "
        f"`{data.checksum[:12]}`, vocabulary {data.vocab_size:,}: {train.kept:,} of {train.read:,} "
        f"training pairs kept" + (f" (dropped: {dropped})" if dropped else ""),
    ]
    facts += [
        f"Overlap of {name} with the training text: {overlap.four_grams_seen_share:.1%} of its "
        f"4-grams are seen there, {overlap.lines_covered_share:.1%} of its lines are fully "
        f"covered, {overlap.duplicate_lines:,} lines are duplicates"
        for name, overlap in sorted(data.overlap.items())
    ]
    for record in group.diverged:
        assert isinstance(record.result, Diverged)
        facts.append(
            f"{diverged_name(record)} (seed {record.seed}): {record.result.reason}; it is in no "
            "mean"
        )
    if group.rows and group.measurement is None:
        facts.append(f'Shown as "{NOT_MEASURED}": no measurement names a job of these rows')
    if advice := untested(group):
        facts.append(advice)
    if group.repeats_left_out:
        facts.append(
            f"{group.repeats_left_out} older records of the same variant and seed are left out"
        )
    return facts
