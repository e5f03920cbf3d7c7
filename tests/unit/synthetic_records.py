"""Records and measurements for tests: plausible in shape, clearly synthetic in value, consistent.

Values of scores and times are made up; architectures, counts and checks are the real ones.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from data_prep.spec import Manifest
from experiments.records.measurement import (
    Contender,
    FixedLengths,
    Measurement,
    Samples,
    Timing,
    TrainingUpdates,
)
from experiments.records.parts import (
    CodeInfo,
    Conversion,
    Evaluation,
    Hardware,
    JobInfo,
    ModelFreeScore,
    ModelScore,
    Provenance,
    StageInfo,
    Training,
    TrainPoint,
    Uptraining,
    updates_more,
)
from experiments.records.record import SCHEMA_VERSION, Diverged, Finished, Record
from experiments.records.significance import (
    MARGINS,
    TESTED,
    AllSeeds,
    Comparison,
    Interval,
    MetricTests,
    SeedTests,
    Settings,
)
from experiments.records.significance import SCHEMA_VERSION as TESTS_VERSION
from experiments.report.quality.comparisons import Pair
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.parity import BASELINES, Baseline

replace = msgspec.structs.replace

NUM_HEADS = 8
TEST_LINES = 500
FILTERED_LINES = 450
SMALL = Baseline(
    d_model=192,
    num_heads=NUM_HEADS,
    mha_d_ff=768,
    encoder_layers=2,
    decoder_layers=2,
    vocab_size=4000,
    max_source_positions=512,
    max_target_positions=512,
)
PAPER = dataclasses.replace(
    BASELINES["wmt_en_de"], vocab_size=4000, max_source_positions=256, max_target_positions=256
)
SIGNATURES = {
    "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "bleu_intl": "nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:2.6.0",
    "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0",
}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def wmt14_record(
    num_kv_heads: int = NUM_HEADS, placement: str = "all", seed: int = 1, **variant: Any
) -> Record:
    """A record on WMT14 at the paper's shape, its filtered lines and both penalties scored."""
    plain = record(
        num_kv_heads, seed, placement, data_name="wmt14_en_de", baseline=PAPER, **variant
    )
    base = 20 + 0.1 * num_kv_heads
    scores = [*finished(plain).evaluation.scores, model_score(1, "bleu_intl", base - 1, "dev")]
    for metric, gain in (("bleu", 0.0), ("bleu_intl", 0.5), ("chrf", 30.0)):
        scores += [
            model_score(1, metric, base + gain, "test_filtered"),
            model_score(4, metric, base + gain + 1, "test_filtered"),
            gnmt(model_score(4, metric, base + gain + 2, "test_filtered")),
            gnmt(model_score(4, metric, base + gain + 3)),
        ]
    data = manifest("wmt14_en_de", FILTERED_LINES)
    return with_evaluation(replace(plain, data=data), scores=scores)


def finished(record: Record) -> Finished:
    """The record's result, which must be a finished one."""
    assert isinstance(record.result, Finished)
    return record.result


def with_evaluation(record: Record, **changes: object) -> Record:
    """The record with other fields in its evaluation."""
    result = finished(record)
    evaluation = replace(result.evaluation, **changes)
    return replace(record, result=replace(result, evaluation=evaluation))


def gnmt(score: ModelScore) -> ModelScore:
    return replace(score, length_penalty="gnmt", length_alpha=0.6)


def manifest(name: str = "sample_en_de", filtered_lines: int = 0) -> Manifest:
    """With `filtered_lines`, a part of test that is scored by itself."""
    counts = {"train": (10_000, {"too long": 60, "ratio": 40}), "dev": (400, {})}
    counts["test"] = (TEST_LINES, {})
    fields = {
        "name": name,
        "source_lang": "en",
        "target_lang": "de",
        "licence": "synthetic",
        "vocab_size": 4000,
        "max_pieces": 250,
        "max_ratio": 1.5,
        "request": sha256(name + "request"),
        "inputs": {"train.en": sha256(name + "input")},
        "splits": {
            split: {
                "read": read,
                "kept": read - sum(dropped.values()),
                "dropped": dropped,
                "source_pieces": 20 * read,
                "target_pieces": 21 * read,
            }
            for split, (read, dropped) in counts.items()
        },
        "overlap": {
            "test": {
                "four_grams_seen_share": 0.21,
                "lines_covered_share": 0.02,
                "duplicate_lines": 0,
            }
        },
        "subsets": (
            {"filtered": {"file": "filtered.lines", "lines": filtered_lines}}
            if filtered_lines
            else {}
        ),
        "files": {"text/train.en": sha256(name + "train.en")},
        "checksum": sha256(name),
        "versions": {"sentencepiece": "0.2.0"},
    }
    return msgspec.convert(fields, Manifest)


