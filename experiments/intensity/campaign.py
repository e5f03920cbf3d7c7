"""Carries out a plan within a budget of time: the cheapest cells first, each a record when done.

What was interrupted goes on where it was: a cell whose record is there is not measured again. What
does not fit the memory, or the time, is predicted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from experiments.errors import ExperimentError
from experiments.intensity.cells import (
    SCHEMA_VERSION,
    STAND_IN,
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
    stand_ins,
    whole_name,
    whole_seconds,
    write_cell,
)
from experiments.intensity.plans import Plan
from experiments.intensity.updates import training_command
from experiments.measure.child import Measure, measure_in_process
from experiments.measure.request import Dtype, Request, RequestedContender, RequestedTraining
from experiments.records.checked import Checked, Device, Seconds, Text
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
STAND_IN_ROUNDS = 3  # at least: they are short, and all cells of as many rows rest on one
TRIES = 2  # of a stand-in: without it none of its cells can be predicted
Why = Literal["memory", "time", "failed"]


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
    is that of the stand-in with as many rows, and for types that were not measured: those are the
    machine's. `step_overhead_s` null: it is not known, and the prediction is without it.
    """

    name: Text
    rates: Rates
    load: Load
    is_training: bool
    why: Why
    step_overhead_s: Seconds | None
    predictions: list[Prediction]


class Rest(Checked, frozen=True, kw_only=True):
    """The cells of a plan that were not measured."""

    schema_version: int
    plan: Text
    cells: list[NotMeasured]


class _BudgetSpentError(Exception):
    """Ends the process that measures."""


