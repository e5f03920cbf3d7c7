"""Run the job of a record again, and say which of its numbers come out alike.

    python -m experiments.rerun results/runs/quickstart/JOB
    python -m experiments.rerun results/runs/quickstart/JOB results/runs/quickstart/JOB

The job is that of the record's config, trained anew below `--outputs`; prepared data is used where
it lies. Several jobs are measured side by side afterwards, as those of a sweep are. An interrupted
command goes on when it is given again; `--again` starts over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import msgspec

from experiments.arguments import Parser, command
from experiments.config import PathsConfig, SuiteConfig, TrackingConfig, parse_config
from experiments.errors import ExperimentError
from experiments.metrics import METRICS
from experiments.records.measurement import Measurement
from experiments.records.parts import Provenance
from experiments.records.record import RECORD_NAME, Diverged, Record, read_record
from experiments.records.speed import decoder_speed_up, find_measurements, fixed_length_timings
from experiments.report.cells import times_as_fast
from experiments.stages.folders import JobFolder
from experiments.stages.graph import Job, measurements_of, plan
from experiments.stages.job import run_job
from experiments.stages.measuring import measure
from experiments.stages.runner import forget
from experiments.stages.sweep import check_surroundings

DIFFERENT = 3  # exit code


class Number(NamedTuple):
    """A number of the record and what it is now; None where one of them has none."""

    name: str
    then: float | None
    now: float | None
    digits: int

    @property
    def verdict(self) -> str:
        """`the same`, or how far they are apart."""
        if self.then == self.now:
            return "the same"
        if self.then is None or self.now is None:
            return "not on both sides"
        return f"{self.now - self.then:+.{max(self.digits, 1)}g}"


def job_again(record: Record, outputs: Path, mirror: str | None = None) -> SuiteConfig:
    """The record's config with other folders; raises ExperimentError where it is not understood."""
    config = parse_config(record.config)
    folders = {name: str(outputs / name) for name in ("stages", "runs", "measurements", "report")}
    trained = record.stage("train") or record.stage("uptrain") or record.stages[-1]
    return msgspec.structs.replace(
        config,
        data=msgspec.structs.replace(config.data, mirror=mirror),
        paths=PathsConfig(data=config.paths.data, **folders),
        tracking=TrackingConfig(mode="none"),
        rerun=None,
        dry_run=False,
        # Sums differ in their last digits by the number of threads.
        hardware=msgspec.structs.replace(config.hardware, threads=trained.provenance.threads),
    )


def numbers(then: Record, now: Record) -> Iterator[Number]:
    """What both records say of the job, side by side."""
    yield Number("parameters", then.architecture.parameters, now.architecture.parameters, 12)
    one, other = last_train_loss(then), last_train_loss(now)
    yield Number("last train nats/token", one, other, 6)
    found = [record.evaluation for record in (then, now)]
    nats = [each.dev_nll_nats_per_token if each else None for each in found]
    yield Number("dev nats/token", nats[0], nats[1], 6)
    scores = [
        {(s.split, s.metric, s.search): s.value for s in (e.scores if e else ())} for e in found
    ]
    for split, metric, search in scores[0]:
        key = split, metric, search
        name = f"{split} {METRICS[metric].label} {search}"
        yield Number(name, scores[0][key], scores[1].get(key), 4)


def last_train_loss(record: Record) -> float | None:
    """The last train loss of the curve."""
    losses = [point.train_nll_nats_per_token for point in record.result.curve]
    return next((loss for loss in reversed(losses) if loss is not None), None)


def speeds(then: Measurement, now: Measurement) -> Iterator[str]:
    """A line for each speed-up of the decoder over multi-head attention that both have."""
    before = dict(fixed_length_timings(then))
    for workload, timing in fixed_length_timings(now):
        old = before.get(workload)
        for samples in timing.samples if old else ():
            contender = samples.contender
            if contender.architecture.is_baseline:
                continue
            counterpart = old and old.of(contender.architecture.name, contender.engine)
            kept = decoder_speed_up(old, counterpart) if old and counterpart else None
            fresh = decoder_speed_up(timing, samples)
            if kept is None or fresh is None:
                continue
            meet = fresh.low <= kept.high and kept.low <= fresh.high
            yield (
                f"{contender.architecture.name}, {workload.title}: {times_as_fast(kept)}, now "
                f"{times_as_fast(fresh)}: the intervals {'meet' if meet else 'do not meet'}"
            )


def report(then: Record, now: Record) -> bool:
    """Print both side by side; returns whether every number is the same."""
    print(f"{then.name}")
    if isinstance(then.result, Diverged) or isinstance(now.result, Diverged):
        ends = [
            f"diverged after update {r.result.after_update}"
            if isinstance(r.result, Diverged)
            else "finished"
            for r in (then, now)
        ]
        print(f"  training {ends[0]}, now {ends[1]}")
    found = list(numbers(then, now))
    width = max(len(each.name) for each in found)
    for each in found:
        values = (
            "–" if value is None else f"{value:,.{each.digits}g}" for value in (each.then, each.now)
        )
        print(f"  {each.name:<{width}}  {'  '.join(f'{v:>12}' for v in values)}  {each.verdict}")
    differing = [each for each in found if each.then != each.now]
    print(
        f"  {len(found) - len(differing)} of {len(found)} numbers are the same{_texts(then, now)}"
    )
    if differing:
        for line in _made_otherwise(then, now):
            print(f"  {line}")
    return not differing