def curve(num_kv_heads: int = NUM_HEADS, seed: int = 1, updates: int = 600) -> list[TrainPoint]:
    offset = 0.01 * seed - 0.008 * num_kv_heads
    every = min(50, updates)
    return [
        TrainPoint(
            update=update,
            train_nll_nats_per_token=3.0 + 5.2 * math.exp(-update / 180) + offset,
            dev_nll_nats_per_token=(
                3.2 + 5.0 * math.exp(-update / 170) + offset if update % (2 * every) == 0 else None
            ),
            learning_rate=1e-3 * min(update / 200, (200 / update) ** 0.5),
            target_tokens=update * 4000,
            wall_s=update * 0.4,
        )
        for update in range(every, updates + 1, every)
    ]


def training(num_kv_heads: int = NUM_HEADS, seed: int = 1, updates: int = 600) -> Training:
    return Training(
        device="cpu",
        precision="fp32",
        processes=1,
        curve=curve(num_kv_heads, seed, updates),
        updates=updates,
        target_tokens=updates * 4000,
        target_tokens_per_update=4000.0,
        target_tokens_per_update_wanted=4096,
        update_wall_s=updates * 0.4,
        us_per_target_token=100.0,
        peak_memory_bytes=900_000_000,
        peak_memory_kind="process_rss",
    )


def model_score(beam: int, metric: str, value: float, split: str = "test") -> ModelScore:
    return ModelScore(
        split=split,
        metric=metric,
        value=value,
        signature=SIGNATURES[metric],
        lines={"dev": 400, "test_filtered": FILTERED_LINES}.get(split, TEST_LINES),
        hypotheses_sha256=sha256(f"{beam} {value}"),
        beam=beam,
        length_penalty="fairseq",
        length_alpha=1.0,
    )


def model_free_score(name: str, value: float) -> ModelFreeScore:
    return ModelFreeScore(
        split="test",
        metric="bleu",
        value=value,
        signature=SIGNATURES["bleu"],
        lines=TEST_LINES,
        hypotheses_sha256=sha256(name),
        name=name,
    )


def evaluation(
    architecture: Architecture = SMALL.multi_head, seed: int = 1, engine: str = "gqa"
) -> Evaluation:
    nll = 3.36 - 0.004 * architecture.num_kv_heads + 0.01 * seed
    base = 11.0 + 0.1 * architecture.num_kv_heads + 0.05 * seed
    return Evaluation(
        engine=engine,
        parameters=architecture.parameters,
        dev_nll_nats_per_token=nll,
        dev_perplexity=math.exp(nll),
        dev_target_tokens=9_876,
        scores=[
            model_score(beam, metric, base + gain + (beam == 4) * 0.7)
            for beam in (1, 4)
            for metric, gain in (("bleu", 0.0), ("bleu_intl", 0.4), ("chrf", 30.0))
        ],
        model_free=[model_free_score("copy", 3.1), model_free_score("nearest", 5.2)],
    )


def provenance(cpu_model: str = "Synthetic CPU") -> Provenance:
    return Provenance(
        code=CodeInfo(commit="c0ffee" + "0" * 34, dirty=False, digest=sha256("code")),
        versions={"python": "3.11.7", "torch": "2.13.0", "ve-fairseq": "0.12.3"},
        hardware=Hardware(cpu_model=cpu_model, cores_usable=2, memory_bytes=24 * 2**30, gpus=[]),
        threads=2,
    )


