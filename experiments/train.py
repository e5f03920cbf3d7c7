"""Training: fairseq's own command in a process of its own, and what its log says.

The exact command is recorded, so that anyone can run it without the suite.
"""

import json
import math
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.layout import SOURCE, TARGET, DataFolder, JobFolder
from experiments.progress import StageView, console, in_words
from experiments.record_parts import Training, TrainPoint
from experiments.stage import StageResult, run_stage
from experiments.storage import read_json, write_json

# fairseq's logger names the table: `2026-11-24 10:00:00 | INFO | train_inner | {...}`.
_LOG_LINE = re.compile(r"\| INFO \| (train_inner|valid) \| (\{.*\})$")
NATS_PER_BIT = math.log(2)
# Share of train.tokens_per_update by which the mean may differ before a job says so.
TOLERATED_DEVIATION = 0.05


class TrainUpdates(msgspec.Struct, frozen=True, kw_only=True):
    """The updates since the last such line of the log; losses in nats per target token."""

    update: int
    nll_nats_per_token: float
    learning_rate: float
    target_tokens_per_update: float
    target_tokens_per_s: float
    wall_s: float


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """A validation after `update`; the loss is in nats per target token."""

    update: int
    nll_nats_per_token: float


def train_command(config: SuiteConfig, binarized: Path, checkpoints: Path) -> list[str]:
    """The fairseq-train command of a job: a pure function of its arguments.

    Only --num-kv-heads, --attention-placement and --save-dir differ between variants. Checkpoints
    are written at validations and at the end; no epoch's end adds one, so that the number of
    checkpoints does not depend on the corpus.
    """
    model, train, hardware = config.model, config.train, config.hardware
    plugin = Path(__file__).resolve().parent.parent / "gqa_fairseq"
    never = 10**9
    options: dict[str, object] = {
        "--user-dir": os.path.relpath(plugin),
        "--task": "gqa_translation",
        "--source-lang": SOURCE,
        "--target-lang": TARGET,
        "--arch": "gqa_transformer",
        "--num-kv-heads": config.attention.num_kv_heads,
        "--attention-placement": config.attention.placement,
        "--mha-ffn-embed-dim": model.mha_d_ff,
        "--encoder-embed-dim": model.d_model,
        "--decoder-embed-dim": model.d_model,
        "--encoder-attention-heads": model.num_heads,
        "--decoder-attention-heads": model.num_heads,
        "--encoder-layers": model.encoder_layers,
        "--decoder-layers": model.decoder_layers,
        "--max-source-positions": model.max_positions,
        "--max-target-positions": model.max_positions,
        "--dropout": train.dropout,
        "--attention-dropout": train.attention_dropout,
        "--activation-dropout": train.activation_dropout,
        "--criterion": "label_smoothed_cross_entropy",
        "--label-smoothing": train.label_smoothing,
        "--optimizer": "adam",
        "--adam-betas": str(train.adam_betas),
        "--weight-decay": train.weight_decay,
        "--clip-norm": train.clip_norm,
        "--lr": train.learning_rate,
        "--lr-scheduler": "inverse_sqrt",
        "--warmup-updates": train.warmup_updates,
        "--warmup-init-lr": 1e-7,
        "--max-update": train.max_updates,
        "--target-tokens-per-update": train.tokens_per_update,
        "--update-freq": config.update_freq,
        "--distributed-world-size": config.world_size,
        "--max-tokens": hardware.max_tokens_per_device,
        "--max-tokens-valid": max(config.padded_tokens_per_batch, model.max_positions),
        "--validate-interval": never,
        "--validate-interval-updates": train.validate_every_updates,
        "--save-interval": never,
        "--save-interval-updates": train.validate_every_updates,
        "--keep-interval-updates": train.average_checkpoints or 1,
        "--save-dir": checkpoints,
        "--seed": config.seed,
        "--num-workers": 0,
        "--log-format": "json",
        "--log-interval": train.log_every_updates,
    }
    flags = [
        "--share-all-embeddings",
        "--encoder-learned-pos",
        "--decoder-learned-pos",
        "--no-epoch-checkpoints",
    ]
    if model.norm_before:
        flags += ["--encoder-normalize-before", "--decoder-normalize-before"]
    if model.bias:
        flags.append("--use-bias")
    if hardware.device == "cpu":
        flags.append("--cpu")
    if hardware.nodes > 1:
        # On a machine with GPUs fairseq starts one process for each, with ranks from this one on.
        options["--distributed-init-method"] = f"tcp://{hardware.master}"
        options["--distributed-rank"] = hardware.node_rank * hardware.devices
        if hardware.device == "cpu":
            options["--distributed-backend"] = "gloo"
            options["--ddp-backend"] = "legacy_ddp"
            flags.append("--distributed-no-spawn")
    if hardware.precision != "fp32":
        flags.append(f"--{hardware.precision}")
    command = ["fairseq-train", str(binarized)]
    for name, value in options.items():
        command += [name, str(value)]
    return command + flags


