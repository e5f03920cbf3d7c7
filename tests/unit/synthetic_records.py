"""Records for tests: plausible in shape, clearly synthetic in value, and consistent."""

import hashlib
import math
from datetime import UTC, datetime, timedelta

import msgspec

from experiments.record_parts import (
    BaselineScore,
    Benchmark,
    CodeInfo,
    DataInfo,
    Evaluation,
    Hardware,
    JobInfo,
    ModelInfo,
    ModelScore,
    Overlap,
    SplitCounts,
    Timing,
    Training,
    TrainingTiming,
    TrainPoint,
    median_us_per_token,
)
from experiments.records import SCHEMA_VERSION, Record

replace = msgspec.structs.replace

NUM_HEADS = 8
TEST_LINES = 500


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def model_info(num_kv_heads: int = NUM_HEADS, placement: str = "all") -> ModelInfo:
    spared = NUM_HEADS - num_kv_heads
    widened = 768 + (36 if placement == "all" else 48) * spared
    residual = -16 * spared if placement == "decoder" else 0
    return ModelInfo(
        arch="gqa_transformer",
        num_heads=NUM_HEADS,
        num_kv_heads=num_kv_heads,
        head_dim=24,
        d_model=192,
        placement=placement,
        encoder_layers=2,
        decoder_layers=2,
        encoder_d_ff=widened if placement == "all" else 768,
        decoder_d_ff=widened,
        bias=False,
        parameters=2_500_000 + residual,
        parameters_predicted=2_500_000 + residual,
        parameters_mha=2_500_000,
        residual=residual,
    )


def wmt14_record(num_kv_heads: int = NUM_HEADS, placement: str = "all", seed: int = 1) -> Record:
    """A record on WMT14 at the paper's shape, its filtered lines and both penalties scored."""
    plain = record(num_kv_heads, seed, placement, data_name="wmt14_en_de")
    assert plain.evaluation is not None
    assert plain.benchmark is not None
    timings = [replace(timing, engine="gqa") for timing in plain.benchmark.timings]
    base = 20 + 0.1 * num_kv_heads
    scores = [*plain.evaluation.scores, model_score(1, "bleu", "intl", base - 1, split="dev")]
    for metric, tokenize, gain in (("bleu", "13a", 0.0), ("bleu", "intl", 0.5), ("chrf", None, 30)):
        scores += [
            model_score(1, metric, tokenize, base + gain, split="test_filtered"),
            model_score(4, metric, tokenize, base + gain + 1, split="test_filtered"),
            gnmt(model_score(4, metric, tokenize, base + gain + 2, split="test_filtered")),
            gnmt(model_score(4, metric, tokenize, base + gain + 3)),
        ]
    scores = [
        replace(s, engine="gqa", lines={"dev": 400, "test": TEST_LINES}.get(s.split, 450))
        for s in scores
    ]
    shape = {
        "num_heads": NUM_HEADS, "d_model": 1024, "encoder_layers": 6, "decoder_layers": 6,
        "mha_d_ff": 4096,
    }  # fmt: skip
    return replace(
        plain,
        config=plain.config | {"model": shape},
        data=replace(plain.data, subsets={"test_filtered": 450}),
        evaluation=replace(plain.evaluation, scores=scores),
        benchmark=replace(plain.benchmark, timings=timings),
    )


def gnmt(score: ModelScore) -> ModelScore:
    return replace(score, length_penalty="gnmt", length_alpha=0.6)


def data_info(name: str = "synthetic_en_de") -> DataInfo:
    return DataInfo(
        name=name,
        source_lang="en",
        target_lang="de",
        vocab_size=4000,
        checksum=sha256(name),
        files={"text/train.en": sha256(name + "train.en")},
        splits={
            "train": SplitCounts(read=10_000, kept=9_900, dropped={"too long": 60, "ratio": 40}),
            "dev": SplitCounts(read=400, kept=400, dropped={}),
            "test": SplitCounts(read=TEST_LINES, kept=TEST_LINES, dropped={}),
        },
        overlap={
            "test": Overlap(four_grams_seen_share=0.21, lines_covered_share=0.02, duplicate_lines=0)
        },
    )


def training(num_kv_heads: int = NUM_HEADS, seed: int = 1, updates: int = 600) -> Training:
    offset = 0.01 * seed - 0.008 * num_kv_heads
    curve = [
        TrainPoint(
            update=update,
            train_nll_nats_per_token=3.0 + 5.2 * math.exp(-update / 180) + offset,
            dev_nll_nats_per_token=(
                3.2 + 5.0 * math.exp(-update / 170) + offset if update % 100 == 0 else None
            ),
            learning_rate=1e-3 * min(update / 200, (200 / update) ** 0.5),
            target_tokens=update * 4000,
            wall_s=update * 0.4,
        )
        for update in range(50, updates + 1, 50)
    ]
    return Training(
        device="cpu",
        precision="fp32",
        processes=1,
        curve=curve,
        updates=updates,
        target_tokens=updates * 4000,
        target_tokens_per_update=4000.0,
        target_tokens_per_update_wanted=4096,
        wall_s=updates * 0.42,
        update_wall_s=updates * 0.4,
        us_per_target_token=100.0,
        peak_memory_bytes=900_000_000,
        peak_memory_kind="process_rss",
    )


