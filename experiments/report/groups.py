"""What may be compared with what: records into groups, and in a group one row a variant.

Two records stand in one table only where data, hardware, code, versions and config agree in all
but the attention, the seed and what a result does not depend on. Runs of one variant that differ
in their seed are one row: mean and standard deviation.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from experiments.config import MACHINE_ROLE_KEYS
from experiments.records import Record

# What may differ within a group: the attention and the seed are the question, the data is compared
# by its checksum, the others say how a job was named, kept and shown.
FREE_CONFIG_KEYS = frozenset(
    {"attention", "seed", "data", "experiment_name", "force", "dry_run", "paths", "tracking"}
)
DECISIVE_VERSIONS = ("python", "torch", "ve-fairseq", "fairseq-fixed")


@dataclass(frozen=True)
class Estimate:
    """Mean over `runs` runs and their sample standard deviation (None for one run)."""

    mean: float
    deviation: float | None
    runs: int


@dataclass(frozen=True)
class Row:
    """The runs of one variant, by seed."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """Any of the runs, for what they have in common."""
        return self.records[0]

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.first.model.variant

    def estimate(self, value: Callable[[Record], float | None]) -> Estimate | None:
        """Mean and deviation over the runs that have the value; None when none has it."""
        values = [found for record in self.records if (found := value(record)) is not None]
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Estimate(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Group:
    """Comparable records: the rows from most key/value heads to fewest."""

    rows: tuple[Row, ...]
    repeats_left_out: int

    @property
    def records(self) -> list[Record]:
        """All records that the rows hold."""
        return [record for row in self.rows for record in row.records]

    @property
    def first(self) -> Record:
        """Any of the records, for what the group has in common."""
        return self.rows[0].first

    def mha(self, row: Row) -> Row | None:
        """The multi-head row with as many heads as `row`, when it is the only one."""
        heads = row.first.model.num_heads
        found = [
            other
            for other in self.rows
            if other.name == "mha" and other.first.model.num_heads == heads
        ]
        return found[0] if len(found) == 1 else None


def group_records(records: Iterable[Record]) -> list[Group]:
    """Groups, the one with the newest record first.

    Of several records of one variant and seed in a group the newest counts.
    """
    by_key: dict[bytes, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.job.started_utc, reverse=True):
        by_key.setdefault(_group_key(record), []).append(record)
    return [_group(members) for members in by_key.values()]


def _group(newest_first: list[Record]) -> Group:
    rows: dict[tuple[object, ...], dict[int, Record]] = {}
    for record in newest_first:
        rows.setdefault(_row_key(record), {}).setdefault(record.seed, record)
    kept = sum(len(by_seed) for by_seed in rows.values())
    return Group(
        rows=tuple(
            Row(tuple(by_seed[seed] for seed in sorted(by_seed)))
            for _, by_seed in sorted(rows.items(), key=lambda item: item[0])
        ),
        repeats_left_out=len(newest_first) - kept,
    )


def _group_key(record: Record) -> bytes:
    config = {key: value for key, value in record.config.items() if key not in FREE_CONFIG_KEYS}
    hardware = config.get("hardware", {}).items()
    config["hardware"] = {key: value for key, value in hardware if key not in MACHINE_ROLE_KEYS}
    versions = {name: record.versions.get(name) for name in DECISIVE_VERSIONS}
    # The kernel's share of the memory differs from boot to boot: gibibytes are enough.
    memory_gib = round(record.hardware.memory_bytes / 2**30)
    machine = msgspec.structs.replace(record.hardware, memory_bytes=max(1, memory_gib))
    key = (record.data.checksum, machine, record.code.version, config, versions)
    return msgspec.json.encode(key, order="deterministic")


def _row_key(record: Record) -> tuple[object, ...]:
    model = record.model
    # With as many key/value heads as heads the placement makes no difference.
    placement = "all" if model.num_kv_heads == model.num_heads else model.placement
    return (
        -model.num_kv_heads,
        placement,
        model.num_heads,
        model.encoder_d_ff,
        model.decoder_d_ff,
        model.parameters,
    )
