"""The train stage: fairseq's own command in a process of its own, until its model is checked.

A model counts when its last checkpoint could be read and is of the last update. Only then is
anything removed. Training goes on from the last checkpoint that is whole.
"""

import shutil
import sys
from pathlib import Path

import msgspec

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.progress import StageView, console
from experiments.records.parts import Training
from experiments.stages.folders import DataFolder, Diverged, ModelFolder, Trained, TrainResult
from experiments.stages.process import run_command
from experiments.stages.runner import Attempt
from experiments.stages.training.command import train_command
from experiments.stages.training.log import divergence, read_curve, read_events
from experiments.stages.training.run import (
    check,
    drop_half_copied,
    in_this_environment,
    keep_vocabulary,
    numbered,
    run_training,
    take_numbered,
    training_of,
    update_in_name,
    updates_of,
)

# Share of train.tokens_per_update by which the mean may differ before a job says so.
TOLERATED_DEVIATION = 0.05


def train(attempt: Attempt, config: SuiteConfig, data: DataFolder) -> TrainResult:
    """Train the config's model, or what is left of it; a diverged training is a result too.

    Raises ExperimentError, one line that names the log, when the command fails otherwise.
    """
    folder, updates = ModelFolder(attempt.folder), config.train.max_updates
    log = folder.log("train")
    keep_vocabulary(folder, data, config)
    drop_half_copied(folder)
    found = updates_of(attempt, folder.last)
    if found > updates:
        console.print(
            f"{attempt.stage.title}: its checkpoint has {found} updates, more than {updates}: "
            "training starts over"
        )
        shutil.rmtree(folder.checkpoints)
        log.unlink(missing_ok=True)
    if found != updates:
        try:
            _run_training(attempt, config, data, log)
        except ExperimentError as error:
            if not divergence(log):
                raise ExperimentError(f"training failed: {error}") from error
    if reason := divergence(log):
        curve = read_curve(read_events(log))
        return Diverged(after_update=curve[-1].update if curve else 0, reason=reason, curve=curve)
    if not folder.last.exists():
        take_numbered(folder)
    found = updates_of(attempt, folder.last)
    if found != updates:
        raise ExperimentError(
            f"training stopped at update {found} of {updates} and printed no error (see {log})"
        )
    count = config.train.average_checkpoints
    averaged = numbered(folder)[-count:] if count else []
    checkpoint = folder.last
    if averaged:
        checkpoint = _average(attempt, folder, averaged)
    result = Trained(
        checkpoint=checkpoint.relative_to(folder.path).as_posix(),
        data_checksum=data.manifest().checksum,
        training=_describe(attempt, config, log, [update_in_name(path) for path in averaged]),
    )
    for path in folder.checkpoints.glob("*.pt"):
        # fairseq's best and its last but one, as large as the last
        if path not in (folder.last, checkpoint):
            path.unlink()
    return result


def train_along(config: SuiteConfig, folder: Path, data: DataFolder, threads: int) -> None:
    """Run this machine's part of a training that the first of several machines is in charge of."""
    model = ModelFolder(folder)
    log = model.log(f"train-node{config.hardware.node_rank}")
    command = train_command(config, data.binarized, model.checkpoints)
    with StageView(f"train {folder.name}: machine {config.hardware.node_rank}") as view:
        run_command(in_this_environment(command), log, threads, view.status)


def off_target(mean: float, wanted: int) -> str | None:
    """A line where an update's mean target tokens are not what was wanted, with the reason."""
    if abs(mean / wanted - 1) <= TOLERATED_DEVIATION:
        return None
    return (
        f"an update had {mean:,.0f} target tokens, not train.tokens_per_update={wanted:,}: an "
        "epoch is a whole number of updates, and this corpus has few"
    )


def _describe(attempt: Attempt, config: SuiteConfig, log: Path, averaged: list[int]) -> Training:
    wanted = config.train.tokens_per_update
    found = training_of(
        attempt,
        config,
        read_events(log),
        updates=config.train.max_updates,
        log_every=config.train.log_every_updates,
        wanted=wanted,
    )
    if deviation := off_target(found.target_tokens_per_update, wanted):
        console.print(f"{attempt.stage.title}: {deviation}")
    return msgspec.structs.replace(found, averaged_updates=averaged)


def _run_training(attempt: Attempt, config: SuiteConfig, data: DataFolder, log: Path) -> None:
    command = train_command(config, data.binarized, ModelFolder(attempt.folder).checkpoints)
    run_training(attempt, command, log, config.train.max_updates)


def _average(attempt: Attempt, folder: ModelFolder, paths: list[Path]) -> Path:
    """Write the mean of the checkpoints, and read it again."""
    if not folder.average.exists():
        command = [sys.executable, "-m", "gqa_fairseq.checkpoints.average", str(folder.average)]
        updates = ", ".join(str(update_in_name(path)) for path in paths)
        log = folder.log("average")
        with StageView(f"{attempt.stage.title}: average of updates {updates}") as view:
            run_command(
                [*command, *map(str, paths)], log, attempt.threads, view.status, attempt.lock
            )
    check(attempt, folder.average)
    return folder.average
