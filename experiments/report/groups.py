"""What may be compared with what: records into groups, and in a group one row a variant.

A variant is an architecture and, for a model that was uptrained, how: a row never mixes the two.

Two records stand in one table only where they are of one experiment, and their data and their
config agree in all but the attention, the seed and what says how a job is run. What made them
(code, versions, machine) does not part them: where it differs, made_by.py names it. Runs that
differ in their seed alone are one row: mean and standard deviation. A diverged training is never
averaged.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from experiments.records.measurement import Measurement, Samples, Timing
from experiments.records.parts import Uptraining
from experiments.records.record import Diverged, Finished, Record
from experiments.records.significance import Comparison
from gqa_fairseq.architecture import Architecture

# What may differ within a group: the attention and the seed are the question, the data is compared
# by its checksum, speed is in measurements, and the others say how a job is named, run and shown.
FREE_CONFIG_KEYS = frozenset(
    {
        "attention",
        "data",
        "dry_run",
        "experiment_name",
        "measure",
        "paths",
        "rerun",
        "seed",
        "tracking",
        "uptrain",
    }
)
# Precision, number of devices and tokens per device belong to training. These do not.
FREE_HARDWARE_KEYS = frozenset({"device", "master", "node_rank", "threads"})


@dataclass(frozen=True)
class Estimate:
    """Mean over `runs` runs and their sample standard deviation (None for one run)."""

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """The estimate of one value a run; None of no values."""
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


def source_of(record: Record) -> str:
    """The name of a record's place: its job's, and its experiment's, which may share the job."""
    experiment = hashlib.sha256(record.job.experiment.encode()).hexdigest()
    return f"job-{record.job.id[:8]}{experiment[:8]}"


@dataclass(frozen=True)
class Row:
    """The finished runs of one variant, by seed."""

    records: tuple[Record, ...]

    @property
    def architecture(self) -> Architecture:
        return self.records[0].architecture

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.records[0].variant

    @property
    def uptraining(self) -> Uptraining | None:
        """How the first of them was uptrained; its method and alpha are those of all."""
        return self.records[0].uptraining

    @property
    def source(self) -> str:
        """What a page calls the place that has the row's records; no other row has it."""
        return source_of(self.records[0])

    @property
    def results(self) -> list[Finished]:
        return [r.result for r in self.records if isinstance(r.result, Finished)]

    def estimate(self, value: Callable[[Finished], float | None]) -> Estimate | None:
        """Mean and deviation over the runs that have the value; None when none has it."""
        return Estimate.of(
            [found for result in self.results if (found := value(result)) is not None]
        )

    def samples(self, timing: Timing | None) -> Samples | None:
        """What the timing has of the jobs of this row."""
        found = (timing.of_job(record.job.id) for record in self.records) if timing else ()
        return next(filter(None, found), None)


@dataclass(frozen=True)
class Group:
    """Comparable records: the rows from most key/value heads to fewest.

    `measurement` is the one that all speeds of the group come from, `comparisons` are all tests
    that are at hand, by their keys.
    """

    rows: tuple[Row, ...]
    diverged: tuple[Record, ...]
    repeats_left_out: int
    measurement: Measurement | None = None
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def from_scratch(self) -> list[Row]:
        """The rows that were not uptrained: what the general plots show."""
        return [row for row in self.rows if row.uptraining is None]

    @property
    def finished(self) -> list[Record]:
        """All records that the rows hold."""
        return [record for row in self.rows for record in row.records]

    @property
    def records(self) -> list[Record]:
        """All records, diverged ones last."""
        return [*self.finished, *self.diverged]

    @property
    def first(self) -> Record:
        """Any of the records, for what the group has in common."""
        return self.records[0]

    @property
    def results(self) -> list[Finished]:
        return [result for row in self.rows for result in row.results]

    @property
    def key(self) -> bytes:
        """What all its records have in common: more of them change nothing."""
        return _group_key(self.first)


def group_records(
    records: Iterable[Record],
    measurements: Sequence[Measurement] = (),
    comparisons: Mapping[str, Comparison] | None = None,
) -> list[Group]:
    """Groups, the one with the newest record first.

    Of several records of one variant and seed in a group the newest counts. A group takes the
    measurement whose rows have most of its trainings; of several such, the newest.
    """
    by_key: dict[bytes, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.job.started_utc, reverse=True):
        by_key.setdefault(_group_key(record), []).append(record)
    groups = [_group(members, measurements) for members in by_key.values()]
    return [replace(group, comparisons=comparisons or {}) for group in groups]


def shared_config(record: Record) -> dict[str, object]:
    """The part of a record's config that is the same in its whole group."""
    config = {key: value for key, value in record.config.items() if key not in FREE_CONFIG_KEYS}
    hardware = config.get("hardware", {}).items()
    config["hardware"] = {key: value for key, value in hardware if key not in FREE_HARDWARE_KEYS}
    # Whether there is a baseline of the nearest line: the data's checksum tells, where it matters.
    config["data"] = {k: v for k, v in config.get("data", {}).items() if k != "nearest"}
    # So were all trainings whose records do not name it.
    train = config.get("train", {}).items()
    config["train"] = {k: v for k, v in train if (k, v) != ("implementation", "fairseq")}
    return config


def _group_key(record: Record) -> bytes:
    experiment = record.job.experiment
    key = (experiment, record.data.checksum, shared_config(record), _foreign_parent(record))
    return msgspec.json.encode(key, order="deterministic")


def _foreign_parent(record: Record) -> str | None:
    """The checkpoint that was uptrained, where no job trained it: its recipe is in no config."""
    if record.uptraining is None or record.stage("train"):
        return None
    return record.uptraining.parent


def _variant(record: Record) -> tuple[object, ...]:
    """What records of one row have in common, within a group."""
    uptraining = record.uptraining
    how = uptraining and (uptraining.method, uptraining.alpha)
    return record.architecture, how


def _group(newest_first: list[Record], measurements: Sequence[Measurement]) -> Group:
    newest: dict[tuple[object, ...], Record] = {}
    for record in newest_first:
        newest.setdefault((_variant(record), record.seed), record)
    ordered = sorted(newest.values(), key=lambda record: (*_order(record), record.seed))
    rows: dict[tuple[object, ...], list[Record]] = {}
    for record in ordered:
        if isinstance(record.result, Finished):
            rows.setdefault(_variant(record), []).append(record)
    found = tuple(Row(tuple(members)) for members in rows.values())
    return Group(
        rows=found,
        diverged=tuple(record for record in ordered if isinstance(record.result, Diverged)),
        repeats_left_out=len(newest_first) - len(ordered),
        measurement=_chosen(found, measurements),
    )


def _order(record: Record) -> tuple[object, ...]:
    architecture = record.architecture
    return -architecture.num_kv_heads, architecture.placement, record.variant


def _chosen(rows: Sequence[Row], measurements: Sequence[Measurement]) -> Measurement | None:
    """The measurement of the most trainings, by the rows that it has; of several such, the newest.

    So a later one of other variants takes no speed away from those with more seeds.
    """

    def trainings(measurement: Measurement) -> int:
        jobs = measurement.jobs
        covered = [row for row in rows if any(record.job.id in jobs for record in row.records)]
        return sum(len(row.records) for row in covered)

    return max(
        filter(trainings, measurements),
        key=lambda measurement: (trainings(measurement), measurement.created_utc),
        default=None,
    )
