"""What the tests say: a table for each test set and search, with a sentence for each variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from experiments.metrics import METRICS
from experiments.records.record import Record
from experiments.records.significance import (
    LEVEL,
    MARGINS,
    TESTED,
    AllSeeds,
    Comparison,
    MetricTests,
    SeedTests,
    Settings,
)
from experiments.report.cells import NOT_APPLICABLE, NOT_TESTED, Table
from experiments.report.exhibits.exhibit import few
from experiments.report.groups import Group
from experiments.report.quality.comparisons import Pair, pairs
from experiments.report.quality.statistics import holm, t_interval

COMMAND = "`python -m experiments.significance --records DIR --out DIR`"
Tested = Sequence[tuple[Pair, Comparison]]
# Columns of p-values, and what they read.
P_VALUES: dict[str, Callable[[SeedTests], float]] = {
    "p bootstrap": lambda tests: tests.p_bootstrap,
    "p randomization": lambda tests: tests.p_randomization,
}


def verdict_tables(group: Group) -> list[Table]:
    """One for each test set and search with which some variant was tested."""
    return [table for each in pairs(group) if (table := _table(group, each))]


def untested(group: Group) -> str | None:
    """What to do where differences could be tested, and none was."""
    if verdict_tables(group) or not pairs(group):
        return None
    return f"Differences in quality are not tested (make the tests with {COMMAND})"


def verdict(pair: Pair, tests: MetricTests, p_holm: float, variants: int) -> str:
    """One sentence on a metric that has a margin; `p_holm` is the adjusted one of `variants`."""
    assert tests.margin is not None
    unit = METRICS[tests.metric].label
    margin = f"{tests.margin:g} {unit}"
    alone = " for this seed" if len(pair.seeds) == 1 else ""
    shown = f"no worse than {margin}{alone}: "
    if not tests.is_non_inferior:
        shown += "not shown; the smallest margin that this data can show is "
        shown += f"{shown_margin(tests):.2f} {unit}"
    else:
        shown += "shown"
        if p_holm > 1 - LEVEL:
            shown += f" by itself, but not with Holm's correction for {variants} variants"
        both_ways = "shown" if tests.is_equivalent else "not shown"
        shown += f"; neither worse nor better by {margin}: {both_ways}"
    difference = difference_cell(tests.metric, tests.together)
    return (
        f"{pair.variant.name} against {pair.baseline.name}: {unit} {difference}, half-width "
        f"{tests.half_width:.2f}; {shown}."
    )


def shown_margin(tests: MetricTests) -> float:
    """The smallest margin of two digits that these tests show by themselves: rounded up."""
    return math.floor(tests.smallest_margin * 100 + 1) / 100


def _table(group: Group, table: Sequence[Pair]) -> Table | None:
    """None where no pair of the table was tested."""
    found = [(pair, pair.tests(group)) for pair in table]
    tested = [(pair, tests) for pair, tests in found if tests]
    if not tested:
        return None
    columns = ["variant", "against", "seed"]
    for metric in TESTED:
        label = METRICS[metric].label
        columns += [f"{label} difference", *(f"{label} {heading}" for heading in P_VALUES)]
    columns.append("dev nats/token difference")
    rows = []
    for pair, tests in found:
        names = [pair.variant.name, pair.baseline.name]
        nats = [_nats(variant) - _nats(baseline) for baseline, variant in pair.runs]
        if tests is None:
            seeds = ", ".join(map(str, pair.seeds))
            rows.append([*names, seeds, *[NOT_TESTED] * (len(columns) - 3)])
            continue
        for seed, difference in zip(pair.seeds, nats, strict=True):
            cells = [cell for metric in TESTED for cell in _cells(tested, pair, metric, seed)]
            rows.append([*names, str(seed), *cells, f"{difference:+.3f}"])
        if interval := t_interval(nats, LEVEL):
            cells = []
            for metric in TESTED:
                cells.append(difference_cell(metric, tests.of(metric).together))
                cells += [NOT_APPLICABLE] * len(P_VALUES)
            mean = sum(nats) / len(nats)
            cells.append(f"{mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})")
            rows.append([*names, f"all {len(nats)}", *cells])
    whose = " of uptrained models" if table[0].variant.uptraining else ""
    by_name = {pair.variant.name: pair.variant.source for pair in table}
    sources = [by_name[row[0]] for row in rows]
    title = f"Quality{whose} tested on {table[0].title}"
    return Table(title, columns, rows, _notes(tested), sources)


def _notes(tested: Tested) -> list[str]:
    """The verdicts, then what the numbers are."""
    notes = []
    for metric in MARGINS:
        p_worse = [tests.of(metric).together.p_worse or 0.0 for _, tests in tested]
        for (pair, tests), p_holm in zip(tested, holm(p_worse), strict=True):
            notes.append(verdict(pair, tests.of(metric), p_holm, len(tested)))
    runs = [len(pair.seeds) for pair, _ in tested]
    family = ""
    if len(tested) > 1:
        family = f", corrected together for the {len(tested)} variants of this table"
    lines = {tests.of(metric).lines for _, tests in tested for metric in TESTED}
    over = "over lines alone for one seed, which says nothing of another training"
    if max(runs) > 1:
        over += ", and over lines and trainings for all seeds"
    notes += [
        f"Differences are variant minus the other; in brackets {LEVEL:.0%} intervals, {over}. "
        f"{few(min(runs))}".strip(),
        "Half of an interval's width is what these seeds and "
        f"{', '.join(f'{count:,}' for count in sorted(lines))} lines can tell apart. That no "
        "difference is significant does not show that there is none: no worse than a margin is "
        f"shown where the lower bound of the one-sided {LEVEL:.0%} interval is above minus that "
        "margin.",
        f"p-values are those of sacrebleu's paired tests with {Settings().resamples:,} resamples. "
        "Randomization is two-sided; sacrebleu's bootstrap is below 0.05 twice as often as it "
        "should be where nothing differs. In brackets is the same p-value after Holm's correction, "
        "which takes together what one column has for one seed: a p-value for each variant.",
        f"The verdicts rest on the p-value of being worse by the margin{family}. Intervals and the "
        "smallest margins are of each variant by itself.",
    ]
    notes.append(
        "Dev loss is kept for each seed as a whole, not for its lines: its interval is Student's t "
        "over seeds, and one seed has none."
    )
    return notes


def _cells(tested: Tested, pair: Pair, metric: str, seed: int) -> list[str]:
    """Difference and p-values of one seed, each p with Holm's over the variants of that seed."""
    of_seed = {
        other.variant.name: tests.of(metric).seeds[other.seeds.index(seed)]
        for other, tests in tested
        if seed in other.seeds
    }
    name = pair.variant.name
    cells = [difference_cell(metric, of_seed[name])]
    for read in P_VALUES.values():
        adjusted = dict(zip(of_seed, holm(list(map(read, of_seed.values()))), strict=True))
        cells.append(f"{read(of_seed[name]):.4f} ({adjusted[name]:.4f})")
    return cells


def difference_cell(metric: str, tests: SeedTests | AllSeeds) -> str:
    """Such as `-0.66 (-1.10 to -0.22)`: a digit more than a score has."""
    digits = METRICS[metric].digits + 1
    low, high = tests.interval.low, tests.interval.high
    return f"{tests.difference:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _nats(record: Record) -> float:
    assert record.evaluation is not None
    return record.evaluation.dev_nll_nats_per_token