def train(config: SuiteConfig, job: JobFolder, data: DataFolder, threads: int) -> None:
    """Run the command, or the rest of it after an interruption, and write the job's training.json.

    Raises ExperimentError, one line that names the log, when the command fails.
    """
    log = job.log("train")
    _drop_half_copied(job)
    if _has_last_checkpoint(job, config.train.max_updates):
        # Stopped between that and the result: fairseq would go on with one update more. Start over.
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        log.unlink()
    done = _run_training(config, job, data, log, threads)
    events = read_events(log)
    curve = read_curve(events)
    if not curve or curve[-1].update != config.train.max_updates:
        raise ExperimentError(f"training ended early, without a word (see {log})")
    tokens, wanted = curve[-1].target_tokens, config.train.tokens_per_update
    mean = tokens / config.train.max_updates
    if deviation := off_target(mean, wanted):
        console.print(f"{job.path.name}: {deviation}", markup=False)
    count = config.train.average_checkpoints
    averaged = _numbered(job)[-count:] if count else []
    us_per_token = us_per_target_token(events, config.train.log_every_updates)
    result = Training(
        device=config.hardware.device,
        precision=config.hardware.precision,
        processes=config.world_size,
        curve=curve,
        updates=config.train.max_updates,
        target_tokens=tokens,
        target_tokens_per_update=mean,
        target_tokens_per_update_wanted=wanted,
        wall_s=done.wall_s,
        update_wall_s=us_per_token * tokens / 1e6,
        us_per_target_token=us_per_token,
        peak_memory_bytes=done.peak_rss_bytes,
        peak_memory_kind="process_rss",
        averaged_updates=[_update_of(path) for path in averaged],
    )
    write_json(job.training, result)
    for path in job.checkpoints.glob("*.pt"):
        # fairseq's best and its last but one, as large as the last
        if path != job.checkpoint and path not in averaged:
            path.unlink()


def off_target(mean: float, wanted: int) -> str | None:
    """A line where an update's mean target tokens are not what was wanted, with the reason."""
    if abs(mean / wanted - 1) <= TOLERATED_DEVIATION:
        return None
    return (
        f"an update had {mean:,.0f} target tokens, not train.tokens_per_update={wanted:,}: an "
        "epoch is a whole number of updates, and this corpus has few"
    )


def train_along(config: SuiteConfig, job: JobFolder, data: DataFolder, threads: int) -> None:
    """Run this machine's part of a training that the first of several machines is in charge of."""
    _run_training(config, job, data, job.log(f"train-node{config.hardware.node_rank}"), threads)


def average_checkpoints(job: JobFolder, threads: int) -> None:
    """Write the mean of the checkpoints that training.json names, where it names any."""
    updates = read_json(job.training, Training).averaged_updates
    if not updates or job.average.exists():
        return
    paths = [path for path in _numbered(job) if _update_of(path) in updates]
    command = [sys.executable, "-m", "gqa_fairseq.average", str(job.average), *map(str, paths)]
    with StageView(f"{job.path.name}: average of updates {', '.join(map(str, updates))}") as view:
        run_stage(command, job.log("average"), threads, view.status)
    for path in paths:
        path.unlink()


def _run_training(
    config: SuiteConfig, job: JobFolder, data: DataFolder, log: Path, threads: int
) -> StageResult:
    """Run the command and show what its log says, with the time left once updates were timed."""
    command = train_command(config, data.binarized, job.checkpoints)
    updates = config.train.max_updates
    with StageView(f"{job.path.name}: train", updates) as view:
        timed = 0

        def show(line: str) -> None:
            nonlocal timed
            event = parse_line(line)
            if isinstance(event, TrainUpdates):
                rate = event.target_tokens_per_s
                status = f"{event.nll_nats_per_token:.3f} nats/token, {rate:.0f} tokens/s"
                view.advance(event.update, status)
                timed += 1
                if timed == 2:  # the first ones warmed up
                    left_s = (updates - event.update) * event.target_tokens_per_update / rate
                    view.note(f"update {event.update}: {status}, about {in_words(left_s)} left")
            elif event is not None:
                view.note(f"update {event.update}: dev {event.nll_nats_per_token:.3f} nats/token")

        # The same program as the console script of this environment, wherever that lies.
        program = [sys.executable, "-m", "fairseq_cli.train"]
        try:
            return run_stage([*program, *command[1:]], log, threads, show)
        except ExperimentError as error:
            raise ExperimentError(f"training failed: {error}; force=true starts over") from error


