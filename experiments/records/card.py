"""A card's answers (docs/gpu.md): how each part ended, and the records that are not measurements.

Nothing imports torch. Every record names its card, driver, torch, dtype and code.
"""

import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from experiments.records.checked import (
    Checked,
    Device,
    Positive,
    Rates,
    Seconds,
    Text,
    require,
)
from experiments.records.parts import Provenance
from experiments.records.storage import StructT, read_versioned

SCHEMA_VERSION = 1
SUMMARY_NAME = "summary.json"
WINS = 1.1  # the own kernel stays where it is faster than every library by more than this
Outcome = Literal["done", "failed", "timed out", "no time"]
CheckOutcome = Literal["passed", "failed", "skipped", "unfinished"]


class CardRecord(Checked, frozen=True, kw_only=True):
    """What all have in common."""

    schema_version: int = SCHEMA_VERSION
    created_utc: Annotated[datetime, Meta(tz=True)]
    provenance: Provenance
    device: Device
    dtype: Literal["float32", "bfloat16", "float16"]


class PartEnd(CardRecord, frozen=True, kw_only=True):
    """How one part ended; `found` is the line of the summary: the figure, and what was to be."""

    part: Text
    outcome: Outcome
    wall_s: Seconds
    found: str = ""

    def is_of(self, provenance: Provenance, device: Device) -> bool:
        """Whether it was made by the same sources on the same card.

        The sources' digest decides, not the commit: keeping a record is a commit as well.
        """
        own, other = self.provenance, provenance
        if (self.device, own.code.digest) != (device, other.code.digest):
            return False
        if device == "cuda":
            return own.hardware.gpus == other.hardware.gpus
        return own.hardware.cpu_model == other.hardware.cpu_model


class Summary(Checked, frozen=True, kw_only=True):
    """The last end of each part on one card."""

    schema_version: int = SCHEMA_VERSION
    parts: list[PartEnd]

    def with_end(self, end: PartEnd) -> "Summary":
        """In place of an earlier end of the same part."""
        kept = [one for one in self.parts if one.part != end.part]
        return msgspec.structs.replace(self, parts=[*kept, end])

    def done(self, part: str, provenance: Provenance, device: Device) -> PartEnd | None:
        """The end of the part, where it is done by the same sources on the same card."""
        for one in self.parts:
            if one.part == part and one.outcome == "done" and one.is_of(provenance, device):
                return one
        return None


class Check(Checked, frozen=True, kw_only=True):
    """One test, by pytest's name for it."""

    name: Text
    outcome: CheckOutcome


class Checks(CardRecord, frozen=True, kw_only=True):
    """The tests of a part; `unfinished` are those that the time did not suffice for."""

    checks: Annotated[list[Check], Meta(min_length=1)]

    @property
    def found(self) -> str:
        counts = dict.fromkeys(("passed", "failed", "skipped", "unfinished"), 0)
        for check in self.checks:
            counts[check.outcome] += 1
        others = "".join(f", {n} {kind}" for kind, n in counts.items() if n and kind != "passed")
        return f"{counts['passed']} of {len(self.checks)} tests passed{others} (to reach: all)"

    @property
    def are_green(self) -> bool:
        return all(check.outcome in ("passed", "skipped") for check in self.checks)


class AttentionTimes(Checked, frozen=True, kw_only=True):
    """One way to attend: seconds of a call in each round, or why it cannot.

    `error` is the largest difference from float64 over the mean of |values|.
    """

    name: Text
    seconds: list[Seconds] = msgspec.field(default_factory=list)
    error: Annotated[float, Meta(ge=0)] | None = None
    refused: str = ""

    def check(self) -> None:
        require(bool(self.seconds) != bool(self.refused), "either times or a refusal")


