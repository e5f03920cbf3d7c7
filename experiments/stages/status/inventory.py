"""What lies in a folder of outputs: jobs and stages, how far each is, and what takes how much.

It reads what the stages left, and needs no config of the command that made them.
"""

import fcntl
from pathlib import Path
from typing import Literal

import msgspec

from data_prep.spec import MANIFEST_NAME
from experiments.errors import ExperimentError
from experiments.records.measurement import MEASUREMENT_NAME
from experiments.records.record import RECORD_NAME
from experiments.records.storage import read_json
from experiments.stages.folders import RESULT_NAME, Diverged, Done, JobFolder, Links, ModelResult
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


def state_of_job(folder: Path) -> str:
    """How far a job is, in words: `done`, or its stages that are not."""
    job = JobFolder(folder)
    if job.record_path.exists():
        return "done"
    if not job.links_path.exists():
        return f"no {RECORD_NAME} and no links to stages"
    left = []
    for stage in stages_of(job):
        if stage.state == "diverged":
            return f"{stage.kind} {stage.line}"
        if stage.state != "done":
            begun = stage.path.exists()
            left.append(f"{stage.kind} {stage.line}" if begun else f"{stage.kind} not begun")
    return "; ".join(left) or "record not written"


def stages_of(job: JobFolder) -> list[StageFolder]:
    """The stages of a job, in their order; none where it has no links to them."""
    if not job.links_path.exists():
        return []
    links = msgspec.structs.asdict(read_json(job.links_path, Links))
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
    names = {"prepare": MANIFEST_NAME, "measure": MEASUREMENT_NAME}
    state: State | None = "running" if is_held(path) else None
    if state is None and not (path / names.get(kind, RESULT_NAME)).exists():
        state = "unfinished"
    if state:
        updates = _updates(kind, path)
        note = f"update {updates}" if updates else ""
        return StageFolder(kind=kind, path=path, state=state, note=note, updates=updates)
    if kind in ("train", "uptrain"):
        result = read_json(path / RESULT_NAME, Done[ModelResult]).result
        if isinstance(result, Diverged):
            note = f"after update {result.after_update}"
            return StageFolder(kind=kind, path=path, state="diverged", note=note)
    return StageFolder(kind=kind, path=path, state="done")


def _updates(kind: str, path: Path) -> int:
    """The last update in the log of a training, 0 where there is none."""
    trains = kind in ("train", "uptrain")
    events = read_events(path / "logs" / f"{kind}.log") if trains else []
    updates = [event.update for event in events if isinstance(event, TrainUpdates)]
    return updates[-1] if updates else 0


def _folders(path: Path) -> list[Path]:
    """Folders in a folder, hidden ones left out."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _order(kind: Path) -> tuple[int, str]:
    names = ("train", "convert", "uptrain", "evaluate")
    return (names.index(kind.name) if kind.name in names else -1, kind.name)
