"""What a run in wandb holds, by the keys of docs/tracking.md; nothing here imports wandb."""

import msgspec

from experiments.records.measurement import (
    FixedLengths,
    Measurement,
    RealText,
    TrainingText,
    TrainingUpdates,
)
from experiments.records.parts import Evaluation, search_name
from experiments.records.record import Finished, Record
from experiments.records.speed import HEADLINE_SHAPE, decoder_speed_up
from experiments.records.spikes import loss_spikes


def run_config(record: Record) -> dict[str, object]:
    """What the run's config holds: the record without its commands and what it found."""
    whole = msgspec.to_builtins(record)
    kept = ("job", "config", "stages", "seed", "data", "architecture", "uptraining")
    return {name: whole[name] for name in kept}


def curve(record: Record) -> list[tuple[int, dict[str, float]]]:
    """Update number and values of each point of the training curve."""
    points = []
    for point in record.result.curve:
        values = {
            "train/nll_nats_per_token": point.train_nll_nats_per_token,
            "dev/nll_nats_per_token": point.dev_nll_nats_per_token,
            "train/learning_rate": point.learning_rate,
            "train/grad_norm": point.grad_norm,
            "train/target_tokens": point.target_tokens,
            "train/wall_s": point.wall_s,
        }
        points.append((point.update, {k: v for k, v in values.items() if v is not None}))
    return points


def summary(record: Record) -> dict[str, float]:
    """The final numbers of a record; a diverged training has no quality."""
    values: dict[str, float] = {
        "model/parameters": record.architecture.parameters,
        "model/residual_parameters": record.architecture.residual,
    }
    result = record.result
    if result.curve:
        values["train/loss_spikes"] = len(loss_spikes(result.curve))
    if not isinstance(result, Finished):
        return values | {"train/diverged_after_update": result.after_update}
    training = result.training
    if training:
        values["train/us_per_target_token"] = training.us_per_target_token
        values["train/peak_memory_bytes"] = training.peak_memory_bytes
        values["train/target_tokens_per_update"] = training.target_tokens_per_update
    return values | _quality(result.evaluation)


def speed_summary(measurement: Measurement, job: str) -> dict[str, float]:
    """The speed of the job with that id; empty where the measurement does not name it."""
    values: dict[str, float | None] = {}
    peaks = []
    for timing in measurement.timings:
        samples = timing.of_job(job)
        workload = timing.workload
        if samples is None or isinstance(workload, TrainingText):  # no job's is measured on text
            continue
        if isinstance(workload, TrainingUpdates):
            key = "benchmark/train_us_per_target_token"
            values.setdefault(key, samples.us_per_token("total"))
            continue
        suffix = _suffix(workload)
        ratio = decoder_speed_up(timing, samples)
        values[f"encode/us_per_token_{suffix}"] = samples.us_per_token("encoder")
        values[f"decode/us_per_token_{suffix}"] = samples.us_per_token("decoder")
        values[f"decode/speed_up_{suffix}"] = ratio.median if ratio else None
        values[f"decode/kv_cache_bytes_{suffix}"] = samples.kv_cache_bytes
        peaks.append(samples.peak_memory_bytes)
    values["benchmark/peak_memory_bytes"] = max(filter(None, peaks), default=None)
    return {key: value for key, value in values.items() if value is not None}


def _quality(evaluation: Evaluation) -> dict[str, float]:
    values = {
        "dev/nll_nats_per_token": evaluation.dev_nll_nats_per_token,
        "dev/perplexity": evaluation.dev_perplexity,
    }
    for score in evaluation.scores:
        values[f"{score.split}/{score.metric}_{score.search}"] = score.value
    for free in evaluation.model_free:
        values[f"{free.split}/{free.metric}_baseline_{free.name}"] = free.value
    return values


def _suffix(workload: FixedLengths | RealText) -> str:
    """The search, then what is not the headline's: the lengths or the text, and the batch."""
    batch, *lengths = HEADLINE_SHAPE
    suffix = search_name(workload.beam)
    if isinstance(workload, RealText):
        suffix += f"_{workload.name}"
    elif [workload.source_tokens, workload.target_tokens] != lengths:
        suffix += f"_{workload.source_tokens}x{workload.target_tokens}"
    return suffix + (f"_batch{workload.batch}" if workload.batch != batch else "")
