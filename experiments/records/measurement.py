"""A measurement: contenders that did the same work in turn, with every raw sample.

One schema serves the variants of a sweep, the engines of `python -m experiments.benchmark` and a
single job. Every figure is computed from the samples here. A ratio is always of two contenders of
one measurement: the median of the ratios of its rounds, with an interval. Nothing imports torch.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import comb
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from experiments.records.checked import (
    Checked,
    Count,
    Device,
    MemoryKind,
    Positive,
    Rates,
    RawSeconds,
    Seconds,
    Sha256,
    Text,
    median_us_per_token,
    require,
)
from experiments.records.parts import Provenance, search_name
from experiments.records.storage import read_versioned, write_json
from gqa_fairseq.architecture import Architecture

SCHEMA_VERSION = 1
MEASUREMENT_NAME = "measurement.json"
CONFIDENCE = 0.95
Phase = Literal["encoder", "decoder", "total"]
PHASES: tuple[Phase, ...] = ("encoder", "decoder", "total")


class FixedLengths(Checked, frozen=True, kw_only=True, tag="fixed_lengths", tag_field="kind"):
    """`batch` random sources, each decoded to exactly `target_tokens`, end of sentence included."""

    batch: Positive
    source_tokens: Positive
    target_tokens: Positive
    beam: Positive
    max_positions: Positive

    @property
    def title(self) -> str:
        return (
            f"{search_label(self.beam)}, batch {self.batch}: {self.source_tokens:,} source and "
            f"{self.target_tokens:,} target tokens"
        )


class RealText(Checked, frozen=True, kw_only=True, tag="real_text", tag_field="kind"):
    """Real text: `sentences` with `source_tokens` in all, padding not counted."""

    name: Text
    batch: Positive
    sentences: Positive
    source_tokens: Positive
    beam: Positive

    @property
    def title(self) -> str:
        return (
            f"{search_label(self.beam)}, batch {self.batch}: {self.name}, real text, "
            f"{self.sentences:,} sentences, {self.source_tokens:,} source tokens"
        )


class TrainingUpdates(Checked, frozen=True, kw_only=True, tag="training", tag_field="kind"):
    """One update (forward, backward, optimizer) on `batch` sentence pairs of fixed lengths."""

    batch: Positive
    source_tokens: Positive
    target_tokens: Positive

    @property
    def title(self) -> str:
        return (
            f"training update, {self.batch} sentences: {self.source_tokens:,} source and "
            f"{self.target_tokens:,} target tokens each"
        )


class TrainingText(Checked, frozen=True, kw_only=True, tag="training_text", tag_field="kind"):
    """An update on each of `updates` real batches of a training text; padding is not counted."""

    name: Text
    updates: Positive
    sentences: Positive
    source_tokens: Positive
    target_tokens: Positive

    @property
    def title(self) -> str:
        return (
            f"{self.updates} training updates: {self.name}, real text, {self.sentences:,} "
            f"sentences, {self.source_tokens:,} source and {self.target_tokens:,} target tokens"
        )


Workload = FixedLengths | RealText | TrainingUpdates | TrainingText


class Contender(Checked, frozen=True, kw_only=True):
    """An architecture with an engine; `jobs` are the ids of the jobs whose speed this is.

    Time does not depend on the weights but where beams come to share their history.
    """

    architecture: Architecture
    engine: Text
    weights: Literal["random", "trained"]
    jobs: tuple[Sha256, ...] = ()

    @property
    def name(self) -> str:
        """Such as `mqa, gqa` (architecture and engine)."""
        return f"{self.architecture.name}, {self.engine}"


class Samples(Checked, frozen=True, kw_only=True):
    """Raw times of one contender, round by round, and what its run amounts to.

    `encoder_s` is null where the encoder is not told apart. `bytes_by_part` and `flops` are the
    counts of gqa_fairseq.costs for the hypotheses that were found: what this plugin's decoder has
    to move and compute for them, whichever engine it was; empty and null for training. `flops` is
    null as well where products are in 8 bits: the rate of the measured product does not bind them.
    `kv_cache_bytes` counts self- and cross-attention at the full length; null where lengths vary.
    `peak_memory_bytes` is from a fresh process in which the contender was alone; null where it was
    not measured. `differing` counts best hypotheses that are not those of the first contender with
    the same architecture; null where engines end a forced length differently. `bleu` is
    sacrebleu's (0 to 100); null where there are no references.
    """

    contender: Contender
    tokens_produced: Positive
    total_s: RawSeconds
    encoder_s: list[Seconds] | None = None
    bytes_by_part: dict[str, Count] = msgspec.field(default_factory=dict)
    flops: Positive | None = None
    kv_cache_bytes: Positive | None = None
    peak_memory_bytes: Positive | None = None
    peak_memory_kind: MemoryKind | None = None
    differing: Count | None = None
    bleu: float | None = None

    def check(self) -> None:
        require(
            self.encoder_s is None or len(self.encoder_s) == len(self.total_s),
            "encoder_s and total_s have different numbers of rounds",
        )
        require(
            all(e < t for e, t in zip(self.encoder_s or (), self.total_s, strict=False)),
            "encoder_s is not below total_s",
        )

    def raw_s(self, phase: Phase) -> list[float] | None:
        """Seconds of each round; None where the phase is not told apart."""
        if phase == "total":
            return self.total_s
        if self.encoder_s is None or phase == "encoder":
            return self.encoder_s
        return [t - e for t, e in zip(self.total_s, self.encoder_s, strict=True)]

    def us_per_token(self, phase: Phase) -> float | None:
        """Median microseconds per token of the best hypotheses."""
        raw = self.raw_s(phase)
        return None if raw is None else median_us_per_token(raw, self.tokens_produced)


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, and an interval that has the true median with `confidence`."""

    median: float
    low: float
    high: float
    confidence: float