def _texts(then: Record, now: Record) -> str:
    """Whether the translations are the same, file by file."""
    sides = [
        {(s.split, s.search): s.hypotheses_sha256 for s in (e.scores if e else ())}
        for e in (then.evaluation, now.evaluation)
    ]
    same = sum(sides[1].get(key) == digest for key, digest in sides[0].items())
    return f", and {same} of {len(sides[0])} files of translations" if sides[0] else ""


def _made_otherwise(then: Record, now: Record) -> Iterator[str]:
    """What made the two that may explain a difference, and of which stages it is true."""
    stages: dict[str, list[str]] = {}
    for before in then.stages:
        if after := now.stage(before.name):
            for line in _differing(before.provenance, after.provenance):
                stages.setdefault(line, []).append(before.name)
    for line, names in stages.items():
        yield f"{', '.join(names)}: {line}"


def _differing(before: Provenance, after: Provenance) -> Iterator[str]:
    if before.code.digest != after.code.digest:
        yield f"made by {before.code.label}, now {after.code.label}"
    for name in sorted(before.versions.keys() & after.versions.keys()):
        if before.versions[name] != after.versions[name]:
            yield f"made with {name} {before.versions[name]}, now {after.versions[name]}"
    if before.hardware.cpu_model != after.hardware.cpu_model:
        yield f"made on {before.hardware.cpu_model}, now {after.hardware.cpu_model}"
    if before.hardware.gpus != after.hardware.gpus:
        yield f"made with the GPUs {before.hardware.gpus}, now {after.hardware.gpus}"
    if before.threads != after.threads:
        yield f"made with {before.threads} threads, now {after.threads}"


def _run(job: Job) -> Record:
    outcome = run_job(job)
    if outcome.status == "failed":
        raise ExperimentError(f"{job.name}: {outcome.message}")
    return JobFolder(job.folder).record()


def _start_over(jobs: Sequence[Job]) -> None:
    for job in jobs:
        for stage in job.stages:
            if stage.name != "prepare":
                forget(stage)
        JobFolder(job.folder).record_path.unlink(missing_ok=True)


def _beside(paths: Sequence[Path]) -> list[Measurement]:
    """The measurements that lie beside these records."""
    return find_measurements([path.absolute().parent.parent for path in paths])


def _measure_again(
    jobs: Sequence[Job], then: Sequence[Record], known: Sequence[Measurement]
) -> None:
    """Measure jobs side by side, each group against the newest measurement of all its records."""
    ids = {job.folder: record.job.id for job, record in zip(jobs, then, strict=True)}
    for stage, group in measurements_of(jobs):
        names = ", ".join(job.name for job in group)
        if len(group) == 1:
            print(f"{names}: not measured: a speed-up is of several jobs that are measured alike")
            continue
        now = measure(stage, group)
        wanted = {ids[job.folder] for job in group}
        of_all = [measurement for measurement in known if wanted <= measurement.jobs]
        if not of_all:
            print(f"{names}: no measurement of all these records lies beside them")
            continue
        print(f"{names}: decoder speed-up over MHA")
        for line in speeds(max(of_all, key=lambda each: each.created_utc), now):
            print(f"  {line}")


@command(resumes=True)
def main(arguments: list[str] | None = None) -> int:
    """Run again and compare; returns the exit code, 3 where a number differs."""
    parser = Parser(
        prog="python -m experiments.rerun",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "records", nargs="+", type=Path, metavar="RECORD", help="a job's folder or its record.json"
    )
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs/rerun"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--mirror", help="take downloads from this folder or URL, as data.mirror does"
    )
    parser.add_argument("--again", action="store_true", help="start over where it was run before")
    options = parser.parse_args(arguments)
    for path in options.records:
        if path.is_dir() and not (path / RECORD_NAME).exists():
            raise ExperimentError(f"{path}: no {RECORD_NAME} in it (give the folder of a job)")
    paths = [path / RECORD_NAME if path.is_dir() else path for path in options.records]
    then = [read_record(path) for path in paths]
    jobs, _ = plan([job_again(record, options.outputs, options.mirror) for record in then])
    if len(jobs) != len(then):
        raise ExperimentError("two of the records are of one job: give each job once")
    for record, job in zip(then, jobs, strict=True):
        if job.id != record.job.id:
            print(f"{record.name}: its recipe, data or code's defaults have changed since")
    check_surroundings([job.config for job in jobs])
    # Before the work: a measurement that is refused then costs none.
    known = _beside(paths) if len(jobs) > 1 else []
    if options.again:
        _start_over(jobs)
    now = [_run(job) for job in jobs]
    same = [report(*each) for each in zip(then, now, strict=True)]
    if len(jobs) > 1:
        has_model = [record.evaluation is not None for record in now]
        for job in compress(jobs, [not each for each in has_model]):
            print(f"{job.name}: not measured: its training diverged")
        _measure_again(list(compress(jobs, has_model)), list(compress(then, has_model)), known)
    return 0 if all(same) else DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
