"""What GPUs answered: a section for each card, of what `make gpu` left (docs/gpu.md)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.records.card import (
    SUMMARY_NAME,
    AttentionCases,
    AttentionTimes,
    CardRecord,
    Checks,
    PartEnd,
    Profiles,
    SideBySide,
    read_card_record,
    read_summary,
)
from experiments.records.measurement import read_measurement, search_label
from experiments.records.storage import read_each
from experiments.report.cells import NOT_APPLICABLE, Table
from experiments.report.measured import architectures, filled_table, machine, note, title

KERNELS_SHOWN = 8  # of a search's profile
PACKAGES = ("nvidia-driver", "torch", "triton")


@dataclass(frozen=True)
class Card:
    """One card's answers, of the files that they are made of."""

    name: str
    tables: list[Table]
    files: list[Path]


def read_cards(folders: Sequence[Path]) -> tuple[list[Card], list[str]]:
    """The cards whose summaries lie below folders of measurements, and a line for each bad file."""
    summaries = sorted({path for folder in folders for path in folder.rglob(SUMMARY_NAME)})
    ends, refused = read_each(summaries, lambda path: read_summary(path.parent).parts)
    cards = []
    for path, parts in ends.items():
        if not parts:
            continue
        files = [path.with_name(name) for name in TABLES if path.with_name(name).exists()]
        found, damaged = read_each(files, lambda file: list(TABLES[file.name](file)))
        refused += damaged
        cards.append(
            Card(
                name=", ".join(dict.fromkeys(parts[0].provenance.hardware.gpus)),
                tables=[_summary(parts), *(table for tables in found.values() for table in tables)],
                files=[path, *found],
            )
        )
    return cards, refused


def _summary(parts: Sequence[PartEnd]) -> Table:
    return Table(
        title="What the card answered",
        columns=["part", "how it ended", "found, and what was to be reached", "seconds"],
        rows=[[end.part, end.outcome, end.found, f"{end.wall_s:,.0f}"] for end in parts],
        notes=list(dict.fromkeys(map(_made_by, parts))),
    )


def _made_by(record: CardRecord) -> str:
    made = record.provenance
    packages = [f"{name} {made.versions[name]}" for name in PACKAGES if name in made.versions]
    return (
        f"{', '.join([*made.hardware.gpus, *packages, record.dtype])}; commit {made.code.label}, "
        f"{record.created_utc:%Y-%m-%d}."
    )


def _measured(path: Path) -> Iterator[Table]:
    """Of each workload; every contender takes its turn in each round."""
    measurement = read_measurement(path)
    for timing in measurement.timings:
        columns, *rows = filled_table(timing)
        notes = [note(timing), f"{machine(measurement)}.", *architectures(measurement)]
        yield Table(title(timing), columns, rows, notes)


def _checks(path: Path) -> Iterator[Table]:
    """Of the tests that did not pass."""
    record = read_card_record(path, Checks)
    others = [[check.name, check.outcome] for check in record.checks if check.outcome != "passed"]
    if others:
        yield Table("Tests that did not pass", ["test", "outcome"], others, [_made_by(record)])


def _kernels(path: Path) -> Iterator[Table]:
    record = read_card_record(path, AttentionCases)
    rows = []
    for case in record.cases:
        ways = {way.name: way for way in case.ways}
        best, faster = case.best_library, case.times_as_fast
        rows.append(
            [
                case.name,
                best.name if best else "none",
                _microseconds(ways.get("own")),
                _microseconds(best),
                f"{faster:.2f}" if faster else NOT_APPLICABLE,
            ]
        )
    columns = ["attention of one layer", "best library", "own µs", "library µs", "times as fast"]
    yield Table("The own attention kernel beside libraries", columns, rows, [_made_by(record)])


def _microseconds(way: AttentionTimes | None) -> str:
    if way is None or not way.seconds:
        return NOT_APPLICABLE
    return f"{statistics.median(way.seconds) * 1e6:,.1f}"


def _side_by_side(path: Path) -> Iterator[Table]:
    record = read_card_record(path, SideBySide)
    alone = record.rates[0].median
    yield Table(
        title="Trainings of the study's model on one card",
        columns=["at a time", "updates/s, all together", "times one alone"],
        rows=[
            [str(rate.trainings), f"{rate.median:,.1f}", f"{rate.median / alone:.2f}"]
            for rate in record.rates
        ],
        notes=[
            f"{record.parameters:,} parameters, {record.tokens_per_update:,} target tokens an "
            "update; medians of the rounds.",
            _made_by(record),
        ],
    )


def _profiles(path: Path) -> Iterator[Table]:
    record = read_card_record(path, Profiles)
    for search in record.searches:
        longest = sorted(search.kernels, key=lambda kernel: -kernel.device_s)[:KERNELS_SHOWN]
        yield Table(
            title=f"Where the time goes: {search_label(search.beam)}, G = {search.num_kv_heads}",
            columns=["kernel", "calls", "ms", "of the device's time"],
            rows=[
                [
                    kernel.name,
                    f"{kernel.calls:,}",
                    f"{kernel.device_s * 1e3:,.2f}",
                    f"{kernel.device_s / search.device_s:.0%}",
                ]
                for kernel in longest
            ],
            notes=[
                f"{search.steps:,} steps in {search.wall_s:.3g} s, the device busy in "
                f"{search.device_s:.3g} s of it; the {KERNELS_SHOWN} longest kernels.",
                _made_by(record),
            ],
        )


TABLES: dict[str, Callable[[Path], Iterator[Table]]] = {
    "correctness.json": _checks,
    "decoding.json": _measured,
    "kernels.json": _kernels,
    "training.json": _measured,
    "seeds.json": _side_by_side,
    "profile.json": _profiles,
    "memory.json": _measured,
}
