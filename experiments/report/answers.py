"""The answer in sentences, one a variant: what it costs, what it gains, and how sure that is.

Every sentence is made from tests and measurements. What they leave open is said as well, and which
trainings diverged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.metrics import METRICS
from experiments.records.measurement import Measurement, Ratio, search_label, speed_up
from experiments.records.record import Diverged, Record
from experiments.records.significance import LEVEL, MARGINS, MetricTests
from experiments.report.cells import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_TESTED,
    Table,
    mebibytes,
)
from experiments.report.exhibits.exhibit import ENOUGH_SEEDS
from experiments.report.exhibits.uptrained import CONTROL, longest_of
from experiments.report.groups import Group, Row, source_of
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
from gqa_fairseq.architecture import Architecture

# Fewer target tokens than this are seen in minutes: a model learns what its text repeats.
TOY_BELOW_TOKENS = 2_000_000
SCALES = ("paper", "small", "unknown", "toy")
READING = (
    "A difference is the variant's score minus that of the model with all heads. Where its "
    f"{LEVEL:.0%} interval holds 0, these data do not say whether quality is lost. A loss of less "
    f"than {MARGINS[HEADLINE_METRIC.name]:g} {HEADLINE_METRIC.label} was called small before any "
    "result was seen. Speed is a gain where its interval is above 1."
)


@dataclass(frozen=True)
class Answer:
    """What is said of one variant; `source` is its row's."""

    variant: str
    sentence: str
    source: str


def scale(group: Group) -> str:
    """`paper` where runs may stand beside Shazeer's rows, `toy` where training took minutes.

    `unknown` where no record has a training that ended.
    """
    if all(map(is_eligible, group.records)):
        return "paper"
    seen = [
        record.training.target_tokens_per_update
        * (record.uptraining.parent_updates if record.uptraining else record.training.updates)
        for record in group.records
        if record.training
    ]
    if not seen:
        return "unknown"
    return "toy" if max(seen) < TOY_BELOW_TOKENS else "small"


def in_order(groups: Sequence[Group]) -> list[Group]:
    """The largest scale first, in it those from scratch first, and of these those of most seeds."""

    def place(group: Group) -> tuple[int, bool, int]:
        seeds = {record.seed for record in group.records}
        return SCALES.index(scale(group)), not group.from_scratch, -len(seeds)

    return sorted(groups, key=place)


def answers(group: Group) -> list[Answer]:
    """One a variant: from scratch all, of what was uptrained those that were trained on longest.

    Trainings that diverged are told of with their variant, and have an answer of their own where it
    has none.
    """
    diverged: dict[str, list[Record]] = {}
    for record in group.diverged:
        diverged.setdefault(record.variant, []).append(record)
    found = []
    for table in _headline_tables(group):
        tested = {p.variant.name: tests for p in table if (tests := _tests(group, p))}
        p_worse = [tests.together.p_worse or 0.0 for tests in tested.values()]
        adjusted = dict(zip(tested, holm(p_worse), strict=True))
        for pair in trained_longest(table):
            name = pair.variant.name
            quality = "Quality is not tested."
            if name in tested:
                quality = _quality(pair, tested[name], adjusted[name], len(tested))
            sentences = [_heads(pair), quality, _speed(group, pair)]
            if lost := diverged.pop(name, None):
                sentences.append(_diverged(lost, len(pair.variant.records)))
            found.append(Answer(name, " ".join(sentences), pair.variant.source))
    finished = {row.name: len(row.records) for row in group.rows}
    for name, lost in diverged.items():
        said = f"{_counted(lost[0].architecture)}. {_diverged(lost, finished.get(name, 0))}"
        found.append(Answer(name, said, source_of(lost[0])))
    return found


def open_questions(group: Group) -> list[str]:
    """What these records cannot say, in sentences."""
    said = [*_few_seeds(group), *_below_a_baseline(group), *_told_apart(group)]
    said += _corrected_together(group)
    if group.measurement is None:
        said.append("Speed was not measured.")
    else:
        said.append(
            f"Times are of one machine ({_machine(group.measurement)}); another has other ratios."
        )
    if scale(group) != "paper":
        largest = max(record.architecture.parameters for record in group.records)
        said.append(
            f"Model or data are not the papers': {largest:,} parameters and "
            f"{group.first.data.splits['train'].kept:,} training pairs here."
        )
    return said


def _few_seeds(group: Group) -> list[str]:
    """How few runs stand behind an answer, and which: those that both sides of a pair have."""
    shown = [pair for table in _headline_tables(group) for pair in trained_longest(table)]
    runs = {pair.variant.name: len(pair.runs) for pair in shown}
    runs = runs or {row.name: len(row.records) for row in group.rows}
    fewest = min(runs.values(), default=ENOUGH_SEEDS)
    if fewest >= ENOUGH_SEEDS:
        return []
    names = [name for name, count in runs.items() if count == fewest]
    whose = f" of {', '.join(names)}" if len(names) < len(runs) else ""
    if fewest == 1:
        return [f"One seed{whose}: nothing is said of other trainings, which differ by chance."]
    return [f"{fewest} seeds{whose} are few: the intervals are wide for that."]


