"""What differs between sides: config, scores with tests, speed, and lines translated apart.

A side is the runs of one variant; all others are set against the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import msgspec

from experiments.errors import ExperimentError
from experiments.records.measurement import Measurement, RealText, search_label, speed_up
from experiments.records.record import Record
from experiments.records.significance import TESTED, Comparison, Settings, comparison_key
from experiments.records.speed import fixed_length_timings
from experiments.report.archive import Archive
from experiments.report.cells import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_TESTED,
    Table,
    number,
    times_as_fast,
)
from experiments.report.groups import Row
from experiments.report.made_by import made_by
from experiments.report.page.translations import system_of, text_of
from experiments.report.quality.comparisons import Pair, common_runs, scored
from experiments.report.quality.testing import Kept, compared
from experiments.report.quality.verdicts import difference_cell
from experiments.report.selection import HEADLINE_METRIC, ScoreKind, score_kind, score_value

# How a job is named, kept and shown.
UNINTERESTING = ("dry_run", "experiment_name", "paths.", "rerun", "seed", "tracking.")


@dataclass(frozen=True)
class Side:
    """The runs of one variant, by seed; `letter` is what tables call them."""

    letter: str
    label: str
    row: Row

    @property
    def records(self) -> tuple[Record, ...]:
        return self.row.records


def facts_of(record: Record) -> dict[str, str]:
    """What a record was made with, as text by name: its config, and what that came to."""
    facts = {
        "variant": record.variant,
        "seed": str(record.seed),
        "experiment": record.job.experiment,
        "parameters": f"{record.architecture.parameters:,}",
        "d_ff enc / dec": (
            f"{record.architecture.encoder_d_ff} / {record.architecture.decoder_d_ff}"
        ),
        "data checksum": record.data.checksum[:12],
    }

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            facts.setdefault(prefix, text)

    add("", record.config)
    return facts


def config_table(sides: Sequence[Side]) -> Table:
    """What is not the same on all sides."""
    facts = [[facts_of(record) for record in side.records] for side in sides]
    names = dict.fromkeys(name for name in chain(*chain(*facts)))
    rows = []
    for name in names:
        if name.startswith(UNINTERESTING):
            continue
        values = [
            ", ".join(dict.fromkeys(each.get(name, NOT_APPLICABLE) for each in of_side))
            for of_side in facts
        ]
        if len(set(values)) > 1:
            rows.append([name, *values])
    notes = made_by([record for side in sides for record in side.records])[1:]
    return Table(
        "What they were made with", ["setting", *[side.letter for side in sides]], rows, notes
    )


def score_tables(
    sides: Sequence[Side], archive: Archive, kept: Kept, settings: Settings
) -> Iterator[Table]:
    """Dev loss, then a table for each split and search, with what the tests say."""
    rows = []
    for side in sides:
        nats = side.row.estimate(lambda result: result.evaluation.dev_nll_nats_per_token)
        rows.append([side.letter, number(nats, 3)])
    yield Table("Dev loss", ["", "nats/token"], rows, [])
    for split, kind in _searched(sides):
        columns = ["", "BLEU", "chrF", "BLEU difference", "p", "chrF difference", "p"]
        rows, notes = [], []
        for place, side in enumerate(sides):
            chrf = ScoreKind("chrf", kind.beam, kind.length_penalty, kind.length_alpha)
            cells = [
                side.letter,
                number(side.row.estimate(score_value(split, kind)), 1),
                number(side.row.estimate(score_value(split, chrf)), 1),
            ]
            if place:
                tested = _tests(sides[0], side, split, kind, archive, kept, settings)
                if isinstance(tested, str):
                    notes.append(f"{side.letter}: {NOT_TESTED}: {tested}.")
                    cells += [NOT_TESTED] * 4
                else:
                    for metric in TESTED:
                        tests = tested.of(metric)
                        p_values = [each.p_randomization for each in tests.seeds]
                        cells.append(difference_cell(metric, tests.together))
                        cells.append(", ".join(f"{p:.4f}" for p in p_values))
            else:
                cells += [NOT_APPLICABLE] * 4
            rows.append(cells)
        title = f"Scores on {split}, {search_label(kind.beam)}"
        notes.append("p: paired randomization, two-sided, seed by seed; no correction is applied.")
        yield Table(title, columns, rows, notes)


def _searched(sides: Sequence[Side]) -> list[tuple[str, ScoreKind]]:
    """Splits and searches that all sides have the headline's score of."""
    found = [
        {
            (score.split, score_kind(score))
            for result in side.row.results
            for score in result.evaluation.scores
            if score.metric == HEADLINE_METRIC.name
        }
        for side in sides
    ]
    shared = set.intersection(*found)
    return sorted(shared, key=lambda each: (each[0] == "dev", each[0], each[1].beam, str(each[1])))


