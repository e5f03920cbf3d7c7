"""fairseq's training command at work: run and shown, and what it left in a model's folder.

A checkpoint counts when it could be read to its end. Training goes on from the last that is whole.
"""

import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.progress import StageView, in_words
from experiments.records.parts import Training
from experiments.stages.folders import DataFolder, ModelFolder
from experiments.stages.process import run_command
from experiments.stages.runner import Attempt
from experiments.stages.training.log import (
    TrainUpdates,
    Validation,
    parse_line,
    read_curve,
    us_per_target_token,
)


class CheckedCheckpoint(msgspec.Struct, frozen=True):
    """What `python -m gqa_fairseq.checkpoints.check` says of a checkpoint that it could read."""

    updates: int
    parameters: int


def run_training(
    attempt: Attempt, command: list[str], log: Path, updates: int, after: int = 0
) -> None:
    """Run the command and show what its log says, with the time left once updates were timed.

    `updates` is the number of the last one. Those up to `after` were done before the stage.

    Raises ExperimentError, one line that names the log, when the command fails.
    """
    with StageView(attempt.stage.title, updates - after) as view:
        timed = 0

        def show(line: str) -> None:
            nonlocal timed
            event = parse_line(line)
            if isinstance(event, TrainUpdates):
                attempt.seen()
                rate = event.target_tokens_per_s
                status = f"{event.nll_nats_per_token:.3f} nats/token, {rate:.0f} tokens/s"
                view.advance(event.update - after, status)
                timed += 1
                if timed == 2 and rate:  # the first ones warmed up
                    left_s = (updates - event.update) * event.target_tokens_per_update / rate
                    view.note(f"update {event.update}: {status}, about {in_words(left_s)} left")
            elif event is not None:
                view.note(f"update {event.update}: dev {event.nll_nats_per_token:.3f} nats/token")

        ended = run_command(in_this_environment(command), log, attempt.threads, show, attempt.lock)
    attempt.seen(ended.peak_rss_bytes)


def training_of(
    attempt: Attempt,
    config: SuiteConfig,
    events: Sequence[TrainUpdates | Validation],
    *,
    updates: int,
    after: int = 0,
    log_every: int,
    wanted: int | None,
) -> Training:
    """What a log says of `updates` updates that follow the first `after`.

    `log_every` is the log's interval, `wanted` the target tokens that an update should have.

    Raises ExperimentError when the log does not reach the last of them.
    """
    reached = [event for event in events if event.update <= after + updates]
    curve = read_curve(reached, after)
    if not curve or curve[-1].update != updates:
        raise ExperimentError(
            f"the log of {attempt.stage.title} does not reach update {after + updates} (see "
            f"{attempt.folder / 'logs'}; rerun={attempt.stage.name} starts over)"
        )
    tokens = curve[-1].target_tokens
    # However short a part of the run it is, all of it shows the rate.
    us_per_token = us_per_target_token(events, log_every)
    return Training(
        device=config.hardware.device,
        precision=config.hardware.precision,
        processes=config.world_size,
        curve=curve,
        updates=updates,
        target_tokens=tokens,
        target_tokens_per_update=tokens / updates,
        target_tokens_per_update_wanted=wanted,
        update_wall_s=us_per_token * tokens / 1e6,
        us_per_target_token=us_per_token,
        peak_memory_bytes=max(1, attempt.all.peak_rss_bytes),
        peak_memory_kind="process_rss",
    )


def in_this_environment(command: list[str]) -> list[str]:
    """The same program as the console script of this environment, wherever that lies."""
    return [sys.executable, "-m", "fairseq_cli.train", *command[1:]]


def keep_vocabulary(folder: ModelFolder, data: DataFolder, config: SuiteConfig) -> None:
    """Copy what a model needs to translate: the data may be gone some day, or be other data."""
    folder.path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data.pieces_model, folder.pieces_model)
    for language in (config.data.source_lang, config.data.target_lang):
        dictionary = folder.dictionary(language)
        shutil.copyfile(data.binarized / dictionary.name, dictionary)


def updates_of(attempt: Attempt, checkpoint: Path) -> int:
    """Updates of a checkpoint, read whole in a process of its own; 0 where there is none.

    Raises ExperimentError when it cannot be read.
    """
    return check(attempt, checkpoint).updates if checkpoint.exists() else 0


def check(attempt: Attempt, checkpoint: Path) -> CheckedCheckpoint:
    """What is in a checkpoint; raises ExperimentError when it cannot be read to its end."""
    command = [sys.executable, "-m", "gqa_fairseq.checkpoints.check", str(checkpoint)]
    lines: list[str] = []
    log = ModelFolder(attempt.folder).log("check")
    try:
        run_command(command, log, attempt.threads, lines.append, attempt.lock)
        last = next(line for line in reversed(lines) if line.startswith("{"))
        return msgspec.json.decode(last, type=CheckedCheckpoint)
    except (ExperimentError, StopIteration, msgspec.DecodeError) as error:
        raise ExperimentError(
            f"{checkpoint}: cannot be read as a checkpoint: {error} (nothing was removed; "
            f"rerun={attempt.stage.name} starts over)"
        ) from error


def drop_half_copied(folder: ModelFolder) -> None:
    """Put the last whole checkpoint in the place of one that is missing or half written.

    fairseq writes a checkpoint in one step under the number of its update, and then copies it to
    checkpoint_last.pt: half a copy would stop every resume, and where the copy is missing a resume
    would start over. Half a checkpoint is no zip file.
    """
    if zipfile.is_zipfile(folder.last):
        return
    folder.last.unlink(missing_ok=True)
    take_numbered(folder)


def take_numbered(folder: ModelFolder) -> None:
    """Copy the last whole numbered checkpoint, where there is one, to checkpoint_last.pt."""
    whole = [path for path in numbered(folder) if zipfile.is_zipfile(path)]
    if whole:
        copy_whole(whole[-1], folder.last)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the target is there whole or not at all."""
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(target)


def numbered(folder: ModelFolder) -> list[Path]:
    """The checkpoints that fairseq wrote at validations and kept, by update."""
    return sorted(folder.checkpoints.glob("checkpoint_*_*.pt"), key=update_in_name)


def update_in_name(checkpoint: Path) -> int:
    """1000 of checkpoint_2_1000.pt."""
    return int(checkpoint.stem.split("_")[2])
