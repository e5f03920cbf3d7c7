"""The train stage: fairseq's own command in a process of its own, until its model is checked.

A model counts when its last checkpoint could be read and is of the last update. Only then is
anything removed. Training goes on from the last checkpoint that is whole.
"""

import shutil
import sys
import zipfile
from pathlib import Path

import msgspec

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.progress import StageView, console, in_words
from experiments.records.parts import Training
from experiments.stages.folders import DataFolder, Diverged, ModelFolder, Trained, TrainResult
from experiments.stages.process import run_command
from experiments.stages.runner import Attempt
from experiments.stages.training.command import train_command
from experiments.stages.training.log import (
    TrainUpdates,
    divergence,
    parse_line,
    read_curve,
    read_events,
    us_per_target_token,
)

# Share of train.tokens_per_update by which the mean may differ before a job says so.
TOLERATED_DEVIATION = 0.05


class CheckedCheckpoint(msgspec.Struct, frozen=True):
    """What `python -m gqa_fairseq.checkpoints.check` says of a checkpoint that it could read."""

    updates: int
    parameters: int


def train(attempt: Attempt, config: SuiteConfig, data: DataFolder) -> TrainResult:
    """Train the config's model, or what is left of it; a diverged training is a result too.

    Raises ExperimentError, one line that names the log, when the command fails otherwise.
    """
    folder, updates = ModelFolder(attempt.folder), config.train.max_updates
    log = folder.log("train")
    _keep_vocabulary(folder, data, config)
    _drop_half_copied(folder)
    found = _updates_of(attempt, folder.last)
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
        _take_numbered(folder)
    found = _updates_of(attempt, folder.last)
    if found != updates:
        raise ExperimentError(
            f"training stopped at update {found} of {updates} and printed no error (see {log})"
        )
    count = config.train.average_checkpoints
    averaged = _numbered(folder)[-count:] if count else []
    checkpoint = folder.last
    if averaged:
        checkpoint = _average(attempt, folder, averaged)
    result = Trained(
        checkpoint=checkpoint.relative_to(folder.path).as_posix(),
        data_checksum=data.manifest().checksum,
        training=_describe(attempt, config, log, [_update_in_name(path) for path in averaged]),
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
        run_command(_in_this_environment(command), log, threads, view.status)


def off_target(mean: float, wanted: int) -> str | None:
    """A line where an update's mean target tokens are not what was wanted, with the reason."""
    if abs(mean / wanted - 1) <= TOLERATED_DEVIATION:
        return None
    return (
        f"an update had {mean:,.0f} target tokens, not train.tokens_per_update={wanted:,}: an "
        "epoch is a whole number of updates, and this corpus has few"
    )


def _describe(attempt: Attempt, config: SuiteConfig, log: Path, averaged: list[int]) -> Training:
    events = read_events(log)
    curve = read_curve(events)
    updates, wanted = config.train.max_updates, config.train.tokens_per_update
    if not curve or curve[-1].update != updates:
        raise ExperimentError(
            f"the log does not reach update {updates} (see {log}; rerun=train starts over)"
        )
    tokens = curve[-1].target_tokens
    mean = tokens / updates
    if deviation := off_target(mean, wanted):
        console.print(f"{attempt.stage.title}: {deviation}")
    us_per_token = us_per_target_token(events, config.train.log_every_updates)
    return Training(
        device=config.hardware.device,
        precision=config.hardware.precision,
        processes=config.world_size,
        curve=curve,
        updates=updates,
        target_tokens=tokens,
        target_tokens_per_update=mean,
        target_tokens_per_update_wanted=wanted,
        update_wall_s=us_per_token * tokens / 1e6,
        us_per_target_token=us_per_token,
        peak_memory_bytes=max(1, attempt.all.peak_rss_bytes),
        peak_memory_kind="process_rss",
        averaged_updates=averaged,
    )


def _run_training(attempt: Attempt, config: SuiteConfig, data: DataFolder, log: Path) -> None:
    """Run the command and show what its log says, with the time left once updates were timed."""
    command = train_command(config, data.binarized, ModelFolder(attempt.folder).checkpoints)
    updates = config.train.max_updates
    with StageView(attempt.stage.title, updates) as view:
        timed = 0

        def show(line: str) -> None:
            nonlocal timed
            event = parse_line(line)
            if isinstance(event, TrainUpdates):
                attempt.seen()
                rate = event.target_tokens_per_s
                status = f"{event.nll_nats_per_token:.3f} nats/token, {rate:.0f} tokens/s"
                view.advance(event.update, status)
                timed += 1
                if timed == 2:  # the first ones warmed up
                    left_s = (updates - event.update) * event.target_tokens_per_update / rate
                    view.note(f"update {event.update}: {status}, about {in_words(left_s)} left")
            elif event is not None:
                view.note(f"update {event.update}: dev {event.nll_nats_per_token:.3f} nats/token")

        ended = run_command(_in_this_environment(command), log, attempt.threads, show, attempt.lock)
    attempt.seen(ended.peak_rss_bytes)


def _in_this_environment(command: list[str]) -> list[str]:
    """The same program as the console script of this environment, wherever that lies."""
    return [sys.executable, "-m", "fairseq_cli.train", *command[1:]]


def _keep_vocabulary(folder: ModelFolder, data: DataFolder, config: SuiteConfig) -> None:
    """Copy what a model needs to translate: the data may be gone some day, or be other data."""
    folder.path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data.pieces_model, folder.pieces_model)
    for language in (config.data.source_lang, config.data.target_lang):
        dictionary = folder.dictionary(language)
        shutil.copyfile(data.binarized / dictionary.name, dictionary)


