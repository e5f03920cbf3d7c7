"""Tests of a difference in quality, kept: what experiments.significance computed, and of what.

One file compares two sides, such as MQA and MHA with one search on one test set, all seeds. Its
name is the key of what was compared: the digests of both sides' translations, and the settings. So
a report finds the tests of its records, and never those of other translations.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from experiments.errors import ExperimentError
from experiments.records.checked import Checked, Count, Positive, Sha256, Text, require
from experiments.records.storage import read_versioned, write_json

# Raised as well when the same settings would give other numbers: keys then are others.
SCHEMA_VERSION = 1
PREFIX = f"v{SCHEMA_VERSION}-"
# The metrics that are tested. (A second tokenizer is BLEU once more.)
TESTED = ("bleu", "chrf")
# How much worse still counts as "no worse"; fixed before any result was seen, and never changed for
# one. On WMT14 Shazeer 2019 calls multi-query attention only slightly worse at 0.2 BLEU less than
# multi-head, and a multi-head model with fewer heads, which loses 0.9, worse: 0.5 parts the two.
# The papers say nothing of chrF, so there is no margin for it.
MARGINS: Mapping[str, float] = {"bleu": 0.5}
LEVEL = 0.95  # of two-sided intervals, and of the one-sided bound

Probability = Annotated[float, Meta(ge=0, le=1)]


class Interval(Checked, frozen=True, kw_only=True):
    """Of a difference, variant - baseline; `level` is its two-sided confidence."""

    low: float
    high: float
    level: Annotated[float, Meta(gt=0, lt=1)]

    def check(self) -> None:
        require(self.low <= self.high, f"low is {self.low:g}, above high {self.high:g}")


class SeedTests(Checked, frozen=True, kw_only=True):
    """One run of each side, lines drawn anew; p-values as sacrebleu has them.

    Randomization's is two-sided. The bootstrap's is about half as large: sacrebleu takes a draw's
    distance from 0 less the mean of these distances, which is not 0.
    """

    difference: float
    interval: Interval
    p_bootstrap: Probability
    p_randomization: Probability


class AllSeeds(Checked, frozen=True, kw_only=True):
    """All runs together, lines and runs drawn anew; of one run the lines alone.

    `tost` has the level of two one-sided tests: its lower end is the one-sided bound. `p_worse` is
    one-sided: it is small where it is unlikely that the variant is worse by the margin or more;
    null where the metric has no margin.
    """

    difference: float
    interval: Interval
    tost: Interval
    p_worse: Probability | None


class MetricTests(Checked, frozen=True, kw_only=True):
    """All that is said of one metric; `seeds` in the order of the sides' digests."""

    metric: Text
    signature: Text
    lines: Positive
    margin: Annotated[float, Meta(gt=0)] | None
    seeds: Annotated[list[SeedTests], Meta(min_length=1)]
    together: AllSeeds

    @property
    def is_non_inferior(self) -> bool:
        """Whether "worse by less than the margin" is shown."""
        return self.margin is not None and self.together.tost.low > -self.margin

    @property
    def is_equivalent(self) -> bool:
        """Whether "neither worse nor better by the margin" is shown (TOST)."""
        return self.is_non_inferior and self.together.tost.high < (self.margin or 0)

    @property
    def smallest_margin(self) -> float:
        """No margin below it would have been shown; 0 where any would."""
        return max(0.0, -self.together.tost.low)

    @property
    def half_width(self) -> float:
        """Of the two-sided interval: what these runs and lines can tell apart."""
        return (self.together.interval.high - self.together.interval.low) / 2

    def check(self) -> None:
        mean = sum(seed.difference for seed in self.seeds) / len(self.seeds)
        require(
            abs(mean - self.together.difference) < 1e-6,
            f"{self.metric} differs by {self.together.difference:g}, its seeds by {mean:g}",
        )
        has_p = self.together.p_worse is not None
        require(has_p == (self.margin is not None), "margin and p_worse go together")


class Settings(Checked, frozen=True, kw_only=True):
    """What the tests depend on beside the translations: `resamples` are those of each test."""

    resamples: Positive = 10_000
    random_seed: Count = 12345  # sacrebleu's, so that its commands give the same p-values
    level: float = LEVEL
    margins: dict[str, float] = msgspec.field(default_factory=lambda: dict(MARGINS))


class Sides(Checked, frozen=True, kw_only=True):
    """The translations of two systems on one test set: their digests, run by run, in one order."""

    baseline: Annotated[list[Sha256], Meta(min_length=1)]
    variant: Annotated[list[Sha256], Meta(min_length=1)]

    def check(self) -> None:
        runs = len(self.baseline), len(self.variant)
        require(runs[0] == runs[1], f"baseline has {runs[0]} runs, variant {runs[1]}")


class Comparison(Checked, frozen=True, kw_only=True):
    """The tests of two sides."""

    schema_version: int
    settings: Settings
    sides: Sides
    metrics: list[MetricTests]

    @property
    def key(self) -> str:
        return comparison_key(self.sides, self.settings)

    def of(self, metric: str) -> MetricTests:
        """Raises KeyError for a metric that is none of TESTED."""
        return {tests.metric: tests for tests in self.metrics}[metric]

    def check(self) -> None:
        names = tuple(tests.metric for tests in self.metrics)
        require(names == TESTED, f"metrics are {', '.join(names)}, not {', '.join(TESTED)}")
        for tests in self.metrics:
            margin = self.settings.margins.get(tests.metric)
            require(
                tests.margin == margin,
                f"{tests.metric} has margin {tests.margin}, the settings {margin}",
            )
            runs = len(tests.seeds), len(self.sides.variant)
            require(runs[0] == runs[1], f"{tests.metric} has {runs[0]} seeds, the sides {runs[1]}")


def comparison_key(sides: Sides, settings: Settings) -> str:
    """The name of the file that has the tests of these sides, such as `v1-5250f46268a44314`."""
    asked = msgspec.json.encode((settings, sides), order="deterministic")
    return f"{PREFIX}{hashlib.sha256(asked).hexdigest()[:16]}"


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write it under its key; raises ExperimentError when it cannot be written."""
    write_json(folder / f"{comparison.key}.json", comparison)


def read_comparison(path: Path) -> Comparison:
    """Raises ExperimentError, one line, for a file that is damaged or of other sides."""
    remedy = "remove it, and run python -m experiments.significance"
    found = read_versioned(path, Comparison, SCHEMA_VERSION, remedy)
    if found.key != path.stem:
        raise ExperimentError(f"{path}: its sides or settings have another key ({remedy})")
    return found


def comparison_files(records: Sequence[Path], given: Sequence[Path] = ()) -> list[Path]:
    """Those of the folders `given`, or of the folders beside those of records.

    Beside `outputs/runs/quickstart` lies `outputs/tests`, and beside `results/runs`,
    `results/tests`. Where no folder is there is no file; tests of another version are left alone.

    Raises ExperimentError when a given folder is missing.
    """
    for folder in given:
        if not folder.is_dir():
            raise ExperimentError(
                f"{folder}: no such folder of tests (run python -m experiments.significance, or "
                "leave --tests out)"
            )
    beside = [f.absolute().parent / "tests" for f in records]
    beside += [f.absolute().parent.parent / "tests" for f in records]
    paths = {path for folder in given or beside for path in folder.glob(f"{PREFIX}*.json")}
    return sorted(paths)
