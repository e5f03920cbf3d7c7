"""How far the sweeps of a folder of outputs are, and how long what is left of them will take.

A stage that is left takes as long as those of its kind did in the same sweep; before one is done, a
training takes as long as its own updates so far say.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.errors import ExperimentError
from experiments.progress import in_words
from experiments.records.parts import updates_more
from experiments.records.storage import read_json
from experiments.stages.folders import RESULT_NAME, Converted, Done, JobFolder
from experiments.stages.runner import TRIES_NAME, Tries
from experiments.stages.status.inventory import StageFolder, stages_of, state_of_job


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of one experiment, by how far they are; `left_s` is None where nothing tells it.

    `unknown` names kinds of stages that are left, and of which none is done.
    """

    experiment: str
    done: int
    running: int
    diverged: int
    left: int
    left_s: float | None
    unknown: list[str]

    @property
    def line(self) -> str:
        """Such as `sweep quickstart: 3 jobs: 1 done, 1 running, 1 left; about 14 min of work`."""
        counts = {
            "done": self.done,
            "diverged": self.diverged,
            "running": self.running,
            "left": self.left,
        }
        shown = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        line = f"sweep {self.experiment}: {sum(counts.values())} jobs: {shown}"
        if self.left_s is None and not self.unknown:  # nothing but a record is left, if that
            return line
        if self.left_s is None:
            return f"{line}; how long it takes is known when the first stage is done"
        line += f"; about {in_words(self.left_s)} of work, one job at a time"
        return line + (f", and {', '.join(self.unknown)}" if self.unknown else "")


class _Info(msgspec.Struct):
    wall_s: float


class _Done(msgspec.Struct):
    """What is asked of the result of any stage."""

    info: _Info


def sweeps(jobs: Sequence[Path]) -> list[Sweep]:
    """Of the folders of jobs, those of an experiment that has several."""
    by_experiment: dict[str, list[Path]] = {}
    for job in jobs:
        by_experiment.setdefault(job.parent.name, []).append(job)
    return [_sweep(name, found) for name, found in by_experiment.items() if len(found) > 1]


def _sweep(experiment: str, jobs: Sequence[Path]) -> Sweep:
    counts = dict.fromkeys(("done", "running", "diverged", "left"), 0)
    stages: dict[Path, StageFolder] = {}
    owners: dict[Path, JobFolder] = {}
    unfinished: set[Path] = set()
    for path in jobs:
        job, state = JobFolder(path), state_of_job(path).state
        own = stages_of(job)
        stages |= {stage.path: stage for stage in own}
        owners |= {stage.path: job for stage in own}
        counts[state] += 1
        if state in ("running", "left"):
            unfinished |= {stage.path for stage in own if stage.state != "done"}
    took: dict[str, list[float]] = {}
    for stage in stages.values():
        if stage.state == "done" and (wall_s := _wall_s(stage)) is not None:
            took.setdefault(stage.kind, []).append(wall_s)
    expected = {
        path: _expected_s(stages[path], owners[path], took.get(stages[path].kind, []))
        for path in sorted(unfinished)
        if stages[path].kind != "prepare"
    }
    known = [seconds for seconds in expected.values() if seconds is not None]
    kinds = [stages[path].kind for path, seconds in expected.items() if seconds is None]
    return Sweep(
        experiment=experiment,
        left_s=sum(known) if known else None,
        unknown=[f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)],
        **counts,
    )


def _wall_s(stage: StageFolder) -> float | None:
    """What a stage that is done took; None for data, which keeps no time."""
    try:
        return read_json(stage.path / RESULT_NAME, _Done).info.wall_s
    except ExperimentError:  # not there, or damaged
        return None


def _expected_s(stage: StageFolder, job: JobFolder, took: Sequence[float]) -> float | None:
    """What is left of a stage, in seconds."""
    share = _share(stage, job)
    if took:
        return statistics.fmean(took) * (1 - share)
    try:
        tries = read_json(stage.path / TRIES_NAME, Tries)
    except ExperimentError:  # not there, or damaged
        return None
    return tries.wall_s * (1 - share) / share if share else None


def _share(stage: StageFolder, job: JobFolder) -> float:
    """How much of the updates of a training are done; 0 of another stage.

    The log of an uptraining goes on from the parent's last update.
    """
    if not stage.updates:
        return 0.0
    try:
        config = job.config()
        before = _parent_updates(job) if stage.kind == "uptrain" else 0
    except ExperimentError:  # of other code: its updates are not known
        return 0.0
    updates = config.train.max_updates
    if stage.kind == "uptrain":
        updates = updates_more(max(config.uptrain.points), before)
    return min(max(stage.updates - before, 0) / updates, 1.0)


def _parent_updates(job: JobFolder) -> int:
    """Updates of the model that is trained on; raises ExperimentError where it is not known."""
    [converted] = [stage.path for stage in stages_of(job) if stage.kind == "convert"]
    return read_json(converted / RESULT_NAME, Done[Converted]).result.parent_updates
