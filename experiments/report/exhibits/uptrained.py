"""The uptrained models of a group, by attention, method and alpha, and what is asked of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.records.measurement import search_label
from experiments.records.parts import Conversion
from experiments.records.record import Record
from experiments.report.exhibits.exhibit import few
from experiments.report.groups import Group, Row
from experiments.report.made_by import made_by
from experiments.report.selection import (
    HEADLINE_METRIC,
    Value,
    headline_kind,
    score_value,
    searches,
    test_splits,
)
from experiments.report.tables import diverged_name, metric_notes
from gqa_fairseq.architecture import CONVERSION_METHODS, Architecture

CONTROL: Conversion = "identity"


@dataclass(frozen=True)
class Quality:
    """A measure of quality: what a column is called, and what it reads."""

    heading: str
    axis: str
    digits: int
    value: Value


@dataclass(frozen=True)
class Converted:
    """One attention, converted in one way: a row for each alpha, the smallest first."""

    architecture: Architecture
    method: Conversion
    by_alpha: dict[float, Row]


def converted(group: Group) -> list[Converted]:
    """From most key/value heads to fewest, methods in the order of CONVERSION_METHODS."""
    found: dict[tuple[Architecture, Conversion], dict[float, Row]] = {}
    for row in group.rows:
        how = row.uptraining
        if how is not None:
            found.setdefault((row.architecture, how.method), {})[how.alpha] = row
    architectures = list(dict.fromkeys(architecture for architecture, _ in found))
    order: list[Conversion] = [CONTROL, *CONVERSION_METHODS]
    return [
        Converted(architecture, method, dict(sorted(found[architecture, method].items())))
        for architecture in architectures
        for method in order
        if (architecture, method) in found
    ]


def merged(found: Sequence[Converted]) -> list[Converted]:
    """Those whose heads became fewer: all but the controls."""
    return [each for each in found if each.method != CONTROL]


def control_of(found: Sequence[Converted], alpha: float) -> Row | None:
    """The parent trained on like the others, its heads as they were."""
    rows = (each.by_alpha.get(alpha) for each in found if each.method == CONTROL)
    return next(filter(None, rows), None)


def longest_of(rows: Sequence[Row]) -> list[Row]:
    """All that are from scratch; of each attention and method that of the largest alpha."""
    longest: dict[tuple[Architecture, Conversion], float] = {}
    for row in rows:
        if how := row.uptraining:
            key = row.architecture, how.method
            longest[key] = max(how.alpha, longest.get(key, 0.0))
    return [
        row
        for row in rows
        if (how := row.uptraining) is None or how.alpha == longest[row.architecture, how.method]
    ]


def records_of(found: Sequence[Converted]) -> list[Record]:
    return [record for each in found for row in each.by_alpha.values() for record in row.records]


def alphas_of(found: Sequence[Converted]) -> list[float]:
    return sorted({alpha for each in found for alpha in each.by_alpha})


def qualities(group: Group) -> list[Quality]:
    """Dev loss, and the headline's score on test with the widest beam, where there is one."""
    found = [
        Quality(
            "dev nats/token",
            "dev loss (nats per target token)",
            3,
            lambda result: result.evaluation.dev_nll_nats_per_token,
        )
    ]
    for split in test_splits(group)[:1]:
        for beam in reversed(searches(group)):
            if kind := headline_kind(group, split, beam):
                what = f"{split} {HEADLINE_METRIC.label} {search_label(beam)}"
                axis = f"{what}\n({HEADLINE_METRIC.lowest:g} to {HEADLINE_METRIC.highest:g})"
                found.append(Quality(what, axis, HEADLINE_METRIC.digits, score_value(split, kind)))
                break
    return found


def values_by_seed(row: Row | None, value: Value) -> dict[int, float]:
    """The value of each run that has one."""
    records = zip(row.records, row.results, strict=True) if row else ()
    return {r.seed: found for r, result in records if (found := value(result)) is not None}


def difference(row: Row, other: Row | None, value: Value) -> dict[int, float]:
    """The value minus that of the `other` row's run with the same seed, for seeds of both."""
    own, theirs = values_by_seed(row, value), values_by_seed(other, value)
    return {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}


def notes_on(group: Group, found: Sequence[Converted]) -> list[str]:
    """What the models are that a table sets side by side, and which are not in it."""
    own = merged(found)
    records = records_of(found)
    parents = sorted({r.uptraining.parent_updates for r in records if r.uptraining})
    seeds = {record.seed for record in records}
    fewest = min(len(row.records) for each in found for row in each.by_alpha.values())
    sizes = dict.fromkeys(
        f"{each.architecture.name} {each.architecture.parameters:,}" for each in own
    )
    controls = dict.fromkeys(
        f"the model that was converted {each.architecture.parameters:,}"
        for each in found
        if each.method == CONTROL
    )
    return [
        f"Converted models keep d_ff, so they are smaller: parameters are "
        f"{', '.join([*sizes, *controls])}. A model trained from scratch at that G is another row.",
        f"Trained from {', '.join(f'{number:,}' for number in parents)} updates on, with the "
        "recipe and the schedule that they had.",
        f"Seeds: {', '.join(map(str, sorted(seeds)))}; cells are mean ± standard deviation. "
        f"{few(fewest)}".strip(),
        *(
            f"{diverged_name(record)} (seed {record.seed}) is in no mean."
            for record in group.diverged
            if record.uptraining
        ),
        *(note for split in test_splits(group)[:1] for note in metric_notes(group, split)),
        *made_by(records),
    ]


def seeds_of(row: Row) -> str:
    return ", ".join(str(record.seed) for record in row.records)
