"""A record as a run in Weights & Biases: a view, made after the record was written.

The only importer of wandb, and only when tracking is on. docs/tracking.md lists the keys. Records
that exist already are logged by `python -m experiments.tracking --records DIR --mode offline`.
"""

import argparse
import sys
from pathlib import Path
from typing import Literal, get_args

import msgspec

from experiments.errors import ExperimentError
from experiments.headline import HEADLINE_SHAPE, main_engine
from experiments.record_parts import Engine, Evaluation, Score, Timing
from experiments.records import Record, read_records

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


def log_record(record: Record, mode: Mode, directory: Path, project: str = PROJECT) -> None:
    """Make one run of `record`; wandb keeps its files in `directory`/wandb.

    The run's id comes from the job and its start, so that logging a record again replaces its run.
    Raises ExperimentError when wandb refuses or cannot be reached.
    """
    if mode == "none":
        return
    check_account(mode)
    import wandb

    started = f"{record.job.started_utc:%Y%m%d%H%M%S}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=project,
            mode=mode,
            dir=str(directory),
            group=record.job.experiment,
            name=run_name(record),
            id=f"{record.job.id}-{started}",
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
            run.summary.update(summary(record))
        # A finished run's last records may still be in the buffers of wandb's service process.
        wandb.teardown()
    except (wandb.Error, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ExperimentError(
            f"wandb: {reason} (the record is safe: log it later with python -m "
            "experiments.tracking)"
        ) from error


def run_name(record: Record) -> str:
    """Such as `mqa-seed1-0123456789ab`."""
    return f"{record.job.variant}-seed{record.seed}-{record.job.id[:12]}"


def run_config(record: Record) -> dict[str, object]:
    """What the run's config holds: the record without what it measured."""
    whole = msgspec.to_builtins(record)
    kept = ("job", "config", "code", "versions", "hardware", "seed", "data", "model")
    return {name: whole[name] for name in kept}


def curve(record: Record) -> list[tuple[int, dict[str, float]]]:
    """Update number and values of each point of the training curve."""
    points = []
    for point in record.training.curve if record.training else []:
        values = {
            "train/nll_nats_per_token": point.train_nll_nats_per_token,
            "dev/nll_nats_per_token": point.dev_nll_nats_per_token,
            "train/learning_rate": point.learning_rate,
            "train/target_tokens": point.target_tokens,
            "train/wall_s": point.wall_s,
        }
        points.append((point.update, {k: v for k, v in values.items() if v is not None}))
    return points


def summary(record: Record) -> dict[str, float]:
    """The final numbers by their documented keys; what was not measured has no key."""
    engine = main_engine(record)
    values: dict[str, float] = {
        "model/parameters": record.model.parameters,
        "model/residual_parameters": record.model.residual,
    }
    if record.training:
        values["train/us_per_target_token"] = record.training.us_per_target_token
        values["train/peak_memory_bytes"] = record.training.peak_memory_bytes
        values["train/target_tokens_per_update"] = record.training.target_tokens_per_update
    if record.evaluation:
        values |= _quality(record.evaluation, engine)
    if record.benchmark:
        values["benchmark/peak_memory_bytes"] = record.benchmark.peak_memory_bytes
        if record.benchmark.training:
            per_token = record.benchmark.training.us_per_target_token
            values["benchmark/train_us_per_target_token"] = per_token
        for timing in record.benchmark.timings:
            suffix = _timing_suffix(timing, engine)
            values[f"encode/us_per_token_{suffix}"] = timing.encoder_us_per_token
            values[f"decode/us_per_token_{suffix}"] = timing.decoder_us_per_token
            values[f"decode/kv_cache_bytes_{suffix}"] = timing.kv_cache_bytes
    return values


def _quality(evaluation: Evaluation, engine: Engine) -> dict[str, float]:
    values = {
        "dev/nll_nats_per_token": evaluation.dev_nll_nats_per_token,
        "dev/perplexity": evaluation.dev_perplexity,
    }
    for score in evaluation.scores:
        other = f"_{score.engine}" if score.engine != engine else ""
        values[f"{_metric_key(score)}_{score.search}{other}"] = score.value_0_100
    for baseline in evaluation.baselines:
        values[f"{_metric_key(baseline)}_baseline_{baseline.baseline}"] = baseline.value_0_100
    return values


def _metric_key(score: Score) -> str:
    tokenize = f"_{score.tokenize}" if score.tokenize not in (None, "13a") else ""
    return f"{score.split}/{score.metric}{tokenize}"


def _timing_suffix(timing: Timing, engine: Engine) -> str:
    batch, source, target = HEADLINE_SHAPE
    suffix = timing.search
    if (timing.source_tokens, timing.target_tokens) != (source, target):
        suffix += f"_{timing.source_tokens}x{timing.target_tokens}"
    if timing.batch != batch:
        suffix += f"_batch{timing.batch}"
    return suffix + (f"_{timing.engine}" if timing.engine != engine else "")


def main(arguments: list[str] | None = None) -> int:
    """Log every record of a folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tracking", description=__doc__)
    parser.add_argument("--records", type=Path, required=True, help="folder of record.json files")
    parser.add_argument("--mode", choices=get_args(Mode), default="offline")
    parser.add_argument("--project", default=PROJECT, help="wandb's project")
    parser.add_argument("--dir", type=Path, default=Path("outputs"), help="where wandb/ is made")
    options = parser.parse_args(arguments)
    try:
        records = read_records(options.records)
        if not records:
            raise ExperimentError(f"{options.records}: no record.json in it (run an experiment)")
        for record in records:
            log_record(record, options.mode, options.dir, options.project)
            print(f"{run_name(record)}: {options.mode}")
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
