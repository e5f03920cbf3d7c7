"""Made-up systems, and records in a group or in pairs."""

import random

import synthetic_records as synthetic

from experiments.records.record import Record
from experiments.report.groups import Group, group_records
from experiments.report.quality.comparisons import Pair, pairs

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


def group_of(records: list[Record], *, measured: bool = True) -> Group:
    measurements = [synthetic.measurement(records)] if measured else []
    (group,) = group_records(records, measurements)
    return group


def pairs_of(records: list[Record]) -> list[list[Pair]]:
    (group,) = group_records(records)
    return pairs(group)
