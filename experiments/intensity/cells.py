"""A cell: one load, done in turn by models that differ in key/value heads, and what was predicted.

The rates of a prediction are those that the probes found between the rounds of the same cell, and
its overhead a step is that of a tiny model (`stand_in`), measured apart: nothing is fitted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from experiments.measure.request import DTYPES
from experiments.records.checked import (
    Checked,
    Positive,
    Rate,
    Seconds,
    Text,
    require,
    require_close,
)
from experiments.records.measurement import Measurement, Timing, TrainingUpdates
from experiments.records.parts import Precision, search_name
from experiments.records.storage import read_versioned, write_json
from gqa_fairseq.architecture import Architecture, Heads
from gqa_fairseq.costs import step_matrix_elements, training_memory_bytes
from gqa_fairseq.roofline import (
    BYTES,
    Load,
    Machine,
    Part,
    decoder_seconds,
    encoder_seconds,
    kv_bytes,
    total_seconds,
    training_seconds,
)

SCHEMA_VERSION = 1
CLOSE = 0.25  # a prediction is to be within this share of what was measured
STAND_IN, STAND_IN_TOKENS = "tiny", 32
ENGINES = {"int8": "gqa+int8"}  # by the type of the weights; any other is the plugin's own
PRECISIONS: dict[str, Precision] = {dtype: name for name, dtype in DTYPES.items()}  # of costs.py


@dataclass(frozen=True)
class Cell:
    """One load and the models that do it in turn; `is_training`: an update in place of decoding."""

    architectures: tuple[Architecture, ...]
    load: Load
    is_training: bool = False

    @property
    def name(self) -> str:
        """Also of its file, such as `greedy-float32-16x512x512`."""
        load = self.load
        shape = f"{load.batch}x{load.source_tokens}x{load.target_tokens}"
        what = "training" if self.is_training else search_name(load.beam)
        return f"{what}-{load.weights}-{shape}"

    @property
    def engine(self) -> str:
        return ENGINES.get(self.load.weights, "gqa")

    @property
    def steps(self) -> int:
        return 1 if self.is_training else self.load.target_tokens


class Rates(Checked, frozen=True, kw_only=True):
    """What the probes found between the rounds: medians, in bytes and operations a second.

    `step_flops_per_s` is that of products of a step's rows by weights from memory.
    """

    bytes_per_s: Rate
    flops_per_s: dict[str, Rate]
    step_flops_per_s: Rate | None = None

    def machine(self, step_overhead_s: float = 0.0) -> Machine:
        return Machine(
            "the probes", self.bytes_per_s, self.flops_per_s, 0, "between the rounds",
            next(iter(self.flops_per_s)), step_overhead_s, self.step_flops_per_s,
        )  # fmt: skip


class Prediction(Checked, frozen=True, kw_only=True):
    """Of one model. `error` is predicted over measured, less 1; both are null if not measured."""

    num_kv_heads: Positive
    parts: list[Part]
    predicted_s: Seconds
    measured_s: Seconds | None = None
    error: float | None = None

    def check(self) -> None:
        require_close("predicted_s", self, total_seconds(self.parts))
        require((self.measured_s is None) == (self.error is None), "measured_s without error")
        if self.measured_s is not None:
            require_close("error", self, self.predicted_s / self.measured_s - 1)

    @property
    def is_close(self) -> bool:
        return self.error is not None and abs(self.error) <= CLOSE


class CellRecord(Checked, frozen=True, kw_only=True):
    """A measured cell. Models are in the order of the predictions; so are the samples.

    The published model has `scale` times as many layers. Where that is not 1,
    `whole_step_overhead_s` is the overhead of a step with all of them, measured apart as well.
    """

    schema_version: int
    plan: Text
    scale: Positive = 1
    load: Load
    rates: Rates
    step_overhead_s: Seconds
    whole_step_overhead_s: Seconds | None = None
    predictions: Annotated[list[Prediction], Meta(min_length=1)]
    measurement: Measurement

    def check(self) -> None:
        require(len(self.measurement.timings) == 1, "a cell has one timing")
        require(
            len(self.predictions) == len(self.timing.samples),
            "there are not as many predictions as models",
        )
        is_scaled = self.scale > 1 and not self.cell.is_training
        require(
            is_scaled == (self.whole_step_overhead_s is not None),
            "whole_step_overhead_s goes with a scale above 1",
        )

    @property
    def timing(self) -> Timing:
        return self.measurement.timings[0]

    @property
    def cell(self) -> Cell:
        own = tuple(samples.contender.architecture for samples in self.timing.samples)
        return Cell(own, self.load, is_training(self.timing))


def compared(
    plan: str,
    load: Load,
    step_overhead_s: float,
    measured: Measurement,
    scale: int = 1,
    whole_step_overhead_s: float | None = None,
) -> CellRecord:
    """The record of a cell that was measured: its prediction is made of its own rates."""
    (timing,) = measured.timings
    rates = rates_of([timing], measured.dtype)
    machine = rates.machine(step_overhead_s)
    predictions = []
    for samples in timing.samples:
        raw = samples.raw_s("decoder") or samples.total_s
        took = statistics.median(raw)
        parts = parts_of(samples.contender.architecture, load, machine, is_training(timing))
        predicted = total_seconds(parts)
        predictions.append(
            Prediction(
                num_kv_heads=samples.contender.architecture.num_kv_heads,
                parts=parts,
                predicted_s=predicted,
                measured_s=took,
                error=predicted / took - 1,
            )
        )
    return CellRecord(
        schema_version=SCHEMA_VERSION,
        plan=plan,
        scale=scale,
        load=load,
        rates=rates,
        step_overhead_s=step_overhead_s,
        whole_step_overhead_s=whole_step_overhead_s,
        predictions=predictions,
        measurement=measured,
    )


def closeness(records: Iterable[CellRecord]) -> tuple[int, int]:
    """How many predictions are within CLOSE of what was measured, and of how many."""
    close = [one.is_close for record in records for one in record.predictions]
    return sum(close), len(close)


def is_training(timing: Timing) -> bool:
    return isinstance(timing.workload, TrainingUpdates)


def rates_of(timings: Sequence[Timing], dtype: str) -> Rates:
    """Medians over all rounds of the timings."""
    flops = {dtype: statistics.median([r for t in timings for r in t.matrix_flops_per_s])}
    if int8 := [rate for t in timings for rate in t.int8_flops_per_s]:
        flops["int8"] = statistics.median(int8)
    read = statistics.median([r for t in timings for r in t.read_bytes_per_s])
    steps = [rate for t in timings for rate in t.step_flops_per_s]
    return Rates(
        bytes_per_s=read,
        flops_per_s=flops,
        step_flops_per_s=statistics.median(steps) if steps else None,
    )


def parts_of(own: Architecture, load: Load, machine: Machine, is_training: bool) -> list[Part]:
    """The predicted parts of what a cell measures: decoding without the encoder, or an update."""
    seconds = training_seconds if is_training else decoder_seconds
    return seconds(own, load, machine)


def stand_in(own: Architecture) -> Architecture:
    """A tiny model with as many decoder layers and words: nearly nothing but overhead."""
    heads = Heads(2, 16, 2)
    return replace(
        own, name=STAND_IN, d_model=heads.query_width, encoder_heads=heads, decoder_heads=heads,
        encoder_layers=1, encoder_d_ff=32, decoder_d_ff=32, residual=0,
    )  # fmt: skip


def stand_in_cell(cell: Cell, scale: int = 1) -> Cell:
    """What measures the overhead of a cell's steps: few steps of as many rows.

    With `scale` times as many decoder layers.
    """
    load = replace(cell.load, source_tokens=STAND_IN_TOKENS, target_tokens=STAND_IN_TOKENS)
    tiny = stand_in(cell.architectures[0])
    return Cell((replace(tiny, decoder_layers=scale * tiny.decoder_layers),), load)


def stand_ins(cell: Cell, scale: int = 1) -> dict[str, Cell]:
    """All that a cell of a plan with `scale` needs, by the names of their records.

    An update has no steps, and needs none.
    """
    if cell.is_training:
        return {}
    own = stand_in_cell(cell)
    whole = {whole_name(own): stand_in_cell(cell, scale)} if scale > 1 else {}
    return {own.name: own} | whole


def whole_name(own: Cell) -> str:
    """The name of the record of a stand-in with all layers of the published model."""
    return f"{own.name}-all-layers"


def overhead_s(record: CellRecord) -> float:
    """What a step of a stand-in takes beyond what is counted; 0 where that is no time."""
    (only,) = record.predictions
    assert only.measured_s is not None
    return max(0.0, only.measured_s - only.predicted_s) / record.load.target_tokens


def whole_seconds(cell: Cell, machine: Machine) -> float:
    """A round of a cell, predicted: every model once, the encoder included."""
    decoded = sum(
        total_seconds(parts_of(own, cell.load, machine, cell.is_training))
        for own in cell.architectures
    )
    if cell.is_training:
        return decoded
    return decoded + sum(
        total_seconds(encoder_seconds(own, cell.load, machine)) for own in cell.architectures
    )


def needed_bytes(cell: Cell) -> int:
    """Memory that the cell's models take together, and the largest load of one beside them.

    Every model has its parameters and, for its steps, a second copy of their matrices. A load has
    its cache (that of the source twice while it is laid out), the encoder's activations and some
    copies of the scores of all words.
    """
    load, size = cell.load, BYTES[cell.load.cache]
    if cell.is_training:
        tokens = load.batch * max(load.source_tokens, load.target_tokens)
        each = [
            training_memory_bytes(own, PRECISIONS[load.cache], tokens) for own in cell.architectures
        ]
        return sum(state for state, _ in each) + max(activations for _, activations in each)
    models = sum(
        own.parameters * size + step_matrix_elements(own) * load.weight_bytes
        for own in cell.architectures
    )
    return models + max(_load_bytes(own, load) for own in cell.architectures)


def _load_bytes(own: Architecture, load: Load) -> int:
    kept = kv_bytes(own, load)
    scores = 4 * load.batch * load.beam * own.vocab_size
    encoder = load.batch * load.source_tokens * (6 * own.d_model + 2 * own.encoder_d_ff)
    return kept["self"] + 2 * kept["cross"] + (scores + encoder) * load.element_bytes


def read_cell(path: Path) -> CellRecord:
    """Read one record strictly; raises ExperimentError, one line with file and field."""
    return read_versioned(path, CellRecord, SCHEMA_VERSION, "measure it again")


def write_cell(folder: Path, record: CellRecord, name: str | None = None) -> None:
    """Whole or not at all; by the name of its cell unless another is given."""
    write_json(folder / f"{name or record.cell.name}.json", record)