class AttentionCase(Checked, frozen=True, kw_only=True):
    """One step's attention of one layer, by several ways in turn.

    `slots` are in view, `bytes_read` those of keys and values that some beam reads.
    """

    kind: Literal["self", "cross"]
    batch: Positive
    beam: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    slots: Positive
    bytes_read: Positive
    ways: Annotated[list[AttentionTimes], Meta(min_length=1)]

    @property
    def name(self) -> str:
        return (
            f"{self.kind}, batch {self.batch}, beam {self.beam}, G = {self.kv_heads}, "
            f"{self.slots} slots"
        )

    def median_s(self, way: AttentionTimes) -> float:
        return statistics.median(way.seconds)

    @property
    def best_library(self) -> AttentionTimes | None:
        """The fastest that is not the own kernel; None where all refuse."""
        others = [way for way in self.ways if way.seconds and way.name != "own"]
        return min(others, key=self.median_s, default=None)

    @property
    def times_as_fast(self) -> float | None:
        """The best library's time over the own kernel's; None where one of them is not there."""
        own = next((way for way in self.ways if way.name == "own" and way.seconds), None)
        best = self.best_library
        return self.median_s(best) / self.median_s(own) if own and best else None


class AttentionCases(CardRecord, frozen=True, kw_only=True):
    """The own kernel against libraries."""

    read_bytes_per_s: Rates
    cases: Annotated[list[AttentionCase], Meta(min_length=1)]

    @property
    def found(self) -> str:
        ratios = [case.times_as_fast for case in self.cases]
        compared = [ratio for ratio in ratios if ratio is not None]
        if not compared:
            return "in no case did both the own kernel and a library run"
        wins = sum(ratio > WINS for ratio in compared)
        return (
            f"own kernel over the best library: more than {WINS} in {wins} of {len(compared)} "
            f"cases ({min(compared):.2f} to {max(compared):.2f})"
        )


class AtATime(Checked, frozen=True, kw_only=True):
    """So many trainings side by side: updates a second of all together, round by round."""

    trainings: Positive
    updates_per_s: Rates

    @property
    def median(self) -> float:
        return statistics.median(self.updates_per_s)


class SideBySide(CardRecord, frozen=True, kw_only=True):
    """Trainings of one small model side by side on one card; the first entry is one alone."""

    parameters: Positive
    tokens_per_update: Positive
    rates: Annotated[list[AtATime], Meta(min_length=1)]

    def check(self) -> None:
        require(self.rates[0].trainings == 1, "the first entry is one training alone")

    @property
    def found(self) -> str:
        alone = self.rates[0].median
        faster = ", ".join(
            f"{rate.trainings} at a time {rate.median / alone:.2f}" for rate in self.rates[1:]
        )
        return f"updates/s over one after the other: {faster} (alone {alone:.1f})"


class KernelTime(Checked, frozen=True, kw_only=True):
    name: Text
    calls: Positive
    device_s: Seconds


class SearchProfile(Checked, frozen=True, kw_only=True):
    """Where one search's time goes: the device's seconds by kernel, the longest first."""

    beam: Positive
    num_kv_heads: Positive
    steps: Positive
    wall_s: Seconds
    device_s: Seconds
    kernels: list[KernelTime]


class Profiles(CardRecord, frozen=True, kw_only=True):
    searches: Annotated[list[SearchProfile], Meta(min_length=1)]

    @property
    def found(self) -> str:
        """The share of the time in which the device works: what is left the host takes."""
        return "device busy: " + ", ".join(
            f"{min(1.0, one.device_s / one.wall_s):.0%} (beam {one.beam}, G = {one.num_kv_heads})"
            for one in self.searches
        )


def read_card_record(path: Path, kind: type[StructT]) -> StructT:
    """Read one record strictly; raises ExperimentError, one line with file and field."""
    return read_versioned(path, kind, SCHEMA_VERSION, "ask the card again")


def read_summary(folder: Path) -> Summary:
    """The ends of the parts of a folder; none where it has no summary."""
    path = folder / SUMMARY_NAME
    if not path.exists():
        return Summary(parts=[])
    return read_versioned(path, Summary, SCHEMA_VERSION, "ask the card again")


def lines_of(ends: Sequence[PartEnd]) -> list[str]:
    """A line for each part: how it ended, its seconds, its figure."""
    return [
        f"{end.part:<12} {end.outcome:<9} {end.wall_s:5.0f} s  {end.found}".rstrip() for end in ends
    ]
