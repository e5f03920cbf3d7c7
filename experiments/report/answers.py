"""The answer in sentences, one a variant: what it costs, what it gains, and how sure that is.

Every sentence is made from tests and measurements. What they leave open is said as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.metrics import METRICS
from experiments.records.measurement import Measurement, Ratio, search_label, speed_up
from experiments.records.significance import LEVEL, MARGINS, MetricTests
from experiments.report.cells import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_TESTED,
    Table,
    mebibytes,
)
from experiments.report.exhibits.exhibit import ENOUGH_SEEDS
from experiments.report.exhibits.uptrained import CONTROL
from experiments.report.groups import Group, Row
from experiments.report.made_by import distinct, made_by
from experiments.report.papers.wmt14 import is_eligible
from experiments.report.quality.comparisons import Pair, pairs
from experiments.report.quality.statistics import holm
from experiments.report.quality.verdicts import difference_cell, shown_margin
from experiments.report.selection import (
    HEADLINE_METRIC,
    headline_kind,
    headline_timing,
    model_free_scores,
    score_value,
    searches,
    test_splits,
    timed_shapes,
)
from experiments.report.tables import overview

# Fewer target tokens than this are seen in minutes: a model learns what its text repeats.
TOY_BELOW_TOKENS = 2_000_000


@dataclass(frozen=True)
class Answer:
    """What is said of one variant; `source` is its row's."""

    variant: str
    sentence: str
    source: str


def scale(group: Group) -> str:
    """`paper` where runs may stand beside Shazeer's rows, `toy` where training took minutes."""
    if all(map(is_eligible, group.records)):
        return "paper"
    seen = [
        record.training.target_tokens_per_update
        * (record.uptraining.parent_updates if record.uptraining else record.training.updates)
        for record in group.records
        if record.training
    ]
    return "toy" if max(seen, default=0) < TOY_BELOW_TOKENS else "small"


def in_order(groups: Sequence[Group]) -> list[Group]:
    """Those at the largest scale first, and of one scale those from scratch first."""
    scales = ["paper", "small", "toy"]
    return sorted(groups, key=lambda group: (scales.index(scale(group)), not group.from_scratch))


def answers(group: Group) -> list[Answer]:
    """One a variant: from scratch all, of what was uptrained those that were trained on longest."""
    found = []
    for table in _headline_tables(group):
        tested = {p.variant.name: tests for p in table if (tests := _tests(group, p))}
        p_worse = [tests.together.p_worse or 0.0 for tests in tested.values()]
        adjusted = dict(zip(tested, holm(p_worse), strict=True))
        for pair in trained_longest(table):
            name = pair.variant.name
            quality = "Quality is not tested."
            if name in tested:
                quality = _quality(tested[name], adjusted[name])
            sentence = f"{_heads(pair)} {quality} {_speed(group, pair)}"
            found.append(Answer(name, sentence, pair.variant.source))
    return found


def open_questions(group: Group) -> list[str]:
    """What these records cannot say, in sentences."""
    said = []
    seeds = {record.seed for record in group.finished}
    if len(seeds) == 1:
        said.append("One seed: nothing is said of other trainings, which differ by chance.")
    elif len(seeds) < ENOUGH_SEEDS:
        said.append(f"{len(seeds)} seeds are few: the intervals are wide for that.")
    said += _below_a_baseline(group)
    split = next(iter(test_splits(group)), None)
    widths = [
        tests.half_width
        for table in _headline_tables(group)
        for pair in table
        if (tests := _tests(group, pair))
    ]
    if widths:
        said.append(
            f"Differences below about {max(widths):.1f} {HEADLINE_METRIC.label} cannot be told "
            f"apart by these seeds and the {group.first.lines(split or 'test'):,} lines of "
            f"{split}."
        )
    if group.measurement is None:
        said.append("Speed was not measured.")
    else:
        said.append(
            f"Times are of one machine ({_machine(group.measurement)}); another has other ratios."
        )
    if scale(group) != "paper":
        said.append("Model and data are far smaller than the papers'.")
    return said


def _machine(measurement: Measurement) -> str:
    hardware = measurement.provenance.hardware
    if measurement.device == "cpu":
        return hardware.cpu_model
    return ", ".join(distinct(hardware.gpus))


