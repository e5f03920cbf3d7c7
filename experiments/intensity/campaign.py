"""Carries out a plan within a budget of time: the cheapest cells first, each a record when done.

What was interrupted goes on where it was: a cell whose record is there is not measured again. What
does not fit the memory, or the time, is predicted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from experiments.errors import ExperimentError
from experiments.intensity.cells import (
    SCHEMA_VERSION,
    Cell,
    CellRecord,
    Prediction,
    Rates,
    compared,
    needed_bytes,
    overhead_s,
    parts_of,
    rates_of,
    read_cell,
    stand_in_cell,
    whole_seconds,
    write_cell,
)
from experiments.intensity.plans import Plan
from experiments.intensity.updates import training_command
from experiments.measure.child import measure_in_process
from experiments.measure.request import Dtype, Request, RequestedContender, RequestedTraining
from experiments.records.checked import Checked, Device, Text
from experiments.records.measurement import Measurement
from experiments.records.storage import read_versioned, write_json
from gqa_fairseq.roofline import Load, Machine, total_seconds

OVERHEADS = "overhead"  # the folder of the stand-ins' records, beside those of the cells
REST_NAME = "predicted.json"
WARMUP_RUNS = 1
# Until some are measured: how many times as long as predicted a cell takes, and how long a process
# takes to start and to build its models.
FIRST_SLOWDOWN, START_S = 1.5, 45.0
CHUNK_S = 600.0  # cells of one process take about so long: a start is a small part of it
Why = Literal["memory", "time", "failed"]
Measure = Callable[[Request, Callable[[Measurement], None]], Measurement]


@dataclass(frozen=True)
class Settings:
    """Where and how: `machine` orders the cells and predicts what is not measured."""

    folder: Path
    machine: Machine
    memory_bytes: int
    budget_s: float
    device: Device
    dtype: Dtype
    threads: int
    repeats: int


class NotMeasured(Checked, frozen=True, kw_only=True):
    """A cell that was predicted alone, and what it lacked.

    `rates` are medians of the cells that were measured, but for that of a step's products, which
    is that of the stand-in with as many rows.
    """

    name: Text
    rates: Rates
    load: Load
    is_training: bool
    why: Why
    predictions: list[Prediction]


class Rest(Checked, frozen=True, kw_only=True):
    """The cells of a plan that were not measured."""

    schema_version: int
    plan: Text
    scale: int
    cells: list[NotMeasured]


class _BudgetSpentError(Exception):
    """Ends the process that measures."""


class Campaign:
    """One plan in one folder.

    Raises:
        ExperimentError: the folder has records of other models, or a damaged one.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        measure: Measure = measure_in_process,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = print,
    ) -> None:
        self.plan, self.settings = plan, settings
        self._measure, self._clock, self._say = measure, clock, say
        self._deadline = clock() + settings.budget_s
        self._failed: set[str] = set()
        self._slowdowns: dict[str, list[float]] = {}  # by the type of the weights
        self.overheads = read_cells(settings.folder / OVERHEADS)
        self.done = read_cells(settings.folder)
        for cell in plan.cells:
            found = self.done.get(cell.name)
            if found and found.cell.architectures != cell.architectures:
                raise ExperimentError(
                    f"{settings.folder}: {cell.name}.json is of other models (choose another --out)"
                )
        for record in self.done.values():
            self._learn(record)

    def fits(self, cell: Cell) -> bool:
        return needed_bytes(cell) <= self.settings.memory_bytes

    def cost_s(self, cell: Cell) -> float:
        """How long a cell is expected to take, without the start of its process."""
        known = self._slowdowns.get(cell.load.weights, [FIRST_SLOWDOWN])
        return statistics.median(known) * self._predicted_s(cell)

    def to_do(self) -> list[Cell]:
        """What is neither measured, nor too large, nor failed: the cheapest first."""
        cells = [
            cell
            for cell in self.plan.cells
            if cell.name not in self.done and cell.name not in self._failed and self.fits(cell)
        ]
        return sorted(cells, key=self.cost_s)

    def run(self) -> None:
        """Measure what the budget allows, and predict the rest."""
        self._measure_overheads()
        while cells := self._next():
            self._measure_cells(cells, self._take)
        self.write_rest()

    def write_rest(self) -> None:
        """Predict the cells that were not measured, with the medians of those that were."""
        lacking: list[tuple[Cell, Why]] = [
            (cell, self._why(cell)) for cell in self.plan.cells if cell.name not in self.done
        ]
        machine = self.settings.machine
        rates = Rates(bytes_per_s=machine.bytes_per_s, flops_per_s=dict(machine.flops_per_s))
        if self.done:
            rates = _rates(self.done.values())
        found = Rest(
            schema_version=SCHEMA_VERSION,
            plan=self.plan.name,
            scale=self.plan.scale,
            cells=[_predicted(cell, why, rates, self.overheads) for cell, why in lacking],
        )
        write_json(self.settings.folder / REST_NAME, found)

    def _why(self, cell: Cell) -> Why:
        if not self.fits(cell):
            return "memory"
        return "failed" if cell.name in self._failed else "time"

    def _is_late(self) -> bool:
        return self._clock() >= self._deadline

    def _predicted_s(self, cell: Cell) -> float:
        steps = cell.steps * len(cell.architectures)
        one = whole_seconds(cell, self.settings.machine) + steps * _overhead_s(cell, self.overheads)
        return (WARMUP_RUNS + self.settings.repeats) * one

    def _learn(self, record: CellRecord) -> None:
        """How much longer a cell took than predicted, its warm-up counted as a round."""
        timing = record.timing
        took = sum(sum(samples.total_s) for samples in timing.samples)
        rounds = WARMUP_RUNS + self.settings.repeats
        slowdown = took / timing.rounds * rounds / self._predicted_s(record.cell)
        self._slowdowns.setdefault(record.load.weights, []).append(slowdown)

    def _next(self) -> list[Cell]:
        """The cheapest cell, and the next ones of its models that one process can do as well."""
        left = self._deadline - self._clock() - START_S
        chosen: list[Cell] = []
        taken = 0.0
        for cell in self.to_do():
            if chosen and not _is_alike(cell, chosen[0]):
                continue
            cost = self.cost_s(cell)
            if taken + cost > (min(left, CHUNK_S) if chosen else left):
                break
            chosen.append(cell)
            taken += cost
        return chosen

    def _measure_overheads(self) -> None:
        """A stand-in for every beam, batch and type of weights that a cell needs."""
        needed = {
            own.name: own
            for own in (stand_in_cell(cell) for cell in self.plan.cells if not cell.is_training)
            if own.name not in self.overheads
        }
        while needed and not self._is_late():
            first = next(iter(needed.values()))
            alike = [cell for cell in needed.values() if _is_alike(cell, first)]
            self._measure_cells(alike, self._take_overhead)
            for cell in alike:
                del needed[cell.name]

    def _measure_cells(
        self, cells: Sequence[Cell], take: Callable[[Cell, Measurement], None]
    ) -> None:
        """Hand each cell to `take` when it is done; a process that fails costs its cell."""
        seen = 0

        def on_measured(measured: Measurement) -> None:
            nonlocal seen
            for timing in measured.timings[seen:]:
                take(cells[seen], msgspec.structs.replace(measured, timings=[timing]))
                seen += 1
            if seen < len(cells) and self._is_late():
                raise _BudgetSpentError

        try:
            with tempfile.TemporaryDirectory() as words:
                self._measure(self._request(cells, Path(words)), on_measured)
        except _BudgetSpentError:
            pass
        except ExperimentError as error:
            if seen == len(cells):
                raise
            self._failed.add(cells[seen].name)
            self._say(f"{cells[seen].name}: failed: {error}")

    def _request(self, cells: Sequence[Cell], words: Path) -> Request:
        """Of cells that are alike; of training, `words` is a folder for the dictionary."""
        first, settings = cells[0], self.settings
        contenders = [
            RequestedContender(architecture=own, engine=first.engine) for own in first.architectures
        ]
        what: dict[str, Any] = {"contenders": contenders}
        if first.is_training:
            load = first.load
            what["contenders"] = [
                msgspec.structs.replace(
                    one,
                    training_command=training_command(
                        one.architecture, words, settings.device, settings.dtype
                    ),
                )
                for one in contenders
            ]
            what["training"] = RequestedTraining(
                batch=load.batch,
                repeats=settings.repeats,
                source_tokens=load.source_tokens,
                target_tokens=load.target_tokens,
            )
        else:
            what["searches"] = [
                (load.batch, load.source_tokens, load.target_tokens, load.beam)
                for load in (cell.load for cell in cells)
            ]
        return Request(
            warmup_runs=WARMUP_RUNS,
            repeats=settings.repeats,
            memory=False,
            step_rates=not first.is_training,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
            **what,
        )

    def _take_overhead(self, cell: Cell, measured: Measurement) -> None:
        record = compared(self.plan.name, cell.load, 0.0, measured)
        write_cell(self.settings.folder / OVERHEADS, record)
        self.overheads[cell.name] = record
        self._say(f"{cell.name}: {1e3 * overhead_s(record):.2f} ms of overhead a step")

    def _take(self, cell: Cell, measured: Measurement) -> None:
        record = compared(self.plan.name, cell.load, _overhead_s(cell, self.overheads), measured)
        write_cell(self.settings.folder, record)
        self.done[cell.name] = record
        self._learn(record)
        found = ", ".join(
            f"G={one.num_kv_heads} {one.measured_s:.3g} s ({one.error:+.0%})"
            for one in record.predictions
        )
        self._say(f"{cell.name}: {found}")