def _told_apart(group: Group) -> list[str]:
    """How large a difference must be to be seen: half of its interval, by the number of seeds."""
    found = [
        (pair, tests)
        for table in _headline_tables(group)
        for pair in trained_longest(table)
        if (tests := _tests(group, pair))
    ]
    if not found:
        return []
    halves: dict[int, list[float]] = {}
    for pair, tests in found:
        halves.setdefault(len(pair.seeds), []).append(tests.half_width)
    sizes = [
        " to ".join(distinct(f"{end:.2f}" for end in (min(of_seeds), max(of_seeds))))
        + (f" with {seeds} seeds" if seeds > 1 else " with one seed, over lines alone")
        for seeds, of_seeds in sorted(halves.items(), reverse=True)
    ]
    split = found[0][0].split
    return [
        f"A {HEADLINE_METRIC.label} difference can be told from none where it is larger than about "
        f"half of its interval: on the {group.first.lines(split):,} lines of {split} that is "
        f"{', and '.join(sizes)}."
    ]


def _corrected_together(group: Group) -> list[str]:
    """Of how many variants the p-values for the margin are corrected together."""
    said = []
    for table in _headline_tables(group):
        count = sum(_tests(group, pair) is not None for pair in table)
        if count > 1:
            how = "uptrained " if table[0].variant.uptraining else ""
            said.append(
                f"That the loss is less than {MARGINS[HEADLINE_METRIC.name]:g} "
                f"{HEADLINE_METRIC.label} is tested for {count} {how}variants, and these {count} "
                "p-values are corrected together (Holm); intervals and other margins are of each "
                "variant by itself."
            )
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
    scratch = (row for row in group.from_scratch if row.architecture.is_baseline)
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
    what = f"with {_counted(row.architecture)}"
    if row.uptraining:
        what += " and trained on like the others"
    said = " and ".join(parts)
    return f"{row.name}, {what}, {said}." if parts else None


def trained_longest(table: Sequence[Pair]) -> list[Pair]:
    """All that are from scratch; of each attention and method that of the largest alpha."""
    longest = {row.source for row in longest_of([pair.variant for pair in table])}
    return [pair for pair in table if pair.variant.source in longest]


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
    mine, theirs = own.decoder_heads, rival.decoder_heads
    if mine.is_multi_head and mine != theirs:
        said = f"{_many(mine.num_heads, 'head')} of {mine.head_dim} in place of "
        said += f"{theirs.num_heads} of {theirs.head_dim}"
    else:
        said = _counted(own)
        if mine.num_kv_heads != theirs.num_kv_heads:
            said += f" in place of {theirs.num_kv_heads}"
    if own.placement != rival.placement:
        said += " in the decoder alone"
    if own.window is not None and own.window != rival.window:
        said += f", and a window of {own.window} positions in the decoder"
    if how := pair.variant.uptraining:
        said += f", converted with the method {how.method} and "
        if how.alpha == 0:
            return f"{said}not trained on, against the model that was converted."
        said += f"trained on for {100 * how.alpha:.3g}% of the updates"
        return f"{said}, against the model with all heads that was trained on alike."
    return f"{said}, against {pair.baseline.name}."


def _counted(architecture: Architecture) -> str:
    return _many(architecture.num_kv_heads, "key/value head")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _diverged(records: Sequence[Record], finished: int) -> str:
    """Which trainings of a variant diverged, beside so many that finished."""
    ends = [
        f"seed {record.seed} after update {record.result.after_update:,}"
        for record in records
        if isinstance(record.result, Diverged)
    ]
    if finished:
        trainings = f"{len(records)} of its {len(records) + finished} trainings"
        rest = "what is said of quality leaves those out"
    else:
        trainings = "Its training" if len(records) == 1 else f"All its {len(records)} trainings"
        rest = "so it has neither quality nor speed"
    return f"{trainings} diverged ({', '.join(ends)}): {rest}."


def _quality(pair: Pair, tests: MetricTests, p_holm: float, variants: int) -> str:
    """What it costs; `p_holm` is corrected for as many `variants`."""
    label, margin = METRICS[tests.metric].label, MARGINS[tests.metric]
    interval, seeds = tests.together.interval, len(pair.seeds)
    is_shown = tests.is_non_inferior and p_holm <= 1 - LEVEL
    less = f"less than {margin:g} {label}"
    alone, over = (" for this seed", "") if seeds == 1 else ("", f" over {seeds} seeds")
    if interval.high < 0:
        lost = f"It costs quality{alone}"
        if is_shown:
            lost += f", but {less}"
        elif interval.high < -margin:
            lost += f", more than {margin:g} {label}"
    elif interval.low > 0:
        lost = f"It gains quality{alone}"
    elif is_shown:
        lost = f"If it costs quality{alone}, it is {less}"
    else:
        lost = f"Whether it costs quality{alone} is open"
    said = (
        f"{lost}: {label} {tests.together.difference:+.2f}{over}, {interval.level:.0%} interval "
        f"{interval.low:+.2f} to {interval.high:+.2f}."
    )
    if is_shown or interval.low > 0:
        return said
    if tests.is_non_inferior:
        return (
            f"{said} By itself its test shows that it loses {less}, but not with Holm's correction "
            f"for the {variants} variants that are tested together."
        )
    but = "" if interval.high < -margin else f", but not that it loses {less}"
    smallest = f"{shown_margin(tests):.2f} {label}"
    return f"{said} These data show{alone} that it loses less than {smallest}{but}."


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
        return f"Its speed was not measured beside that of {pair.baseline.name}."
    said = f"Its decoder is {' and '.join(parts)}"
    return said + _memory(group, pair.variant, pair.baseline) + "."


def _times(ratio: Ratio) -> str:
    said = f"{ratio.median:.2f} times as fast"
    if ratio.confidence > 0:
        said += f" ({ratio.confidence:.0%} interval {ratio.low:.2f} to {ratio.high:.2f})"
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