class Campaign:
    """One plan in one folder. A cell is measured once the overhead of its steps is known.

    Raises:
        ExperimentError: the folder has records of other models, of another device, type or number
            of threads, or a damaged one.
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
        self._failed: Counter[str] = Counter()
        self._failed_overheads: Counter[str] = Counter()
        self._slowdowns: dict[str, list[float]] = {}  # by the type of the weights
        needed = {
            name: own for cell in plan.cells for name, own in stand_ins(cell, plan.scale).items()
        }
        self.overheads = self._known(settings.folder / OVERHEADS, needed)
        self.done = self._known(settings.folder, {cell.name: cell for cell in plan.cells})
        for record in self.done.values():
            self._learn(record)

    def _known(self, folder: Path, asked: Mapping[str, Cell]) -> dict[str, CellRecord]:
        """Those of a folder's records that the plan asks for."""
        found = read_cells(folder)
        settings = self.settings
        for name, record in found.items():
            measured = record.measurement
            threads = measured.provenance.threads
            for what, its, asked_for in (
                ("plan", record.plan, self.plan.name),
                ("device", measured.device, settings.device),
                ("dtype", measured.dtype, settings.dtype),
                ("threads", threads, settings.threads),
            ):
                if its != asked_for:
                    raise ExperimentError(
                        f"{folder}: {name}.json has {what} {its}, not {asked_for} (choose another "
                        "--out)"
                    )
            if name in asked and record.cell.architectures != asked[name].architectures:
                raise ExperimentError(
                    f"{folder}: {name}.json is of other models (choose another --out)"
                )
        return {name: record for name, record in found.items() if name in asked}

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
            if cell.name not in self.done and self.fits(cell) and not self._has_failed(cell)
        ]
        return sorted(cells, key=self.cost_s)

    def run(self) -> None:
        """Measure what the budget allows, and predict the rest, also when it is interrupted."""
        try:
            while cells := self._next():
                if lacking := self._first_lacking(cells):
                    self._measure_cells(lacking, self._take_overhead, self._failed_overheads)
                else:
                    named = {cell.name: cell for cell in cells}
                    self._measure_cells(named, self._take, self._failed)
        finally:
            self.write_rest()

    def write_rest(self) -> None:
        """Predict the cells that were not measured, with the medians of those that were."""
        lacking: list[tuple[Cell, Why]] = [
            (cell, self._why(cell)) for cell in self.plan.cells if cell.name not in self.done
        ]
        machine = self.settings.machine
        rates = Rates(bytes_per_s=machine.bytes_per_s, flops_per_s=dict(machine.flops_per_s))
        if self.done:
            rates = _rates(self.done.values(), machine.flops_per_s)
        found = Rest(
            schema_version=SCHEMA_VERSION,
            plan=self.plan.name,
            cells=[_predicted(cell, why, rates, self.overheads) for cell, why in lacking],
        )
        write_json(self.settings.folder / REST_NAME, found)

    def _why(self, cell: Cell) -> Why:
        if not self.fits(cell):
            return "memory"
        return "failed" if self._has_failed(cell) else "time"

    def _has_failed(self, cell: Cell) -> bool:
        """The cell itself, or what its overhead is measured with."""
        tried = (self._failed_overheads[name] for name in self._lacking(cell))
        return cell.name in self._failed or any(count >= TRIES for count in tried)

    def _lacking(self, cell: Cell) -> dict[str, Cell]:
        """The stand-ins of a cell that are not measured yet."""
        needed = stand_ins(cell, self.plan.scale)
        return {name: own for name, own in needed.items() if name not in self.overheads}

    def _is_late(self) -> bool:
        return self._clock() >= self._deadline

    def _predicted_s(self, cell: Cell) -> float:
        steps = cell.steps * len(cell.architectures)
        overhead = _overhead_s(cell, self.overheads) or 0.0
        one = whole_seconds(cell, self.settings.machine) + steps * overhead
        return (WARMUP_RUNS + self.settings.repeats) * one

    def _learn(self, record: CellRecord) -> None:
        """How much longer a cell took than predicted, its warm-up counted as a round."""
        timing = record.timing
        took = sum(sum(samples.total_s) for samples in timing.samples)
        rounds = WARMUP_RUNS + self.settings.repeats
        slowdown = took / timing.rounds * rounds / self._predicted_s(record.cell)
        self._slowdowns.setdefault(record.load.weights, []).append(slowdown)

    def _next(self) -> list[Cell]:
        """The cheapest cell, and what one process can do as well of all that the time allows."""
        chosen: list[Cell] = []
        taken = 0.0
        for cell in self.affordable():
            if chosen and not _is_alike(cell, chosen[0]):
                continue
            taken += self.cost_s(cell)
            if chosen and taken > CHUNK_S:
                break
            chosen.append(cell)
        return chosen

    def affordable(self) -> list[Cell]:
        """The cheapest cells that the time which is left allows, with all that they need."""
        left = self._deadline - self._clock()
        found: list[Cell] = []
        taken: dict[str, Cell] = {}  # stand-ins
        processes: list[Cell] = []  # a cell of each
        for cell in self.to_do():
            more = {name: own for name, own in self._lacking(cell).items() if name not in taken}
            left -= sum(map(self.cost_s, (*more.values(), cell)))
            for own in (*more.values(), cell):
                if not any(_is_alike(own, other) for other in processes):
                    processes.append(own)
                    left -= START_S
            if left < 0:
                break
            found.append(cell)
            taken |= more
        return found

    def _first_lacking(self, cells: Iterable[Cell]) -> dict[str, Cell]:
        """Stand-ins that some cells lack: as many as one process can do."""
        lacking: dict[str, Cell] = {}
        for cell in cells:
            lacking |= self._lacking(cell)
        first = next(iter(lacking.values()), None)
        return {name: own for name, own in lacking.items() if first and _is_alike(own, first)}

    def _measure_cells(
        self,
        cells: Mapping[str, Cell],
        take: Callable[[str, Cell, Measurement], None],
        failed: Counter[str],
    ) -> None:
        """Hand each cell to `take` when it is done; a process that fails costs its cell."""
        names = list(cells)
        seen = 0

        def on_measured(measured: Measurement) -> None:
            nonlocal seen
            for timing in measured.timings[seen:]:
                name = names[seen]
                take(name, cells[name], msgspec.structs.replace(measured, timings=[timing]))
                seen += 1
            if seen < len(cells) and self._is_late():
                raise _BudgetSpentError

        try:
            with tempfile.TemporaryDirectory() as words:
                self._measure(self._request(list(cells.values()), Path(words)), on_measured)
        except _BudgetSpentError:
            pass
        except ExperimentError as error:
            what = "the overhead of " if failed is self._failed_overheads else ""
            name = names[min(seen, len(names) - 1)]
            self._say(f"{what}{name}: failed: {error}")
            failed.update(names[seen : seen + 1])  # none where all were done before it failed

    def _request(self, cells: list[Cell], words: Path) -> Request:
        """Of cells that are alike; of training, `words` is a folder for the dictionary."""
        first, settings = cells[0], self.settings
        is_stand_in = len(first.architectures) == 1 and first.architectures[0].name == STAND_IN
        repeats = max(settings.repeats, STAND_IN_ROUNDS) if is_stand_in else settings.repeats
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
            repeats=repeats,
            memory=False,
            step_rates=not first.is_training,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
            **what,
        )

    def _take_overhead(self, name: str, cell: Cell, measured: Measurement) -> None:
        record = compared(self.plan.name, cell.load, 0.0, measured)
        write_cell(self.settings.folder / OVERHEADS, record, name)
        self.overheads[name] = record
        self._say(f"{name}: {1e3 * overhead_s(record):.2f} ms of overhead a step")

    def _take(self, name: str, cell: Cell, measured: Measurement) -> None:
        record = _compared(self.plan.name, self.plan.scale, cell, self.overheads, measured)
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


