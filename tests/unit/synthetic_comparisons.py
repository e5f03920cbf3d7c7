"""Systems, pairs of records and tests of them, made up."""

import random

from experiments.records.record import Record
from experiments.records.significance import (
    MARGINS,
    SCHEMA_VERSION,
    TESTED,
    AllSeeds,
    Comparison,
    Interval,
    MetricTests,
    SeedTests,
    Settings,
)
from experiments.report.comparisons import Pair, pairs
from experiments.report.groups import group_records

WORDS = ["das", "Haus", "ist", "grün", "und", "der", "Baum", ",", "die", "Datei", "neu"]


def texts(lines: int = 60) -> tuple[list[str], list[str], list[str]]:
    """References and two systems, the second a little worse."""
    draw = random.Random(3)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(3, 15))) for _ in range(lines)]

    def spoilt(share: float) -> list[str]:
        return [
            " ".join(w if draw.random() > share else draw.choice(WORDS) for w in line.split())
            for line in references
        ]

    return references, spoilt(0.30), spoilt(0.36)


def pairs_of(records: list[Record]) -> list[list[Pair]]:
    (group,) = group_records(records)
    return pairs(group)


def interval(low: float, high: float, level: float = 0.95) -> Interval:
    return Interval(low=low, high=high, level=level)


def metric_tests(
    metric: str, low: float, high: float, p_worse: float = 0.01, seeds: int = 1
) -> MetricTests:
    """With those ends of the 90 % interval; that of 95 % is 0.1 wider on each side."""
    difference, margin = (low + high) / 2, MARGINS.get(metric)
    whole = interval(low - 0.1, high + 0.1)
    seed = SeedTests(difference=difference, interval=whole, p_bootstrap=0.02, p_randomization=0.04)
    return MetricTests(
        metric=metric,
        signature="x",
        lines=500,
        margin=margin,
        seeds=[seed] * seeds,
        together=AllSeeds(
            difference=difference,
            interval=whole,
            tost=interval(low, high, 0.9),
            p_worse=p_worse if margin else None,
        ),
    )


def comparison(pair: Pair, low: float, high: float, p_worse: float = 0.01) -> Comparison:
    return Comparison(
        schema_version=SCHEMA_VERSION,
        settings=Settings(),
        sides=pair.sides,
        metrics=[metric_tests(m, low, high, p_worse, len(pair.seeds)) for m in TESTED],
    )
