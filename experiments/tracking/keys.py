"""What a run in wandb holds, by the keys of docs/tracking.md; nothing here imports wandb."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from experiments.records.measurement import (
    FixedLengths,
    Measurement,
    RealText,
    TrainingText,
    TrainingUpdates,
)
from experiments.records.parts import Evaluation, TrainPoint, search_name
from experiments.records.record import Finished, Record
from experiments.records.significance import MetricTests, SeedTests
from experiments.records.speed import HEADLINE_SHAPE, decoder_speed_up
from experiments.records.spikes import loss_spikes
from gqa_fairseq.architecture import Architecture

# fairseq's log has the time in whole seconds: over so many a rate is off by 5 % at the most.
RATE_OVER_S = 20.0


def run_config(record: Record) -> dict[str, Any]:
    """What the run's config holds: what runs are grouped by, then most of the record."""
    whole = msgspec.to_builtins(record)
    nested = {name: whole[name] for name in ("job", "config", "stages", "architecture")}
    return (
        flat_config(record.variant, record.architecture, record.seed, record.data.name)
        | nested
        | {"manifest": whole["data"], "uptraining": whole["uptraining"]}
    )


def flat_config(variant: str, architecture: Architecture, seed: int, data: str) -> dict[str, str]:
    """What runs are grouped, filtered and coloured by: wandb does that with flat text alone.

    `model` names the multi-head baseline, such as `d192-layers2+2-parameters3034560`: what all its
    variants have in common.
    """
    layers = f"{architecture.encoder_layers}+{architecture.decoder_layers}"
    parameters = architecture.parameters - architecture.residual
    return {
        "variant": variant,
        "num_kv_heads": str(architecture.num_kv_heads),
        "placement": architecture.placement,
        "seed": str(seed),
        "data": data,
        "model": f"d{architecture.d_model}-layers{layers}-parameters{parameters}",
    }


def curve(points: Sequence[TrainPoint]) -> list[tuple[int, dict[str, float]]]:
    """Update number and values of each point of a training curve."""
    found = []
    for point, target_tokens_per_s in zip(points, _rates(points), strict=True):
        values = {
            "train/nll_nats_per_token": point.train_nll_nats_per_token,
            "dev/nll_nats_per_token": point.dev_nll_nats_per_token,
            "train/learning_rate": point.learning_rate,
            "train/grad_norm": point.grad_norm,
            "train/target_tokens": point.target_tokens,
            "train/target_tokens_per_s": target_tokens_per_s,
            "train/wall_s": point.wall_s,
        }
        found.append((point.update, {k: v for k, v in values.items() if v is not None}))
    return found


def _rates(points: Sequence[TrainPoint]) -> Iterator[float | None]:
    """Target tokens a second up to each point, over the fewest points that last long enough.

    Points follow each other in time, so the place to count from never goes back.
    """
    starts = [(0.0, 0), *((point.wall_s, point.target_tokens) for point in points)]
    first = 0
    for point in points:
        while point.wall_s - starts[first + 1][0] >= RATE_OVER_S:
            first += 1
        wall_s, tokens = starts[first]
        took_s = point.wall_s - wall_s
        yield (point.target_tokens - tokens) / took_s if took_s >= RATE_OVER_S else None


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
        values["train/us_per_target_token"] = training.running_us_per_target_token
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
        if ratio:
            key = f"decode/speed_up_{suffix}"
            values |= {key: ratio.median, f"{key}_low": ratio.low, f"{key}_high": ratio.high}
        values[f"decode/kv_cache_bytes_{suffix}"] = samples.kv_cache_bytes
        peaks.append(samples.peak_memory_bytes)
    values["benchmark/peak_memory_bytes"] = max(filter(None, peaks), default=None)
    return {key: value for key, value in values.items() if value is not None}


def seed_summary(key: str, tests: SeedTests) -> dict[str, float]:
    """How a run's score `key` differs from that of the baseline's run, and how sure that is."""
    return {
        f"{key}_difference": tests.difference,
        f"{key}_difference_low": tests.interval.low,
        f"{key}_difference_high": tests.interval.high,
        f"{key}_difference_p": tests.p_randomization,
    }


def seeds_summary(key: str, tests: MetricTests) -> dict[str, float]:
    """The same of all seeds together; `_lower_bound` is the one-sided one of non-inferiority."""
    together = tests.together
    return {
        f"{key}_difference": together.difference,
        f"{key}_difference_low": together.interval.low,
        f"{key}_difference_high": together.interval.high,
        f"{key}_difference_lower_bound": together.tost.low,
    }


def translations(record: Record) -> Mapping[str, Mapping[str, str]]:
    """Digests of the translations by split and search; a subset's are lines of its split's."""
    found: dict[str, dict[str, str]] = {}
    for score in record.evaluation.scores if record.evaluation else ():
        if score.split in record.data.splits:
            found.setdefault(score.split, {})[score.search] = score.hypotheses_sha256
    return found


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