def stages(identity: str, started: datetime, *names: str) -> list[StageInfo]:
    return [
        StageInfo(
            name=name,
            key=sha256(f"{name} {identity}"),
            recipe=1,
            provenance=provenance(),
            started_utc=started,
            wall_s=100.5,
            tries=1,
        )
        for name in names
    ]


def made_by(record: Record, made: Provenance, *names: str) -> Record:
    """The record with its stages of these names (all of them by default) made by `made`."""
    return replace(
        record,
        stages=[
            replace(stage, provenance=made) if stage.name in names or not names else stage
            for stage in record.stages
        ],
    )


def record(
    num_kv_heads: int = NUM_HEADS,
    seed: int = 1,
    placement: str = "all",
    data_name: str = "sample_en_de",
    updates: int = 600,
    baseline: Baseline = SMALL,
    diverged_after: int | None = None,
    uptrained: tuple[Conversion, float] | None = None,
    **variant: Any,
) -> Record:
    """A consistent record; with `diverged_after` an update its training came to no end.

    `uptrained` is a method and an alpha: then `updates` are those of the parent.
    """
    uptraining, more = None, updates
    if uptrained:
        method, alpha = uptrained
        variant["d_ff"], more = "kept", updates_more(alpha, updates)
        uptraining = Uptraining(
            method=method,
            alpha=alpha,
            parent_updates=updates,
            updates=more,
            parent=sha256(f"parent {seed}"),
        )
    architecture = baseline.resolve(Variant(num_kv_heads, placement, **variant))
    identity = f"{architecture} {seed} {data_name} {updates} {uptrained or ''}"
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=seed)
    result: Finished | Diverged
    if diverged_after is None:
        result = Finished(
            training=training(num_kv_heads, seed, more) if more else None,
            evaluation=evaluation(architecture, seed),
        )
        extra = ("convert", "uptrain")[: 2 if more else 1] if uptrained else ()
        done = stages(identity, started, "prepare", "train", *extra, "evaluate")
    else:
        result = Diverged(
            after_update=diverged_after,
            reason="the loss is NaN",
            curve=curve(num_kv_heads, seed, diverged_after),
        )
        done = stages(identity, started, "prepare", "train")
    return Record(
        schema_version=SCHEMA_VERSION,
        job=JobInfo(id=sha256(identity), experiment="synthetic", started_utc=started, wall_s=321.5),
        config={
            "attention": {"num_kv_heads": num_kv_heads, "placement": placement},
            "model": {
                "num_heads": baseline.num_heads,
                "d_model": baseline.d_model,
                "mha_d_ff": baseline.mha_d_ff,
            },
            "train": {"max_updates": updates},
            "decode": {"engine": "gqa", "beam": 4},
            "hardware": {"device": "cpu", "devices": 1, "precision": "fp32", "threads": None},
            "data": {"name": data_name},
            "seed": seed,
        },
        commands={"train": ["fairseq-train", "bin", "--seed", str(seed)]},
        stages=done,
        seed=seed,
        data=manifest(data_name),
        architecture=architecture,
        result=result,
        uptraining=uptraining,
    )


def jitter(rounds: int) -> list[float]:
    """What the machine's other load does to all contenders of a round alike."""
    return [1 + 0.02 * ((i * 7) % 5 - 1) for i in range(rounds)]


def decoding_samples(
    architecture: Architecture, jobs: Sequence[str], workload: FixedLengths, rounds: int = 5
) -> Samples:
    tokens = workload.batch * workload.target_tokens
    kv_heads, beam = architecture.num_kv_heads, workload.beam
    positions = workload.target_tokens + workload.source_tokens
    # Microseconds per token: a part for the weights, a part for the keys and values read.
    decoder_us = beam * (20 + 4 * kv_heads * positions / 256)
    # A little of the load differs from contender to contender.
    own = [1 + 0.001 * ((i * 3 + kv_heads) % 4) for i in range(rounds)]
    shared = [a * b for a, b in zip(jitter(rounds), own, strict=True)]
    encoder_s = [workload.source_tokens / 128 * 8 * tokens * 1e-6 * factor for factor in shared]
    decoder_s = [decoder_us * tokens * 1e-6 * factor for factor in shared]
    return Samples(
        contender=Contender(
            architecture=architecture, engine="gqa", weights="trained", jobs=tuple(jobs)
        ),
        tokens_produced=tokens,
        total_s=[e + d for e, d in zip(encoder_s, decoder_s, strict=True)],
        encoder_s=encoder_s,
        bytes_by_part={"weights": 10**9, "cache": 10**8 * kv_heads},
        flops=10**12,
        kv_cache_bytes=2 * 2 * 2 * kv_heads * 24 * workload.batch * beam * positions,
        peak_memory_bytes=1_200_000_000 + 50_000_000 * kv_heads + 1_000_000 * beam,
        peak_memory_kind="process_rss",
    )


