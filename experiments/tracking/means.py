"""The summary of a sweep: means over seeds with their intervals, which wandb cannot compute."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from experiments.records.significance import LEVEL, TESTED, MetricTests
from experiments.report.groups import Group, Row
from experiments.report.quality.comparisons import Pair, pairs
from experiments.report.quality.statistics import t_interval
from experiments.tracking.keys import seed_summary, seeds_summary, speed_summary, summary
from experiments.tracking.runs import PROJECT, Mode, RunStart, check_account, open_run

# What of a run's summary is averaged over seeds: quality, and not that of the baselines.
AVERAGED = ("nll_nats_per_token", "bleu", "chrf")
NO_MODEL = "_baseline_"
TABLE = "sweep/means"

Rows = dict[str, dict[str, float]]


def means(group: Group) -> Rows:
    """A row a variant, by key: the mean of each score over its seeds, what was tested, its speed.

    `_low` and `_high` are the ends of the mean's interval (Student's t); one seed has none.
    """
    rows: Rows = {row.name: {"runs": len(row.records)} | _averages(row) for row in group.rows}
    for pair, metric, tests in _tested(group):
        rows[pair.variant.name] |= seeds_summary(_key(pair, metric), tests)
    if measurement := group.measurement:
        for row in group.rows:
            for record in row.records:
                rows[row.name] |= speed_summary(measurement, record.job.id)
    return rows


def differences_of_seeds(group: Group) -> Rows:
    """What was tested of each run, by the id of its job."""
    found: Rows = {}
    for pair, metric, tests in _tested(group):
        for (_, variant), seed in zip(pair.runs, tests.seeds, strict=True):
            found.setdefault(variant.job.id, {}).update(seed_summary(_key(pair, metric), seed))
    return found


def log_means(group: Group, mode: Mode, directory: Path, project: str = PROJECT) -> str:
    """Make the run that sums a sweep up, or make it anew; returns its name.

    Its id comes from what its records have in common, so that a sweep has one, however often it
    grows. Raises ExperimentError when wandb refuses or cannot be reached.
    """
    rows, experiment = means(group), group.first.job.experiment
    name = f"{experiment}-summary"
    if mode == "none":
        return name
    check_account(mode)
    start = RunStart(
        id=f"{name}-{hashlib.sha256(group.key).hexdigest()[:12]}",
        name=name,
        group=experiment,
        config={"variant": "summary", "data": group.first.data.name, "interval_level": LEVEL},
        mode=mode,
        directory=str(directory),
        project=project,
        job_type="sweep",
    )
    keys = list(dict.fromkeys(chain.from_iterable(rows.values())))
    table = [[variant, *(row.get(key) for key in keys)] for variant, row in rows.items()]
    with open_run(start) as run:
        run.log_summary(
            {f"{v}/{key}": value for v, row in rows.items() for key, value in row.items()}
        )
        run.log_table(TABLE, ["variant", *keys], table)
    return name


def _averages(row: Row) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in row.records:
        for key, value in summary(record).items():
            metric = key.partition("/")[2]
            if metric.startswith(AVERAGED) and NO_MODEL not in key:
                values.setdefault(key, []).append(value)
    found: dict[str, float] = {}
    for key, of_seeds in values.items():
        found[key] = statistics.fmean(of_seeds)
        if interval := t_interval(of_seeds, LEVEL):
            found |= {f"{key}_low": interval.low, f"{key}_high": interval.high}
    return found


def _tested(group: Group) -> Iterator[tuple[Pair, str, MetricTests]]:
    """The tests that are at hand."""
    for pair in chain.from_iterable(pairs(group)):
        if tests := pair.tests(group):
            for metric in TESTED:
                yield pair, metric, tests.of(metric)


def _key(pair: Pair, metric: str) -> str:
    """What the score that was tested is called, such as `test/bleu_beam4`."""
    score = pair.score(pair.runs[0][1], metric)
    return f"{score.split}/{score.metric}_{score.search}"