def _has_last_checkpoint(job: JobFolder, max_updates: int) -> bool:
    """Whether the checkpoint of the last update was written, whole."""
    log = job.log("train")
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    saved = re.search(rf"Saved checkpoint .* @ {max_updates} updates", text)
    return bool(saved) or any(_update_of(path) == max_updates for path in _numbered(job))


def _drop_half_copied(job: JobFolder) -> None:
    """Put the last whole checkpoint in the place of one whose writing was interrupted.

    fairseq writes a checkpoint in one step under the number of its update, and then copies it to
    checkpoint_last.pt: half a copy would stop every resume. Half a checkpoint is no zip file.
    """
    if not job.checkpoint.exists() or zipfile.is_zipfile(job.checkpoint):
        return
    numbered = _numbered(job)
    if numbered:
        shutil.copyfile(numbered[-1], job.checkpoint)
    else:
        job.checkpoint.unlink()


def _numbered(job: JobFolder) -> list[Path]:
    """The checkpoints that fairseq wrote at validations and kept, by update."""
    return sorted(job.checkpoints.glob("checkpoint_*_*.pt"), key=_update_of)


def _update_of(checkpoint: Path) -> int:
    """1000 of checkpoint_2_1000.pt."""
    return int(checkpoint.stem.split("_")[2])


def read_events(log: Path) -> list[TrainUpdates | Validation]:
    """What a log says of the training, in its order; nothing where there is no log yet."""
    if not log.exists():
        return []
    events = map(parse_line, log.read_text(encoding="utf-8").split("\n"))
    return [event for event in events if event is not None]


def parse_line(line: str) -> TrainUpdates | Validation | None:
    """What one line of fairseq's JSON log says of the training, None for all other lines."""
    match = _LOG_LINE.search(line)
    if match is None:
        return None
    table, stats = match[1], json.loads(match[2])
    if table == "valid":
        return Validation(
            update=int(stats["valid_num_updates"]),
            nll_nats_per_token=float(stats["valid_nll_loss"]) * NATS_PER_BIT,
        )
    return TrainUpdates(
        update=int(stats["num_updates"]),
        nll_nats_per_token=float(stats["nll_loss"]) * NATS_PER_BIT,
        learning_rate=float(stats["lr"]),
        target_tokens_per_update=float(stats["wpb"]),
        target_tokens_per_s=float(stats["wps"]),
        wall_s=float(stats["wall"]),
    )


def read_curve(events: Iterable[TrainUpdates | Validation]) -> list[TrainPoint]:
    """The training curve of a whole log, resumes included: the later line on an update counts."""
    trained: dict[int, TrainUpdates] = {}
    validated: dict[int, Validation] = {}
    for event in events:
        if isinstance(event, TrainUpdates):
            trained[event.update] = event
        else:
            validated[event.update] = event
    curve, target_tokens, before, wall_s = [], 0.0, 0, 0.0
    for update, event in sorted(trained.items()):
        tokens = event.target_tokens_per_update * (update - before)
        target_tokens += tokens
        before = update
        # After a resume fairseq's clock stands still, at 0.
        resumed = event.wall_s < wall_s
        wall_s = wall_s + tokens / event.target_tokens_per_s if resumed else event.wall_s
        dev = validated.get(update)
        curve.append(
            TrainPoint(
                update=update,
                train_nll_nats_per_token=event.nll_nats_per_token,
                dev_nll_nats_per_token=dev.nll_nats_per_token if dev else None,
                learning_rate=event.learning_rate,
                target_tokens=round(target_tokens),
                wall_s=wall_s,
            )
        )
    return curve


def us_per_target_token(events: Iterable[TrainUpdates | Validation], log_every: int) -> float:
    """Microseconds of updates per target token, or ValueError when nothing can be timed.

    fairseq's rate runs from one line to the next, whatever happens in between. A line counts
    only if the updates before it follow another line directly: that leaves out the first updates
    (warming up), the first after a resume and those that a validation interrupted.
    """
    seconds, tokens, last_update = 0.0, 0.0, None
    for event in events:
        if isinstance(event, Validation):
            last_update = None
            continue
        if last_update is not None and event.update == last_update + log_every:
            interval_tokens = event.target_tokens_per_update * log_every
            seconds += interval_tokens / event.target_tokens_per_s
            tokens += interval_tokens
        last_update = event.update
    if not tokens:
        raise ValueError("the log has no updates that can be timed")
    return 1e6 * seconds / tokens