def model_score(
    beam: int, metric: str, tokenize: str | None, value: float, split: str = "test"
) -> ModelScore:
    signature = f"nrefs:1|case:mixed|eff:no|tok:{tokenize}|smooth:exp|version:2.6.0"
    return ModelScore(
        split=split,
        metric=metric,
        tokenize=tokenize,
        value_0_100=value,
        signature=signature if tokenize else "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|version:2.6.0",
        lines=TEST_LINES,
        hypotheses_sha256=sha256(f"{beam} {value}"),
        beam=beam,
        engine="stock",
        length_penalty="fairseq",
        length_alpha=1.0,
    )


def baseline_score(baseline: str, value: float) -> BaselineScore:
    return BaselineScore(
        split="test",
        metric="bleu",
        tokenize="13a",
        value_0_100=value,
        signature="nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
        lines=TEST_LINES,
        hypotheses_sha256=sha256(baseline),
        baseline=baseline,
    )


def evaluation(num_kv_heads: int = NUM_HEADS, seed: int = 1) -> Evaluation:
    nll = 3.36 - 0.004 * num_kv_heads + 0.01 * seed
    base = 11.0 + 0.1 * num_kv_heads + 0.05 * seed
    return Evaluation(
        dev_nll_nats_per_token=nll,
        dev_perplexity=math.exp(nll),
        dev_target_tokens=9_876,
        scores=[
            model_score(beam, metric, tokenize, base + gain + (beam == 4) * 0.7)
            for beam in (1, 4)
            for metric, tokenize, gain in (
                ("bleu", "13a", 0.0),
                ("bleu", "intl", 0.4),
                ("chrf", None, 30.0),
            )
        ],
        baselines=[baseline_score("copy", 3.1), baseline_score("nearest", 5.2)],
    )


def timing(num_kv_heads: int, beam: int, source_tokens: int, repeats: int = 5) -> Timing:
    batch, target_tokens = 64, 128
    tokens = batch * target_tokens
    # Microseconds per token: a part for the weights, a part for the keys and values read.
    us = beam * (20 + 4 * num_kv_heads * (target_tokens + source_tokens) / 256)
    jitter = [1 + 0.02 * ((repeat * 7) % 5 - 1) for repeat in range(repeats)]
    decoder_s = [us * tokens * 1e-6 * factor for factor in jitter]
    encoder_s = [source_tokens / 128 * 8 * tokens * 1e-6 * factor for factor in jitter]
    return Timing(
        engine="stock",
        beam=beam,
        batch=batch,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        tokens_produced=tokens,
        warmup_runs=2,
        encoder_s=encoder_s,
        decoder_s=decoder_s,
        encoder_us_per_token=median_us_per_token(encoder_s, tokens),
        decoder_us_per_token=median_us_per_token(decoder_s, tokens),
        kv_cache_bytes=2 * 2 * num_kv_heads * 24 * 4 * batch * beam * (128 + source_tokens),
    )


def benchmark(num_kv_heads: int = NUM_HEADS) -> Benchmark:
    update_s = [0.81, 0.79, 0.80, 0.84, 0.80]
    return Benchmark(
        device="cpu",
        precision="fp32",
        threads=2,
        operators="native AVX512",
        weights="trained",
        max_positions=1024,
        timings=[timing(num_kv_heads, beam, source) for source in (128, 512) for beam in (1, 4)],
        training=TrainingTiming(
            batch=32,
            source_tokens=128,
            target_tokens=128,
            warmup_runs=2,
            update_s=update_s,
            us_per_target_token=median_us_per_token(update_s, 32 * 128),
        ),
        peak_memory_bytes=1_200_000_000 + 50_000_000 * num_kv_heads,
        peak_memory_kind="process_rss",
    )


def record(
    num_kv_heads: int = NUM_HEADS,
    seed: int = 1,
    placement: str = "all",
    data_name: str = "synthetic_en_de",
    cpu_model: str = "Synthetic CPU",
    updates: int = 600,
    stages: bool = True,
) -> Record:
    """A consistent record; `stages=False` has no training, evaluation and benchmark."""
    model = model_info(num_kv_heads, placement)
    identity = f"{num_kv_heads} {seed} {placement} {data_name} {updates}"
    return Record(
        schema_version=SCHEMA_VERSION,
        job=JobInfo(
            id=sha256(identity),
            experiment="synthetic",
            variant=model.variant,
            started_utc=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=seed),
            wall_s=321.5,
        ),
        config={
            "attention": {"num_kv_heads": num_kv_heads, "placement": placement},
            "model": {"num_heads": NUM_HEADS, "d_model": 192, "mha_d_ff": 768},
            "train": {"max_updates": updates},
            "data": {"name": data_name},
            "seed": seed,
        },
        commands={"train": ["fairseq-train", "bin", "--seed", str(seed)]},
        code=CodeInfo(commit="c0ffee" + "0" * 34, dirty=False, version=sha256("code")),
        versions={"python": "3.11.7", "torch": "2.13.0", "ve-fairseq": "0.12.3"},
        hardware=Hardware(cpu_model=cpu_model, cores_usable=2, memory_bytes=24 * 2**30, gpus=[]),
        seed=seed,
        data=data_info(data_name),
        model=model,
        training=training(num_kv_heads, seed, updates) if stages else None,
        evaluation=evaluation(num_kv_heads, seed) if stages else None,
        benchmark=benchmark(num_kv_heads) if stages else None,
    )
