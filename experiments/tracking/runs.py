"""Writes the runs: the only importer of wandb, and only when tracking is on."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from experiments.errors import ExperimentError
from experiments.records.hypotheses import read_hypotheses
from experiments.records.measurement import Measurement
from experiments.records.parts import TrainPoint
from experiments.records.record import RECORD_NAME, Record
from experiments.tracking.keys import curve, run_config, speed_summary, summary, translations

if TYPE_CHECKING:
    import wandb

Mode = Literal["none", "offline", "online"]
PROJECT = "gqa-fairseq-suite"
# With these a process says who it is to wandb and whose server it talks to. All others describe a
# run, and a run here is a record's: an agent of a sweep, or a job that is itself a run, gives none.
ACCOUNT = (
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_CONFIG_DIR",
    "WANDB_CACHE_DIR",
    "WANDB_DATA_DIR",
    "WANDB_HTTP_TIMEOUT",
    "WANDB_INIT_TIMEOUT",
)
LATER = "the record is safe: log it later with python -m experiments.tracking"
JobType = Literal["job", "sweep"]


class RunStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is called, and what is known of it when it starts.

    wandb keeps its files in `directory`/wandb.
    """

    id: str
    name: str
    group: str
    config: dict[str, Any]
    mode: Literal["offline", "online"]
    directory: str
    project: str = PROJECT
    job_type: JobType = "job"


class OpenRun:
    """A run that is being written."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run
        self._next_step = run.starting_step  # of a run that goes on: after its last

    def log_curve(self, points: Sequence[TrainPoint]) -> None:
        """Add the points that the run does not have."""
        for step, values in curve(points):
            if step >= self._next_step:
                # Without `commit` the last point waits for the end and overwrites the summary.
                self._run.log(values, step=step, commit=True)
                self._next_step = step + 1

    def log_record(
        self,
        record: Record,
        more: Mapping[str, float] | None = None,
        hypotheses: Path | None = None,
    ) -> None:
        """Add what a record holds beside the config that the run started with.

        `more` goes into the summary as well. `hypotheses` is the folder of the translations.
        """
        self._run.config.update(run_config(record), allow_val_change=True)
        self.log_curve(record.result.curve)
        self._run.summary.update(summary(record) | dict(more or {}))
        self._log_record_file(record)
        if hypotheses is not None:
            for split, digests in translations(record).items():
                self._log_translations(split, digests, hypotheses)

    def end_as_failed(self) -> None:
        """End the run of a job that has no record."""
        self._run.finish(exit_code=1)

    def _log_record_file(self, record: Record) -> None:
        """Keep the record itself as an artifact that has the run's name."""
        import wandb

        artifact = wandb.Artifact(record.name, type="record")
        with artifact.new_file(RECORD_NAME, mode="wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(record), indent=2))
        self._run.log_artifact(artifact)

    def log_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table in the summary."""
        import wandb

        self._run.summary[key] = wandb.Table(
            columns=list(columns), data=[list(row) for row in rows]
        )

    def log_summary(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def _log_translations(self, split: str, digests: Mapping[str, str], folder: Path) -> None:
        """One row a line, one column a search; nothing where only their counts are kept."""
        texts = {search: read_hypotheses(folder, sha).lines for search, sha in digests.items()}
        kept = {search: lines for search, lines in texts.items() if lines}
        if kept:
            rows = [(n, *line) for n, line in enumerate(zip(*kept.values(), strict=True), 1)]
            self.log_table(f"{split}/hypotheses", ["line", *kept], rows)


def check_account(mode: Mode) -> None:
    """Raise ExperimentError when `mode` is online and wandb knows no account; asked before work."""
    if mode == "online" and not has_account():
        raise ExperimentError(
            "tracking=online needs a wandb account (run `wandb login`, or use tracking=offline and "
            "`wandb sync` later)"
        )


def has_account() -> bool:
    """Whether wandb knows an account; needs no network and never prompts."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def log_record(
    record: Record,
    mode: Mode,
    directory: Path,
    project: str = PROJECT,
    measurements: Sequence[Measurement] = (),
    more: Mapping[str, float] | None = None,
    hypotheses: Path | None = None,
) -> None:
    """Make one run of `record`; wandb keeps its files in `directory`/wandb.

    The run has the speed of the newest of `measurements` that names the job, and `more` in its
    summary. Its id comes from the job, its experiment and its start: logging a record again
    completes its run, and offline replaces it.

    Raises ExperimentError when wandb refuses or cannot be reached.
    """
    if mode == "none":
        return
    check_account(mode)
    named = [each for each in measurements if record.job.id in each.jobs]
    newest = max(named, key=lambda measurement: measurement.created_utc, default=None)
    speed = speed_summary(newest, record.job.id) if newest else {}
    start = RunStart(
        id=run_id(record.job.experiment, record.job.id, record.job.started_utc),
        name=record.name,
        group=record.job.experiment,
        config=run_config(record),
        mode=mode,
        directory=str(directory),
        project=project,
    )
    with open_run(start) as run:
        run.log_record(record, speed | dict(more or {}), hypotheses)


@contextmanager
def open_run(start: RunStart) -> Iterator[OpenRun]:
    """Start a run, or go on with the one of its id; an exception ends it as failed.

    wandb goes on with a run that its server knows. Offline it cannot: of several files of one id
    that are synced in the order of their start the last replaces the others, so each must be whole.

    Raises ExperimentError, one line, whatever wandb raises.
    """
    try:
        with _no_other_run(start), _started(start) as run:
            yield OpenRun(run)
    except Exception as error:  # a view must not cost what it shows, whatever wandb raises
        raise ExperimentError(f"wandb: {one_line(error)} ({LATER})") from error


@contextmanager
def _no_other_run(start: RunStart) -> Iterator[None]:
    """Hide the variables of another run from wandb: its id would be every record's.

    Offline, artifacts wait beside the run's file, which names them, for `wandb sync`.
    """
    import wandb

    before = dict(os.environ)
    for name in before:
        if name.startswith("WANDB_") and name not in ACCOUNT:
            del os.environ[name]
    if start.mode == "offline":
        os.environ["WANDB_DATA_DIR"] = str(Path(start.directory).absolute() / "wandb" / "data")
    wandb.teardown()  # it reads them when it starts
    try:
        yield
    finally:
        # A finished run's last records may still be in the buffers of wandb's service process.
        wandb.teardown()
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ.update({k: v for k, v in before.items() if k.startswith("WANDB_")})


def _started(start: RunStart) -> wandb.Run:
    import wandb

    Path(start.directory).mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=start.project,
        mode=start.mode,
        dir=start.directory,
        group=start.group,
        job_type=start.job_type,
        name=start.name,
        id=start.id,
        config=start.config,
        resume="allow" if start.mode == "online" else None,
        # Jobs of a multirun share one process: each gets a run of its own.
        reinit="finish_previous",
        # The record holds the provenance; wandb need not watch screen, machine or git.
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
        ),
    )


def one_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def how_to_sync(directory: Path) -> str:
    """Where runs of the mode `offline` are, and the command that sends them."""
    folder = directory / "wandb"
    return f"wandb: runs are in {folder}: wandb sync {shlex.quote(str(folder))}/offline-run-*"


def run_id(experiment: str, job: str, started_utc: datetime) -> str:
    """The id of a job's run, the same whenever it is logged, and known before its record is.

    Experiments may share a job with its start, and each has a run of it.
    """
    of_experiment = hashlib.sha256(experiment.encode()).hexdigest()[:8]
    return f"{job}-{of_experiment}-{started_utc:%Y%m%d%H%M%S}"
