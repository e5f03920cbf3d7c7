"""A job's run in wandb while it trains: a process apart follows the log that training writes.

    python -m experiments.stages.live

The job starts it, says on its standard input what to follow, and at its end where the record is.
Where the job is killed that input ends, and so does the run, as a failed one; the next try at the
job goes on with it. Training knows nothing of this process, and the job waits for it at its end
alone, and not long: whatever goes wrong with wandb is a line on the screen.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import IO, Literal

import msgspec

from data_prep.system.surroundings import child_environment, settle
from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.progress import console
from experiments.records.parts import updates_more, uptraining_label
from experiments.stages.folders import JobFolder, ModelFolder
from experiments.stages.graph import Job
from experiments.stages.training.log import read_curve, read_events
from experiments.tracking.keys import flat_config
from experiments.tracking.runs import LATER, OpenRun, RunStart, open_run, run_id

LOOK_EVERY_S = 1.0  # at the log, for new points
# How long a job waits for its run to be complete, and a sweep for what it adds to each of its runs.
JOB_WAIT_S = 60.0
SWEEP_WAIT_S = 60.0
NICE = 10  # training comes first
STDIN = 0
FAILED = 2  # exit code of the process, with its reason on standard output


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is asked for: a run, and the log of a training where the job has one.

    The curve has `updates` updates that follow the first `after`.
    """

    start: RunStart
    log: str | None
    after: int
    updates: int


class Tracker:
    """The job's side; with `tracking=none` it does nothing. Use with `with`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[str] | None = None
        self._shown: threading.Thread | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        """End the run of a job that has no record; nobody waits for that."""
        self._say("", is_last=True)

    def follow(self, started_utc: datetime) -> None:
        """Start the run of the job, which began then; its model is trained from now on."""
        mode = self._job.config.tracking.mode
        if mode == "none" or self._process is not None:
            return
        command = [sys.executable, "-m", "experiments.stages.live"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # wandb keeps a log of its own
                text=True,
                env=child_environment(),
                start_new_session=True,  # an interrupt from the keyboard is for the job alone
            )
        except OSError as error:
            self._warn(str(error))
            return
        assert self._process.stdout is not None
        self._shown = threading.Thread(target=self._show, args=(self._process.stdout,), daemon=True)
        self._shown.start()
        self._say(msgspec.json.encode(self._followed(mode, started_utc)).decode() + "\n")

    def finish(self, started_utc: datetime) -> None:
        """Complete the run with the job's record, and wait for that, but not long."""
        self.follow(started_utc)
        if self._process is None:
            return
        self._say(str(JobFolder(self._job.folder).record_path.absolute()), is_last=True)
        try:
            code = self._process.wait(JOB_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._warn(f"not done after {JOB_WAIT_S:g} s")
        else:
            if code not in (0, FAILED):  # then it has said why
                self._warn(f"its process ended with {code}")
        if self._shown:
            self._shown.join(1.0)

    def _followed(self, mode: Literal["offline", "online"], started_utc: datetime) -> Followed:
        job, stage, config = self._job, self._job.model, self._job.config
        alpha, variant = config.uptrain.alpha, job.architecture.name
        if job.method:
            variant += f"-{uptraining_label(job.method, alpha)}"
        flat = flat_config(variant, job.architecture, config.seed, config.data.name)
        log = ModelFolder(stage.folder).log(stage.name).absolute()
        return Followed(
            start=RunStart(
                id=run_id(config.experiment_name, job.id, started_utc),
                name=job.name,
                group=config.experiment_name,
                config=flat | {"config": msgspec.to_builtins(config)},
                mode=mode,
                directory=str(tracking_folder(config)),
            ),
            log=str(log) if stage.name in ("train", "uptrain") else None,
            after=job.parent_updates if job.method else 0,
            updates=updates_more(alpha, job.parent_updates) if job.method else job.parent_updates,
        )

    def _say(self, text: str, *, is_last: bool = False) -> None:
        """To the process, which may have ended; nothing after the last words."""
        stdin = self._process.stdin if self._process else None
        if stdin is None or stdin.closed:
            return
        with contextlib.suppress(OSError):
            stdin.write(text)
            stdin.flush()
        if is_last:
            with contextlib.suppress(OSError):
                stdin.close()

    def _show(self, lines: IO[str]) -> None:
        for line in lines:
            self._warn(line.strip())

    def _warn(self, problem: str) -> None:
        console.print(f"{self._job.name}: {_as_warning(problem)}")


def log_sweep(jobs: Sequence[Job], wait_s: float = SWEEP_WAIT_S) -> None:
    """Add what was measured and tested to the runs of jobs with a record, and sum the sweep up.

    Waits `wait_s` for each job's at the most. What goes wrong is a line on the screen.
    """
    asked: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        paths, mode = job.config.paths, job.config.tracking.mode
        if mode == "none":
            continue
        folders = {
            "--records": Path(paths.runs) / job.config.experiment_name,
            "--measurements": Path(paths.measurements) / job.config.experiment_name,
            "--tests": Path(paths.runs).parent / "tests",
            "--dir": tracking_folder(job.config),
        }
        there = [(o, str(path)) for o, path in folders.items() if path.is_dir() or o == "--dir"]
        asked.setdefault(("--mode", mode, *chain.from_iterable(there)), []).append(job.name)
    for options, names in asked.items():
        command = [sys.executable, "-m", "experiments.tracking", *options]
        for name in names:
            command += ["--only", name]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=child_environment(),
                timeout=wait_s * len(names),
                check=False,
            )
        except subprocess.TimeoutExpired:
            console.print(_as_warning(f"not done after {wait_s * len(names):g} s"))
            continue
        if done.returncode:
            said = done.stderr.strip().split("\n")[-1].removeprefix("error: ")
            console.print(_as_warning(said or f"exit code {done.returncode}"))


