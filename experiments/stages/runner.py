"""Runs one stage: alone in its folder, once, with every try counted and its result checked.

A result that is there and can be read is used, whatever code made it. That is said once on the
screen when the code was another, and it is recorded.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from data_prep.system.locks import hold
from experiments.environment import usable_cores
from experiments.errors import ExperimentError
from experiments.progress import console
from experiments.records import provenance
from experiments.records.parts import StageInfo
from experiments.records.storage import read_json, write_json
from experiments.stages.folders import RESULT_NAME, Done
from experiments.stages.graph import Stage

Result = TypeVar("Result")
LOCK_NAME = ".lock"
TRIES_NAME = "tries.json"


class Try(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One time that a stage was run: `wall_s` and `peak_rss_bytes` are the last that were seen."""

    started_utc: datetime
    wall_s: float = 0.0
    peak_rss_bytes: int = 0


class Tries(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All tries at a stage, the present one last; an interrupted one is kept as last seen."""

    tries: list[Try] = msgspec.field(default_factory=list)

    @property
    def wall_s(self) -> float:
        return sum(one.wall_s for one in self.tries)

    @property
    def peak_rss_bytes(self) -> int:
        return max(one.peak_rss_bytes for one in self.tries)


class Attempt:
    """The present try at a stage, for the function that does the work."""

    def __init__(self, stage: Stage, lock: int, threads: int) -> None:
        self.stage, self.folder, self.lock, self.threads = stage, stage.folder, lock, threads
        path = stage.folder / TRIES_NAME
        self.all = read_json(path, Tries) if path.exists() else Tries()
        self.all.tries.append(Try(started_utc=datetime.now(UTC)))
        self._path = path
        self.seen()

    @property
    def started_utc(self) -> datetime:
        """When the first try began."""
        return self.all.tries[0].started_utc

    def seen(self, peak_rss_bytes: int = 0) -> None:
        """Note that the try still runs, or has ended."""
        present = self.all.tries[-1]
        present.wall_s = (datetime.now(UTC) - present.started_utc).total_seconds()
        present.peak_rss_bytes = max(present.peak_rss_bytes, peak_rss_bytes)
        write_json(self._path, self.all)


def run_stage(
    stage: Stage,
    result_type: type[Result],
    work: Callable[[Attempt], Result],
    threads: int | None,
) -> Done[Result]:
    """The stage's result: the one that is there, or else what `work` returns.

    Another process that works on the same stage is waited for, and what it found is used. `threads`
    null is all cores.

    Raises ExperimentError when the work fails or the folder cannot be written.
    """
    if done := read_done(stage, result_type):
        _say_where_from(stage, done)
        return done
    with _alone(stage) as lock:
        if done := read_done(stage, result_type):
            return done
        made_by = provenance.made_by(threads or usable_cores())
        attempt = Attempt(stage, lock, made_by.threads)
        try:
            result = work(attempt)
        finally:
            attempt.seen()
        info = StageInfo(
            name=stage.name,
            key=stage.key,
            recipe=stage.recipe,
            provenance=made_by,
            started_utc=attempt.started_utc,
            wall_s=attempt.all.wall_s,
            tries=len(attempt.all.tries),
        )
        done = Done(info, result)
        # The type is known when this runs, and mypy wants it before: here and in `read_done`.
        write_json(stage.folder / RESULT_NAME, done, Done[result_type])  # type: ignore[valid-type]
        return done


def read_done(stage: Stage, result_type: type[Result]) -> Done[Result] | None:
    """The stage's result, None where there is none or one that cannot be read."""
    path = stage.folder / RESULT_NAME
    if not path.exists():
        return None
    try:
        done = read_json(path, Done[result_type])  # type: ignore[valid-type]
    except ExperimentError as error:
        _say_once(f"{stage.title}: {error}: it is made again")
        return None
    return done if done.info.key == stage.key else None


def forget(stage: Stage) -> None:
    """Remove what a stage left in its folder, so that it is done again. The result goes first.

    A process that works on it is waited for. Raises ExperimentError as `run_stage` does.
    """
    if not stage.folder.exists():
        return
    with _alone(stage):
        (stage.folder / RESULT_NAME).unlink(missing_ok=True)
        for path in stage.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_NAME:
                path.unlink()


def _say_where_from(stage: Stage, done: Done[Result]) -> None:
    """Name a result that other code made."""
    made_by = done.info.provenance.code
    if made_by.digest != provenance.code_info().digest:
        _say_once(
            f"{stage.title}: made by other code ({made_by.label}), used (rerun={stage.name} makes "
            "it again)"
        )


_said: set[str] = set()


def _say_once(line: str) -> None:
    """Print a line, once a process: jobs of a sweep share their stages."""
    if line not in _said:
        _said.add(line)
        console.print(line)


@contextmanager
def _alone(stage: Stage) -> Iterator[int]:
    """Hold the stage's lock; yields its file, which the stage's own process holds as well.

    The system frees it when the last process that holds it ends, however that ends.
    """
    lock = stage.folder / LOCK_NAME

    def say_waiting() -> None:
        console.print(f"{stage.title}: another process works on it; waiting")

    try:
        stream = hold(lock, say_waiting)
    except OSError as error:
        raise ExperimentError(
            f"{lock}: {error.strerror} (set paths.stages=FOLDER and paths.measurements=FOLDER to "
            "folders that you may write)"
        ) from error
    with stream:
        yield stream.fileno()