def read_cells(folder: Path) -> dict[str, CellRecord]:
    """The records of a folder, by the names of their cells; raises ExperimentError."""
    paths = sorted(path for path in folder.glob("*.json") if path.name != REST_NAME)
    return {path.stem: read_cell(path) for path in paths}


def read_rest(folder: Path) -> Rest | None:
    path = folder / REST_NAME
    if not path.exists():
        return None
    return read_versioned(path, Rest, SCHEMA_VERSION, "carry out the plan again")


def predict_again(folder: Path) -> None:
    """Make all predictions of a folder's records anew: after the model was mended.

    Raises ExperimentError where a record is damaged.
    """
    overheads = read_cells(folder / OVERHEADS)
    for name, record in overheads.items():
        overheads[name] = compared(record.plan, record.load, 0.0, record.measurement)
        write_cell(folder / OVERHEADS, overheads[name])
    done = read_cells(folder)
    for record in done.values():
        overhead = _overhead_s(record.cell, overheads)
        write_cell(folder, compared(record.plan, record.load, overhead, record.measurement))
    if done and (rest := read_rest(folder)):
        rates, (any_record, *_) = _rates(done.values()), done.values()
        cells = [
            _predicted(
                Cell(any_record.cell.architectures, one.load, one.is_training),
                one.why,
                rates,
                overheads,
            )
            for one in rest.cells
        ]
        write_json(folder / REST_NAME, msgspec.structs.replace(rest, cells=cells))


