"""Writes the runs: the only importer of wandb, and only when tracking is on."""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from experiments.errors import ExperimentError
from experiments.records.measurement import Measurement
from experiments.records.record import Record
from experiments.tracking.keys import curve, run_config, speed_summary, summary

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


def check_account(mode: Mode) -> None:
    """Raise ExperimentError when `mode` is online and wandb knows no account: ask before the work.

    Needs no network and never prompts.
    """
    if mode != "online":
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ExperimentError(
            "tracking=online needs a wandb account (run `wandb login`, or use tracking=offline and "
            "`wandb sync` later)"
        )


def log_record(
    record: Record,
    mode: Mode,
    directory: Path,
    project: str = PROJECT,
    measurements: Sequence[Measurement] = (),
) -> None:
    """Make one run of `record`; wandb keeps its files in `directory`/wandb.

    The run has the speed of the newest of `measurements` that names the job. Its id comes from the
    job and its start: logging a record again replaces its run.

    Raises ExperimentError when wandb refuses or cannot be reached.
    """
    if mode == "none":
        return
    check_account(mode)
    named = [each for each in measurements if record.job.id in each.jobs]
    newest = max(named, key=lambda measurement: measurement.created_utc, default=None)
    speed = speed_summary(newest, record.job.id) if newest else {}
    try:
        with _no_other_run():
            _write_run(record, mode, directory, project, speed)
    except Exception as error:  # a view must not cost what it shows, whatever wandb raises
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ExperimentError(
            f"wandb: {reason} (the record is safe: log it later with python -m "
            "experiments.tracking)"
        ) from error


@contextmanager
def _no_other_run() -> Iterator[None]:
    """Hide the variables of another run from wandb: its id would be every record's."""
    import wandb

    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith("WANDB_") and name not in ACCOUNT
    }
    wandb.teardown()  # it reads them when it starts
    try:
        yield
    finally:
        os.environ.update(hidden)


def _write_run(
    record: Record,
    mode: Literal["offline", "online"],
    directory: Path,
    project: str,
    speed: dict[str, float],
) -> None:
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        mode=mode,
        dir=str(directory),
        group=record.job.experiment,
        name=record.name,
        id=run_id(record),
        config=run_config(record),
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
    with run:
        for step, values in curve(record):
            # Without `commit` the last point waits for the end and overwrites the summary.
            run.log(values, step=step, commit=True)
        run.summary.update(summary(record) | speed)
    # A finished run's last records may still be in the buffers of wandb's service process.
    wandb.teardown()


def log_measurement(
    measurement: Measurement,
    records: Iterable[Record],
    mode: Mode,
    directory: Path,
    project: str = PROJECT,
) -> None:
    """Add the speed to the runs of those `records` whose jobs the measurement names.

    Each run is logged again as a whole, under the same id. wandb cannot resume an offline run, and
    of several offline runs with one id that are synced in the order of their start the last
    replaces the others: it must be whole. Raises as `log_record` does.
    """
    for record in records:
        if record.job.id in measurement.jobs:
            log_record(record, mode, directory, project, [measurement])


def how_to_sync(directory: Path) -> str:
    """Where runs of the mode `offline` are, and the command that sends them."""
    folder = directory / "wandb"
    return f"wandb: runs are in {folder}: wandb sync {shlex.quote(str(folder))}/offline-run-*"


def run_id(record: Record) -> str:
    """The id of the record's run, the same whenever it is logged."""
    return f"{record.job.id}-{record.job.started_utc:%Y%m%d%H%M%S}"