def headline_table(group: Group) -> Table:
    """The overview with what the tests say, and with the memory of keys and values.

    What is the same for all rows, or said by another column, is left out.
    """
    table = overview(group)
    beam = searches(group)[-1]
    label = f"{HEADLINE_METRIC.label} {search_label(beam)}"
    differences, sizes = _differences(group), _cache_sizes(group, beam)
    added = {
        f"{label}: minus MHA": [differences.get(row[0], NOT_APPLICABLE) for row in table.rows],
        f"keys and values MiB {search_label(beam)}": [
            sizes.get(row[0], NOT_APPLICABLE) for row in table.rows
        ],
    }
    columns = {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns)}
    del columns["dev perplexity"]
    if set(columns["residual"]) <= {"0", NOT_APPLICABLE}:
        del columns["residual"]
    after = next((name for name in reversed(columns) if name.endswith(label)), None)
    ordered: dict[str, list[str]] = {}
    (difference, differing), (memory, sized) = added.items()
    for name, cells in columns.items():
        ordered[name] = cells
        if name == after:
            ordered[difference] = differing
    ordered[memory] = sized
    notes = [
        f"{difference}: of all seeds together, with its {LEVEL:.0%} interval; an uptrained model "
        "is set against the multi-head model that was trained on alike.",
        *table.notes,
        *made_by(group.records),
    ]
    rows = [list(cells) for cells in zip(*ordered.values(), strict=True)]
    return Table(table.title, list(ordered), rows, notes, table.sources)


def _differences(group: Group) -> dict[str, str]:
    """Of each variant from its baseline, by name."""
    found = {}
    for table in _headline_tables(group):
        for pair in table:
            tests = _tests(group, pair)
            found[pair.variant.name] = (
                difference_cell(tests.metric, tests.together) if tests else NOT_TESTED
            )
    return found


def _cache_sizes(group: Group, beam: int) -> dict[str, str]:
    """Keys and values of the headline's decoding, by name of the variant."""
    timing = headline_timing(group, beam)
    found = {}
    for row in group.rows:
        samples = row.samples(timing)
        size = samples.kv_cache_bytes if samples else None
        found[row.name] = NOT_MEASURED if size is None else mebibytes(size)
    return found


def lead(group: Group) -> str | None:
    """The baseline in a sentence; None where the group has none that was trained from scratch."""
    scratch = (row for row in group.from_scratch if row.architecture.is_multi_head)
    controls = [r for r in group.rows if r.uptraining and r.uptraining.method == CONTROL]
    row = next(scratch, None) or next(reversed(controls), None)
    if row is None:
        return None
    beam = searches(group)[-1]
    parts = []
    split = next(iter(test_splits(group)), None)
    kind = headline_kind(group, split, beam) if split else None
    if split and kind and (found := row.estimate(score_value(split, kind))):
        parts.append(
            f"has {found.mean:.{kind.metric.digits}f} {kind.metric.label} on {split} with "
            f"{search_label(beam)}"
        )
    timing = headline_timing(group, beam)
    samples = row.samples(timing)
    us = samples.us_per_token("decoder") if samples else None
    if us is not None:
        batch, source, target = timed_shapes(group)[0]
        parts.append(
            f"takes {us:,.1f} µs in the decoder for a token (batch {batch}, {source} source and "
            f"{target} target tokens)"
        )
    heads = row.architecture.num_kv_heads
    said = " and ".join(parts)
    return f"{row.name}, with {heads} key/value heads, {said}." if parts else None


def trained_longest(table: Sequence[Pair]) -> list[Pair]:
    """Of what was uptrained the pairs with the largest alpha; all that are from scratch."""
    alphas = [pair.variant.uptraining.alpha for pair in table if pair.variant.uptraining]
    longest = max(alphas, default=None)
    return [p for p in table if not p.variant.uptraining or p.variant.uptraining.alpha == longest]


def headline_pairs(group: Group) -> list[Pair]:
    """The pairs of the answers: from scratch where there are such, else of what was uptrained."""
    return next(iter(_headline_tables(group)), [])


