"""Made-up systems, and records in pairs."""

import random

from experiments.records.record import Record
from experiments.report.groups import group_records
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


def pairs_of(records: list[Record]) -> list[list[Pair]]:
    (group,) = group_records(records)
    return pairs(group)