def _updates_of(attempt: Attempt, checkpoint: Path) -> int:
    """Updates of a checkpoint, read whole in a process of its own; 0 where there is none.

    Raises ExperimentError when it cannot be read.
    """
    return _check(attempt, checkpoint).updates if checkpoint.exists() else 0


def _check(attempt: Attempt, checkpoint: Path) -> CheckedCheckpoint:
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
            "rerun=train starts over)"
        ) from error


def _average(attempt: Attempt, folder: ModelFolder, paths: list[Path]) -> Path:
    """Write the mean of the checkpoints, and read it again."""
    if not folder.average.exists():
        command = [sys.executable, "-m", "gqa_fairseq.checkpoints.average", str(folder.average)]
        updates = ", ".join(str(_update_in_name(path)) for path in paths)
        log = folder.log("average")
        with StageView(f"{attempt.stage.title}: average of updates {updates}") as view:
            run_command(
                [*command, *map(str, paths)], log, attempt.threads, view.status, attempt.lock
            )
    _check(attempt, folder.average)
    return folder.average


def _drop_half_copied(folder: ModelFolder) -> None:
    """Put the last whole checkpoint in the place of one that is missing or half written.

    fairseq writes a checkpoint in one step under the number of its update, and then copies it to
    checkpoint_last.pt: half a copy would stop every resume, and where the copy is missing a resume
    would start over. Half a checkpoint is no zip file.
    """
    if zipfile.is_zipfile(folder.last):
        return
    folder.last.unlink(missing_ok=True)
    _take_numbered(folder)


def _take_numbered(folder: ModelFolder) -> None:
    """Copy the last whole numbered checkpoint, where there is one, to checkpoint_last.pt."""
    whole = [path for path in _numbered(folder) if zipfile.is_zipfile(path)]
    if whole:
        part = folder.last.with_suffix(".part")
        shutil.copyfile(whole[-1], part)
        part.replace(folder.last)


def _numbered(folder: ModelFolder) -> list[Path]:
    """The checkpoints that fairseq wrote at validations and kept, by update."""
    return sorted(folder.checkpoints.glob("checkpoint_*_*.pt"), key=_update_in_name)


def _update_in_name(checkpoint: Path) -> int:
    """1000 of checkpoint_2_1000.pt."""
    return int(checkpoint.stem.split("_")[2])