def _headline_tables(group: Group) -> list[list[Pair]]:
    """The pairs on the first test set, with the widest beam: from scratch, then uptrained."""
    split = next(iter(test_splits(group)), None)
    kinds = [headline_kind(group, split, beam) for beam in searches(group)] if split else []
    kind = next((found for found in reversed(kinds) if found), None)
    return [t for t in pairs(group) if (t[0].split, t[0].kind) == (split, kind)]


def _tests(group: Group, pair: Pair) -> MetricTests | None:
    tests = pair.tests(group)
    return tests.of(HEADLINE_METRIC.name) if tests else None


def _heads(pair: Pair) -> str:
    """What the variant is, and what it is set against."""
    own, rival = pair.variant.architecture, pair.baseline.architecture
    said = f"{own.num_kv_heads} key/value head{'s' if own.num_kv_heads > 1 else ''}"
    if own.num_kv_heads != rival.num_kv_heads:
        said += f" in place of {rival.num_kv_heads}"
    if how := pair.variant.uptraining:
        said += f", made by {how.method} and trained on for {how.alpha:.0%} of the updates"
        return f"{said}, against the model with all heads that was trained on alike."
    return f"{said}, against {pair.baseline.name}."


def _quality(tests: MetricTests, p_holm: float) -> str:
    label, margin = METRICS[tests.metric].label, MARGINS[tests.metric]
    interval = tests.together.interval
    is_shown = tests.is_non_inferior and p_holm <= 1 - LEVEL
    if interval.high < 0:
        lost = "It costs quality" + (f", but less than {margin:g} {label}" if is_shown else "")
    elif interval.low > 0:
        lost = "It gains quality"
    elif is_shown:
        lost = f"Quality is no worse than {margin:g} {label} below"
    else:
        lost = "Whether it costs quality is open"
    said = (
        f"{lost}: {label} {tests.together.difference:+.2f}, {interval.level:.0%} interval "
        f"{interval.low:+.2f} to {interval.high:+.2f}."
    )
    if not is_shown and interval.low <= 0:
        why = "not shown" if not tests.is_non_inferior else "not shown for all variants together"
        said += (
            f" That it loses less than {margin:g} {label} is {why}"
            f"{f' (less than {shown_margin(tests):.2f} is)' if not tests.is_non_inferior else ''}."
        )
    return said


def _speed(group: Group, pair: Pair) -> str:
    parts = []
    for beam in reversed(searches(group)):
        timing = headline_timing(group, beam)
        own, rival = pair.variant.samples(timing), pair.baseline.samples(timing)
        if own is None or rival is None:
            continue
        if ratio := speed_up(rival, own, "decoder"):
            search = "greedily" if beam == 1 else f"with {search_label(beam)}"
            parts.append(f"{_times(ratio)} {search}")
    if not parts:
        return "Its speed was not measured beside."
    said = f"Its decoder is {' and '.join(parts)}"
    return said + _memory(group, pair.variant, pair.baseline) + "."


def _times(ratio: Ratio) -> str:
    said = f"{ratio.median:.2f} times as fast"
    if ratio.confidence > 0:
        said += f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return said


def _memory(group: Group, own: Row, rival: Row) -> str:
    timing = headline_timing(group, searches(group)[-1])
    sizes = [s.kv_cache_bytes if (s := row.samples(timing)) else None for row in (own, rival)]
    if None in sizes:
        return ""
    mine, theirs = (mebibytes(size or 0) for size in sizes)
    return f", with {mine} MiB of keys and values in place of {theirs}"


def _below_a_baseline(group: Group) -> list[str]:
    """Whether a translation that needs no model scores above all models."""
    split = next(iter(test_splits(group)), None)
    kind = headline_kind(group, split, searches(group)[-1]) if split else None
    if split is None or kind is None:
        return []
    value = score_value(split, kind)
    best = max((e.mean for row in group.rows if (e := row.estimate(value))), default=None)
    free = {
        scores[kind.name].name: scores[kind.name].value
        for scores in model_free_scores(group, split)
        if kind.name in scores
    }
    nearest = free.get("nearest")
    if best is None or nearest is None or nearest < best:
        return []
    return [
        f"No model here translates well: the translation of the nearest training line has "
        f"{nearest:.1f} {kind.metric.label}, the best model {best:.1f}."
    ]
