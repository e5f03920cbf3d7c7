"""What lies in a folder of outputs: jobs and stages, how far each is, and what takes how much.

It reads what the stages left, and needs no config of the command that made them.
"""

import fcntl
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from data_prep.spec import MANIFEST_NAME
from experiments.errors import ExperimentError
from experiments.records.record import RECORD_NAME
from experiments.records.storage import read_json
from experiments.stages.folders import RESULT_NAME, RESULTS, Diverged, JobFolder, Links
from experiments.stages.training.log import TrainUpdates, read_events

State = Literal["done", "running", "diverged", "unfinished"]


class StageFolder(msgspec.Struct, frozen=True, kw_only=True):
    """The folder of a stage; `kind` is the stage's name, `note` says how far an unfinished one is.

    `updates` are those of an unfinished training, as far as its log says. `running`: a process
    holds its lock.
    """

    kind: str
    path: Path
    state: State
    note: str = ""
    updates: int = 0

    @property
    def line(self) -> str:
        """Such as `unfinished, update 275`."""
        return f"{self.state}, {self.note}" if self.note else self.state


class Outputs(msgspec.Struct, frozen=True):
    """A folder that holds data/, stages/, runs/ and measurements/ (paths in conf/suite.yaml)."""

    path: Path

    def check(self) -> None:
        """Raise ExperimentError, one line, where there is nothing."""
        if not self.path.is_dir():
            raise ExperimentError(
                f"{self.path}: no such folder (run an experiment first, or give --outputs FOLDER)"
            )

    def stages(self) -> list[StageFolder]:
        """All folders of stages, in the order in which stages follow each other."""
        found = [("prepare", path) for path in _folders(self.path / "data")]
        for kind in sorted(_folders(self.path / "stages"), key=_order):
            found += [(kind.name, path) for path in _folders(kind)]
        for experiment in _folders(self.path / "measurements"):
            found += [("measure", path) for path in _folders(experiment)]
        return [_look_at(kind, path) for kind, path in found]

    def jobs(self) -> list[Path]:
        """The folders of all jobs."""
        experiments = _folders(self.path / "runs")
        return [job for experiment in experiments for job in _folders(experiment)]


class JobState(NamedTuple):
    """How far a job is; `line` says it in words: `done`, or its stages that are not."""

    state: Literal["done", "diverged", "running", "left"]
    line: str


def state_of_job(folder: Path) -> JobState:
    """How far the job of a folder is.

    What its record says counts. A record that is refused is made again by the job's command, so the
    job is not done.
    """
    job, left = JobFolder(folder), []
    stages = stages_of(job)
    if job.record_path.exists():
        try:
            record = job.record()
        except ExperimentError:
            left.append(f"{RECORD_NAME} cannot be read")
        else:
            if isinstance(record.result, Diverged):
                where, update = record.stages[-1].name, record.result.after_update
                return JobState("diverged", f"{where} diverged, after update {update}")
            return JobState("done", "done")
    elif not stages:
        left.append(f"no {RECORD_NAME} and no links to stages")
    for stage in stages:
        if stage.state == "diverged":
            return JobState("diverged", f"{stage.kind} {stage.line}")
        if stage.state != "done":
            begun = stage.path.exists()
            left.append(f"{stage.kind} {stage.line}" if begun else f"{stage.kind} not begun")
    is_running = any(stage.state == "running" for stage in stages)
    return JobState("running" if is_running else "left", "; ".join(left) or "record not written")


def stages_of(job: JobFolder) -> list[StageFolder]:
    """The stages of a job, in their order; none where it has no links that can be read."""
    try:
        links = msgspec.structs.asdict(read_json(job.links_path, Links))
    except ExperimentError:
        return []
    return [
        _look_at("prepare" if name == "data" else name, (job.path / path).resolve())
        for name, path in links.items()
        if path is not None
    ]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what a link leads to does not count."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(size_of(inner) for inner in path.iterdir())


def in_bytes(count: int) -> str:
    """Such as `12 kB`, `36 MB` or `2.5 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return (
                f"{count / size:.2g} {unit}" if count < 10 * size else f"{count / size:.0f} {unit}"
            )
    return f"{count} B"


def is_held(folder: Path) -> bool:
    """Whether a process works on a stage: the system frees its lock when that process ends."""
    for path in folder.glob(".*lock"):
        with path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _look_at(kind: str, path: Path) -> StageFolder:
    mark = MANIFEST_NAME if kind == "prepare" else RESULT_NAME
    trains = kind in ("train", "uptrain")
    state: State = "running" if is_held(path) else "unfinished"
    note = ""
    if state == "unfinished" and (path / mark).exists():
        try:
            result = read_json(path / mark, RESULTS[kind]).result if kind in RESULTS else None
        except ExperimentError:  # then the stage is done again
            note = f"{RESULT_NAME} cannot be read"
        else:
            if isinstance(result, Diverged):
                note = f"after update {result.after_update}"
                return StageFolder(kind=kind, path=path, state="diverged", note=note)
            return StageFolder(kind=kind, path=path, state="done")
    updates = _updates(path / "logs" / f"{kind}.log") if trains else 0
    note = note or (f"update {updates}" if updates else "")
    return StageFolder(kind=kind, path=path, state=state, note=note, updates=updates)


def _updates(log: Path) -> int:
    """The last update in the log of a training, 0 where there is none."""
    updates = [event.update for event in read_events(log) if isinstance(event, TrainUpdates)]
    return updates[-1] if updates else 0


def _folders(path: Path) -> list[Path]:
    """Folders in a folder, hidden ones left out."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _order(kind: Path) -> tuple[int, str]:
    names = ("train", "convert", "uptrain", "evaluate")
    return (names.index(kind.name) if kind.name in names else -1, kind.name)