def training_samples(architecture: Architecture, jobs: Sequence[str]) -> Samples:
    return Samples(
        contender=Contender(
            architecture=architecture, engine="training", weights="random", jobs=tuple(jobs)
        ),
        tokens_produced=32 * 128,
        total_s=[
            (0.8 + 0.001 * architecture.num_kv_heads) * factor for factor in (1, 0.99, 1, 1.05, 1)
        ],
        peak_memory_bytes=2_000_000_000,
        peak_memory_kind="process_rss",
    )


def fixed_lengths(beam: int = 1, source_tokens: int = 128, batch: int = 64) -> FixedLengths:
    return FixedLengths(
        batch=batch,
        source_tokens=source_tokens,
        target_tokens=128,
        beam=beam,
        max_positions=1024,
    )


def measurement(
    records: Sequence[Record],
    workloads: Sequence[FixedLengths] = tuple(
        fixed_lengths(beam, source) for source in (128, 512) for beam in (1, 4)
    ),
    created: datetime = datetime(2026, 1, 2, tzinfo=UTC),
    made: Provenance | None = None,
) -> Measurement:
    """All architectures of `records` side by side, with the ids of their jobs."""
    jobs: dict[Architecture, list[str]] = {}
    for each in records:
        jobs.setdefault(each.architecture, []).append(each.job.id)
    work: list[tuple[FixedLengths | TrainingUpdates, list[Samples]]] = [
        (workload, [decoding_samples(a, ids, workload) for a, ids in jobs.items()])
        for workload in workloads
    ]
    updates = TrainingUpdates(batch=32, source_tokens=128, target_tokens=128)
    work.append((updates, [training_samples(a, ids) for a, ids in jobs.items()]))
    return Measurement(
        created_utc=created,
        provenance=made or provenance(),
        device="cpu",
        dtype="float32",
        operators="native AVX512",
        timings=[
            Timing(
                workload=workload,
                warmup_runs=2,
                samples=samples,
                read_bytes_per_s=[2e10, 2.1e10],
                matrix_flops_per_s=[1e12, 1.1e12],
            )
            for workload, samples in work
        ],
    )


def interval(low: float, high: float, level: float = 0.95) -> Interval:
    return Interval(low=low, high=high, level=level)


def metric_tests(
    metric: str, low: float, high: float, p_worse: float = 0.01, seeds: int = 1
) -> MetricTests:
    """With those ends of the 90 % interval; that of 95 % is 0.1 wider on each side."""
    difference, margin = (low + high) / 2, MARGINS.get(metric)
    whole = interval(low - 0.1, high + 0.1)
    seed = SeedTests(difference=difference, interval=whole, p_bootstrap=0.02, p_randomization=0.04)
    return MetricTests(
        metric=metric,
        signature="x",
        lines=500,
        margin=margin,
        seeds=[seed] * seeds,
        together=AllSeeds(
            difference=difference,
            interval=whole,
            tost=interval(low, high, 0.9),
            p_worse=p_worse if margin else None,
        ),
    )


def comparison(pair: Pair, low: float, high: float, p_worse: float = 0.01) -> Comparison:
    return Comparison(
        schema_version=TESTS_VERSION,
        settings=Settings(),
        sides=pair.sides,
        metrics=[metric_tests(m, low, high, p_worse, len(pair.seeds)) for m in TESTED],
    )