def _tests(
    baseline: Side,
    side: Side,
    split: str,
    kind: ScoreKind,
    archive: Archive,
    kept: Kept,
    settings: Settings,
) -> Comparison | str:
    """The tests, those that are at hand or made now; or why there are none."""
    runs = _runs(baseline, side, split, kind)
    if not runs:
        return "no seed has this score on both sides"
    if {one.data.checksum for one, _ in runs} != {other.data.checksum for _, other in runs}:
        return "they were trained on other data"
    pair = Pair(split, kind, side.row, baseline.row, runs)
    sides = pair.sides
    if comparison := archive.tests.get(comparison_key(sides, settings)):
        return comparison
    lacking = [digest for digest in [*sides.baseline, *sides.variant] if digest not in kept]
    if lacking:
        return f"translations {lacking[0][:12]} are not beside the records"
    try:
        return compared(pair, kept, settings)
    except ExperimentError as error:
        return str(error)


def _runs(
    baseline: Side, side: Side, split: str, kind: ScoreKind
) -> tuple[tuple[Record, Record], ...]:
    """By seed; two single runs of different seeds are a pair as well."""
    if len(baseline.records) == len(side.records) == 1:
        own, theirs = (scored(each.records, split, kind) for each in (side, baseline))
        return tuple(zip(theirs.values(), own.values(), strict=True))
    return common_runs(side.row, baseline.row, split, kind)


def speed_table(sides: Sequence[Side], archive: Archive) -> Table:
    """Decoding times of the newest measurement that has the first side and most others.

    A measurement names jobs by their ids, and so cannot tell sides with a job in common apart.
    """

    def covered(measurement: Measurement) -> list[Side]:
        return [s for s in sides if any(r.job.id in measurement.jobs for r in s.records)]

    columns = ["workload", *(f"{side.letter}: µs/token" for side in sides)]
    unmeasured = [["any", *[NOT_MEASURED] * len(sides)]]
    ids = [{record.job.id for record in side.records} for side in sides]
    for (one, its), (other, theirs) in combinations(zip(sides, ids, strict=True), 2):
        if its & theirs:
            note = (
                f"{one.letter} and {other.letter} are of one job: python -m experiments.rerun "
                "compares its speed with that of its record."
            )
            return Table("Speed", columns, unmeasured, [note])
    candidates = [m for m in archive.measurements.values() if sides[0] in covered(m)]
    if not candidates:
        return Table("Speed", columns, unmeasured, [])
    best = max(candidates, key=lambda m: (len(covered(m)), m.created_utc))
    timings = [timing for _, timing in fixed_length_timings(best)]
    timings += [timing for timing in best.timings if isinstance(timing.workload, RealText)]
    rows = []
    for timing in timings:
        cells = [timing.workload.title]
        base = sides[0].row.samples(timing)
        for side in sides:
            own = side.row.samples(timing)
            us = own.us_per_token("total") if own else None
            ratio = speed_up(base, own, "total") if own and base and own is not base else None
            faster = f", {times_as_fast(ratio)}" if ratio else ""
            cells.append(NOT_MEASURED if us is None else f"{us:,.1f}{faster}")
        rows.append(cells)
    note = (
        "Encoder and decoder together, of one measurement in which they took turns; behind it how "
        f"many times as fast as {sides[0].letter}."
    )
    return Table("Speed", columns, rows, [note])


def apart(
    sides: Sequence[Side], archive: Archive, folders: Sequence[Path], count: int
) -> Iterator[str]:
    """The lines whose chrF differs most between two sides, as text; the widest beam's on test.

    Of each side the first seed's translations are shown.
    """
    searches = [each for each in _searched(sides) if each[0] != "dev"]
    if not searches:
        yield "no translations of a test set on all sides"
        return
    split, kind = max(searches, key=lambda each: each[1].beam)
    record = sides[0].records[0]
    systems = []
    for side in sides:
        system = system_of(side.records[0], split, kind, archive)
        if system is None or side.records[0].data.checksum != record.data.checksum:
            yield f"{side.letter}: its translations are not kept, or of other data"
            return
        systems.append(system)
    text, _ = text_of(record, split, folders)
    scores = [system.chrf for system in systems]
    spread = [max(line) - min(line) for line in zip(*scores, strict=True)]
    places = sorted(range(len(spread)), key=lambda place: (-spread[place], place))[:count]
    seeds = ", ".join(f"{side.letter} of seed {side.records[0].seed}" for side in sides)
    search = search_label(kind.beam)
    yield f"{split}, {search}, {seeds}: lines whose chrF differs most, most first"
    for place in places:
        yield f"\nline {place + 1}"
        if text:
            yield f"  source     {text[place][0]}"
            yield f"  reference  {text[place][1]}"
        for side, system in zip(sides, systems, strict=True):
            yield f"  {side.letter} {system.chrf[place]:>6.1f}   {system.lines[place]}"