def tracking_folder(config: SuiteConfig) -> Path:
    """Where `wandb/` is made: beside the folder of runs."""
    return Path(config.paths.runs).parent


def _as_warning(problem: str) -> str:
    """One line, with what to do."""
    advice = "" if LATER in problem else f" ({LATER})"
    return f"wandb: {problem.removeprefix('wandb: ')}{advice}"


def follow(asked: Followed) -> None:
    """Keep a run until the job has said where its record is, or has ended without one.

    Raises ExperimentError, one line, whatever goes wrong.
    """
    with open_run(asked.start) as run:
        record = _until_end(run, asked, STDIN)
        if record:
            folder = JobFolder(Path(record).parent)
            kept = folder.hypotheses if folder.hypotheses.is_dir() else None
            run.log_record(folder.record(), hypotheses=kept)
        else:
            run.end_as_failed()


def _until_end(run: OpenRun, asked: Followed, said: int) -> str:
    """Add points as the log grows; returns what the job said at its end."""
    log, size, text = Path(asked.log) if asked.log else None, 0, b""
    while True:
        if select.select([said], [], [], LOOK_EVERY_S)[0]:
            chunk = os.read(said, 1 << 16)
            text += chunk
        else:
            chunk = None
        grown = log.stat().st_size if log and log.exists() else 0
        if log and (grown != size or chunk == b""):
            size = grown
            points = [
                point
                for point in read_curve(read_events(log), asked.after)
                if point.update <= asked.updates
            ]
            # A validation is logged after the updates before it: the newest point waits for it.
            is_whole = chunk == b"" or (points and points[-1].dev_nll_nats_per_token is not None)
            run.log_curve(points if is_whole else points[:-1])
        if chunk == b"":
            return text.decode().strip()


def main() -> int:
    """The process: what to follow comes as the first line of its standard input."""
    settle()
    os.nice(NICE)
    try:
        follow(msgspec.json.decode(_first_line(), type=Followed))
    except ExperimentError as error:
        with contextlib.suppress(OSError):  # nobody may be there any more
            print(error, flush=True)
        return FAILED
    return 0


def _first_line() -> bytes:
    """Without a byte of what follows, which is read when it comes."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(STDIN, 1)):
        line += byte
    return line


if __name__ == "__main__":
    sys.exit(main())
