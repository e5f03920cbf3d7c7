"""Writes the runs: the only importer of wandb, and only when tracking is on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from experiments.errors import ExperimentError
from experiments.records.measurement import Measurement
from experiments.records.record import Record
from experiments.tracking.keys import curve, run_config, speed_summary, summary

Mode = Literal["none", "offline", "online"]
PROJECT = "gqa-fairseq-suite"


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
    import wandb

    named = [each for each in measurements if record.job.id in each.jobs]
    newest = max(named, key=lambda measurement: measurement.created_utc, default=None)
    speed = speed_summary(newest, record.job.id) if newest else {}
    try:
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
    except (wandb.Error, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ExperimentError(
            f"wandb: {reason} (the record is safe: log it later with python -m "
            "experiments.tracking)"
        ) from error


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


def run_id(record: Record) -> str:
    """The id of the record's run, the same whenever it is logged."""
    return f"{record.job.id}-{record.job.started_utc:%Y%m%d%H%M%S}"