def _rates(records: Iterable[CellRecord]) -> Rates:
    """Medians over all rounds."""
    found = list(records)
    return rates_of([record.timing for record in found], found[0].measurement.dtype)


def _overhead_s(cell: Cell, overheads: Mapping[str, CellRecord]) -> float:
    """Of a step; 0 until it is measured, and for training."""
    found = None if cell.is_training else overheads.get(stand_in_cell(cell).name)
    return overhead_s(found) if found else 0.0


def _predicted(
    cell: Cell, why: Why, rates: Rates, overheads: Mapping[str, CellRecord]
) -> NotMeasured:
    found = None if cell.is_training else overheads.get(stand_in_cell(cell).name)
    of_steps = found.rates.step_flops_per_s if found else None
    rates = msgspec.structs.replace(rates, step_flops_per_s=of_steps)
    machine = rates.machine(_overhead_s(cell, overheads))
    predictions = []
    for own in cell.architectures:
        parts = parts_of(own, cell.load, machine, cell.is_training)
        predictions.append(
            Prediction(num_kv_heads=own.num_kv_heads, parts=parts, predicted_s=total_seconds(parts))
        )
    return NotMeasured(
        name=cell.name,
        rates=rates,
        load=cell.load,
        is_training=cell.is_training,
        why=why,
        predictions=predictions,
    )


def _is_alike(a: Cell, b: Cell) -> bool:
    """Whether one process can do both."""
    both_decode = not a.is_training and not b.is_training
    return both_decode and (a.architectures, a.engine) == (b.architectures, b.engine)