def read_folders(records: Path) -> dict[Path, dict[str, CellRecord]]:
    """The records of each folder in `records` that has some; raises ExperimentError without any.

    Those of stand-ins are no plan's own.
    """
    paths = [path for path in sorted(records.glob("*")) if path.is_dir() and path.name != OVERHEADS]
    found = {path: cells for path in paths if (cells := read_cells(path))}
    if not found:
        raise ExperimentError(
            f"{records}: no records (measure first: python -m experiments.grid grid --out "
            f"{records}/grid; or name the folder that has a folder for each plan)"
        )
    return found


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
        write_cell(folder / OVERHEADS, overheads[name], name)
    done = read_cells(folder)
    for record in done.values():
        made = _compared(record.plan, record.scale, record.cell, overheads, record.measurement)
        write_cell(folder, made)
    if done and (rest := read_rest(folder)):
        (any_record, *_) = done.values()
        cells = [
            _predicted(
                Cell(any_record.cell.architectures, one.load, one.is_training),
                one.why,
                _rates(done.values(), one.rates.flops_per_s),
                overheads,
            )
            for one in rest.cells
        ]
        write_json(folder / REST_NAME, msgspec.structs.replace(rest, cells=cells))


def _compared(
    plan: str,
    scale: int,
    cell: Cell,
    overheads: Mapping[str, CellRecord],
    measured: Measurement,
) -> CellRecord:
    """The record of a cell; raises ExperimentError where its stand-in was not measured."""
    own = _overhead_s(cell, overheads)
    whole = None
    if scale > 1 and not cell.is_training:
        found = overheads.get(whole_name(stand_in_cell(cell)))
        whole = overhead_s(found) if found else None
    if own is None or (scale > 1 and not cell.is_training and whole is None):
        raise ExperimentError(
            f"{cell.name}: the overhead of its steps is not known (carry out the plan again)"
        )
    return compared(plan, cell.load, own, measured, scale, whole)


def _rates(records: Iterable[CellRecord], others: Mapping[str, float]) -> Rates:
    """Medians over all rounds; `others` are rates of types that were not measured."""
    found = list(records)
    rates = rates_of([record.timing for record in found], found[0].measurement.dtype)
    flops = {kind: rate for kind, rate in others.items() if kind not in rates.flops_per_s}
    return msgspec.structs.replace(rates, flops_per_s=rates.flops_per_s | flops)


def _overhead_s(cell: Cell, overheads: Mapping[str, CellRecord]) -> float | None:
    """Of a step; None until it is measured, and 0 for training, which has none."""
    if cell.is_training:
        return 0.0
    found = overheads.get(stand_in_cell(cell).name)
    return overhead_s(found) if found else None


def _predicted(
    cell: Cell, why: Why, rates: Rates, overheads: Mapping[str, CellRecord]
) -> NotMeasured:
    found = None if cell.is_training else overheads.get(stand_in_cell(cell).name)
    of_steps = found.rates.step_flops_per_s if found else None
    rates = msgspec.structs.replace(rates, step_flops_per_s=of_steps)
    overhead = _overhead_s(cell, overheads)
    machine = rates.machine(overhead or 0.0)
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
        step_overhead_s=overhead,
        predictions=predictions,
    )


def _is_alike(a: Cell, b: Cell) -> bool:
    """Whether one process can do both."""
    both_decode = not a.is_training and not b.is_training
    return both_decode and (a.architectures, a.engine) == (b.architectures, b.engine)
