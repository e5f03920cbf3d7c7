"""What the report says, before it is Markdown or a page: sentences, tables, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from experiments.records.record import Diverged
from experiments.report.answers import (
    READING,
    Answer,
    answers,
    headline_table,
    lead,
    open_questions,
    scale,
)
from experiments.report.cards import Card
from experiments.report.cells import NOT_MEASURED, Table
from experiments.report.exhibits import group_exhibits
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.trade_off import trade_offs
from experiments.report.groups import Group, shared_config
from experiments.report.made_by import made_by
from experiments.report.papers.reference import Paper, paper_tables
from experiments.report.papers.wmt14 import wmt14_tables
from experiments.report.pictures.drawing import Drawn
from experiments.report.quality.verdicts import untested, verdict_tables
from experiments.report.tables import diverged_name, group_tables

CAPTIONS = {
    "bleu-latency": "BLEU against decoding time: small dots are runs, large ones their means.",
    "training-curves": "Dev loss during training, one line a run.",
    "raw-latency": "Every timed round of the decoder; bars are the medians of the rounds.",
}


@dataclass(frozen=True)
class Plot:
    """A picture; `path` is that of its PNG beside report.md, `words` say what is in it."""

    path: str
    caption: str
    drawn: Drawn
    words: str


@dataclass(frozen=True)
class Section:
    """A group of comparable records."""

    number: int
    group: Group
    heading: str
    scale: str
    lead: str | None
    answers: list[Answer]
    open_questions: list[str]
    facts: list[str]
    headline: Table
    tables: list[Table]
    plots: list[Plot]
    exhibits: list[tuple[Table, Plot]]
    made_by: list[str]
    config: str


@dataclass(frozen=True)
class Document:
    """The whole report; `across` sets sections side by side, `refused` names what was left out."""

    sections: list[Section]
    across: list[tuple[Table, Plot]]
    wmt14: list[Table]
    papers: list[Table]
    refused: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    reading: str = READING

    @property
    def record_count(self) -> int:
        return sum(len(section.group.records) for section in self.sections)


def document(
    groups: Sequence[Group],
    papers: Sequence[Paper],
    refused: Sequence[str] = (),
    cards: Sequence[Card] = (),
) -> Document:
    """The report of these groups; raises ExperimentError when the papers lack a row."""
    return Document(
        wmt14=wmt14_tables(list(groups), list(papers)),
        sections=[_section(number, group) for number, group in enumerate(groups, start=1)],
        across=[_shown(exhibit, "") for exhibit in trade_offs(groups)],
        papers=[table for paper in papers for table in paper_tables(paper)],
        refused=list(refused),
        cards=list(cards),
    )


def group_heading(group: Group) -> str:
    """Data and model in a line, and the options of the search where there are any."""
    record = group.first
    model = record.architecture
    options = record.config["decode"].get("options", {})
    return (
        f"{record.data.name}: {model.encoder_layers} + {model.decoder_layers} layers, d_model "
        f"{model.d_model}, {record.config['model']['num_heads']} heads"
        + "".join(f", {name} {value}" for name, value in options.items())
    )


def _section(number: int, group: Group) -> Section:
    # Here alone, because matplotlib takes long to import and only plots need it.
    from experiments.report.pictures.plots import group_pictures, pictures_in_words

    words = pictures_in_words(group)
    _, *others = group_tables(group)
    return Section(
        number=number,
        group=group,
        heading=group_heading(group),
        scale=scale(group),
        lead=lead(group),
        answers=answers(group),
        open_questions=open_questions(group),
        facts=_facts(group),
        headline=headline_table(group),
        tables=[*verdict_tables(group), *others],
        plots=[
            Plot(f"plots/{number}-{name}.png", CAPTIONS[name], drawn, words[name])
            for name, drawn in group_pictures(group).items()
        ],
        exhibits=[_shown(exhibit, f"{number}-") for exhibit in group_exhibits(group)],
        made_by=made_by(group.records),
        config=msgspec.json.format(
            msgspec.json.encode(shared_config(group.first)), indent=2
        ).decode(),
    )


def _shown(exhibit: Exhibit, prefix: str) -> tuple[Table, Plot]:
    words = f"{exhibit.caption} Its numbers are in the table above it."
    path = f"plots/{prefix}{exhibit.name}.png"
    return exhibit.table, Plot(path, exhibit.caption, exhibit.drawn(), words)


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
