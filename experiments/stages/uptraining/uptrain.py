"""The uptrain stage: the parent's training goes on with the converted model.

It is fairseq's training command again, which goes on from the converted checkpoint as from its own:
the learning rate's schedule and the place in the data are those of the parent's last update. It
runs to one point after the other, and the model is kept at each.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.progress import console
from experiments.records.parts import TrainPoint
from experiments.stages.folders import (
    DataFolder,
    Diverged,
    ModelFolder,
    Uptrained,
    UptrainedPoint,
)
from experiments.stages.graph import Job
from experiments.stages.runner import Attempt
from experiments.stages.training.command import train_command, with_options
from experiments.stages.training.log import divergence, read_curve, read_events
from experiments.stages.training.run import (
    copy_whole,
    drop_half_copied,
    keep_vocabulary,
    run_training,
    take_numbered,
    training_of,
    updates_of,
)


def uptrain_command(
    job: Job, binarized: Path, checkpoints: Path, converted: Path, updates: int
) -> list[str]:
    """The fairseq-train command of `updates` updates more: a pure function of its arguments."""
    command = base_command(job, binarized, checkpoints)
    options = {
        "--continue-once": converted,
        "--max-update": job.parent_updates + updates,
        "--log-interval": log_interval(job),
    }
    return [*with_options(command, options), "--reset-meters"]


def base_command(job: Job, binarized: Path, checkpoints: Path) -> list[str]:
    """The command that trains a model of the job's architecture from scratch, as its parent was."""
    if job.parent:
        return job.parent.train_command(job.config, job.architecture, binarized, checkpoints)
    return train_command(job.config, binarized, checkpoints)


def log_interval(job: Job) -> int:
    """Updates of a line of the log: the config's, or fewer so that a line ends at each point."""
    train, after = job.config.train, job.parent_updates
    ends = math.gcd(after, train.validate_every_updates, *job.config.uptrain.updates(after))
    return max(n for n in range(1, train.log_every_updates + 1) if ends % n == 0)


def uptrain(attempt: Attempt, job: Job, data: DataFolder, checkpoint: Path) -> Uptrained:
    """Train the converted model on, or do what is left of it; to diverge is a result too.

    Raises ExperimentError, one line that names the log, when the command fails otherwise.
    """
    folder, after = ModelFolder(attempt.folder), job.parent_updates
    log = folder.log("uptrain")
    keep_vocabulary(folder, data, job.config)
    points = dict(zip(job.config.uptrain.points, job.config.uptrain.updates(after), strict=True))
    saved = {updates: folder.checkpoints / f"uptrained_{updates}.pt" for updates in points.values()}
    found, left = _left(attempt, folder, after, saved)
    for updates, path in left.items():
        if found != after + updates:  # it was not interrupted just before this was kept
            command = uptrain_command(job, data.binarized, folder.checkpoints, checkpoint, updates)
            found = _train_to(attempt, command, folder, after, updates)
        if divergence(log):
            break
        copy_whole(folder.last, path)
    events, reason = read_events(log), divergence(log)
    result = Uptrained(
        data_checksum=data.manifest().checksum,
        points=[
            UptrainedPoint(
                alpha=alpha,
                checkpoint=saved[updates].relative_to(folder.path).as_posix(),
                training=training_of(
                    attempt,
                    job.config,
                    events,
                    updates=updates,
                    after=after,
                    log_every=log_interval(job),
                    wanted=None if job.parent else job.config.train.tokens_per_update,
                ),
            )
            for alpha, updates in points.items()
            if saved[updates].exists()
        ],
        diverged=_diverged(reason, read_curve(events, after)) if reason else None,
    )
    for path in folder.checkpoints.glob("*.pt"):
        if path not in saved.values():  # fairseq's last, which is the last point, and its best
            path.unlink()
    return result


def _left(
    attempt: Attempt, folder: ModelFolder, after: int, saved: Mapping[int, Path]
) -> tuple[int, dict[int, Path]]:
    """Updates of the last whole checkpoint, which is put in its place, and the points to come."""
    drop_half_copied(folder)
    kept = [path for path in saved.values() if path.exists()]
    if kept and not folder.last.exists():
        copy_whole(kept[-1], folder.last)
    left = {updates: path for updates, path in saved.items() if not path.exists()}
    found = updates_of(attempt, folder.last) if left else 0
    if left and found > after + min(left):
        console.print(
            f"{attempt.stage.title}: its checkpoint has {found} updates, more than "
            f"{after + min(left)}: it starts over"
        )
        shutil.rmtree(folder.checkpoints)
        folder.log("uptrain").unlink(missing_ok=True)
        return 0, dict(saved)
    return found, left


def _train_to(
    attempt: Attempt, command: list[str], folder: ModelFolder, after: int, updates: int
) -> int:
    """Run the command until the last checkpoint is `updates` after the parent's, or it diverges.

    Returns the updates of the last checkpoint.
    """
    log, goal = folder.log("uptrain"), after + updates
    try:
        run_training(attempt, command, log, goal, after)
    except ExperimentError as error:
        if not divergence(log):
            raise ExperimentError(f"training failed: {error}") from error
    if not folder.last.exists():
        take_numbered(folder)
    found = updates_of(attempt, folder.last)
    if found != goal and not divergence(log):
        raise ExperimentError(
            f"training stopped at update {found} of {goal} and printed no error (see {log})"
        )
    return found


def _diverged(reason: str, curve: list[TrainPoint]) -> Diverged:
    return Diverged(after_update=curve[-1].update if curve else 0, reason=reason, curve=curve)