class Timing(Checked, frozen=True, kw_only=True):
    """Contenders on one workload, and what memory and matrix products reached between rounds.

    `int8_flops_per_s` is there where a contender multiplies in 8 bits, `step_flops_per_s`, of
    products of as many rows as a step has by weights from memory, where it was asked for.
    """

    workload: Workload
    warmup_runs: Positive
    samples: Annotated[list[Samples], Meta(min_length=1)]
    read_bytes_per_s: Rates
    matrix_flops_per_s: Rates
    int8_flops_per_s: list[float] = msgspec.field(default_factory=list)
    step_flops_per_s: list[float] = msgspec.field(default_factory=list)

    def check(self) -> None:
        rounds = {len(samples.total_s) for samples in self.samples}
        require(len(rounds) == 1, "contenders have different numbers of rounds")
        names = [(s.contender.architecture, s.contender.engine) for s in self.samples]
        require(len(names) == len(set(names)), "a contender is there twice")

    @property
    def rounds(self) -> int:
        return len(self.samples[0].total_s)

    def of_job(self, job: str) -> Samples | None:
        """The samples that are the speed of that job."""
        return next((s for s in self.samples if job in s.contender.jobs), None)

    def of(self, architecture: str, engine: str) -> Samples | None:
        """The samples of the architecture of that name with that engine."""
        for samples in self.samples:
            if (samples.contender.architecture.name, samples.contender.engine) == (
                architecture,
                engine,
            ):
                return samples
        return None

    def bandwidth_share(self, samples: Samples) -> float | None:
        """Bytes counted, over decoder time, as a share of what reading memory reached."""
        decoder_s = samples.raw_s("decoder")
        if decoder_s is None or not samples.bytes_by_part:
            return None
        reached = sum(samples.bytes_by_part.values()) / statistics.median(decoder_s)
        return reached / statistics.median(self.read_bytes_per_s)

    def roofline(self, samples: Samples) -> tuple[float, Literal["memory", "arithmetic"]] | None:
        """Least decoder time in seconds by the counts and the machine's rates, and which binds."""
        if not samples.bytes_by_part:
            return None
        memory_s = sum(samples.bytes_by_part.values()) / statistics.median(self.read_bytes_per_s)
        arithmetic_s = (samples.flops or 0) / statistics.median(self.matrix_flops_per_s)
        if memory_s >= arithmetic_s:
            return memory_s, "memory"
        return arithmetic_s, "arithmetic"


class Measurement(Checked, frozen=True, kw_only=True):
    """One run of the measurement. `operators` are whose a decoding step of the plugin takes."""

    schema_version: int = SCHEMA_VERSION
    created_utc: Annotated[datetime, Meta(tz=True)]
    provenance: Provenance
    device: Device
    dtype: Literal["float32", "bfloat16", "float16"]
    operators: Text
    timings: Annotated[list[Timing], Meta(min_length=1)]

    def check(self) -> None:
        require(
            self.schema_version == SCHEMA_VERSION,
            f"schema_version is {self.schema_version}, this code reads {SCHEMA_VERSION}",
        )

    @property
    def jobs(self) -> set[str]:
        """Ids of all jobs that it belongs to."""
        return {job for timing in self.timings for s in timing.samples for job in s.contender.jobs}


def speed_up(base: Samples, own: Samples, phase: Phase) -> Ratio | None:
    """How many times as fast `own` is as `base`: both from one timing, round by round.

    None where one of them does not tell the phase apart. Samples of different timings were not
    measured side by side: never pass them.
    """
    base_s, own_s = base.raw_s(phase), own.raw_s(phase)
    if base_s is None or own_s is None:
        return None
    per_token = own.tokens_produced / base.tokens_produced
    return median_ratio([b / o * per_token for b, o in zip(base_s, own_s, strict=True)])


def median_ratio(ratios: Sequence[float]) -> Ratio:
    """The median and its distribution-free interval from order statistics (sign test).

    The interval is the narrowest symmetric one with at least CONFIDENCE; with fewer than six ratios
    none reaches that, and it is the smallest and the largest, with the confidence that these have.
    """
    ordered, n = sorted(ratios), len(ratios)
    # Of 2 ** n equally likely patterns, those in which the median lies beyond rank r on a side.
    beyond = [2 * sum(comb(n, i) for i in range(r + 1)) / 2**n for r in range((n + 1) // 2)]
    rank = max((r for r, outside in enumerate(beyond) if 1 - outside >= CONFIDENCE), default=0)
    confidence = max(0.0, 1 - beyond[rank])
    return Ratio(statistics.median(ordered), ordered[rank], ordered[n - 1 - rank], confidence)


def search_label(beam: int) -> str:
    """`greedy` or `beam 4`."""
    return search_name(beam).replace("beam", "beam ")


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Write atomically; raises ExperimentError when it would be refused on reading."""
    write_json(path, measurement)


def read_measurement(path: Path) -> Measurement:
    """Read one measurement strictly; raises ExperimentError, one line with file and field."""
    return read_versioned(path, Measurement, SCHEMA_VERSION, "measure again")
