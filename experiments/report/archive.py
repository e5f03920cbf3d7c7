"""The files that a report is made of: read one by one, so that a bad one leaves the rest alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.records.measurement import Measurement, read_measurement
from experiments.records.record import Record, read_record, record_files
from experiments.records.significance import Comparison, comparison_files, read_comparison
from experiments.records.speed import measurement_files
from experiments.records.storage import read_each
from experiments.report.cards import Card, read_cards


@dataclass(frozen=True)
class Archive:
    """What could be read, by path; `refused` has a line for each other file."""

    records: dict[Path, Record]
    measurements: dict[Path, Measurement] = field(default_factory=dict)
    comparisons: dict[Path, Comparison] = field(default_factory=dict)
    cards: list[Card] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def tests(self) -> dict[str, Comparison]:
        """The comparisons by their keys."""
        return {comparison.key: comparison for comparison in self.comparisons.values()}

    def path_of(self, record: Record) -> Path | None:
        """Where the record lies."""
        return next((path for path, each in self.records.items() if each is record), None)

    def path_of_measurement(self, measurement: Measurement) -> Path | None:
        return next((p for p, each in self.measurements.items() if each is measurement), None)


def read_archive(
    records: Sequence[Path],
    measurements: Sequence[Path] = (),
    tests: Sequence[Path] = (),
    beside: Sequence[Path] = (),
    *,
    each_once: bool = True,
) -> Archive:
    """All records below folders, and what is at hand of measurements and tests.

    Where no folders of those are given, they are found beside the folders of records, or `beside`
    the folders of other ones; cards (docs/gpu.md) are found in given folders alone. Of records
    that are of one job the newest is read, unless `each_once` is false.

    Raises ExperimentError when a folder is missing.
    """
    files = dict.fromkeys(path for folder in records for path in record_files(folder))
    found, refused = read_each(files, read_record)
    found, doubled = _each_once(found) if each_once else (found, [])
    measured, refused_measurements = read_each(
        measurement_files(beside or records, measurements), read_measurement
    )
    compared, refused_tests = read_each(comparison_files(beside or records, tests), read_comparison)
    cards, refused_cards = read_cards(measurements)
    refused += [*doubled, *refused_measurements, *refused_tests, *refused_cards]
    return Archive(found, measured, compared, cards, refused)


def in_words(path: Path) -> str:
    """The path as it is typed in the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _each_once(found: dict[Path, Record]) -> tuple[dict[Path, Record], list[str]]:
    """A job has one record in each of its experiments: of several the newest counts.

    Experiments may share a job, whose id says what it is and not whose. A copy needs no word.
    """
    by_job: dict[tuple[str, str], Path] = {}
    doubled = []
    for path, record in found.items():
        job = record.job.experiment, record.job.id
        first = by_job.setdefault(job, path)
        other = found[first]
        if first == path or other == record:
            continue
        newer, older = path, first
        if other.job.started_utc > record.job.started_utc:
            newer, older = first, path
        by_job[job] = newer
        doubled.append(
            f"{older}: {in_words(newer)} is of the same job and says something else (remove the "
            "one that is wrong)"
        )
    kept = set(by_job.values())
    return {path: record for path, record in found.items() if path in kept}, doubled
