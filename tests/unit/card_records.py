"""Made-up records of a card (docs/gpu.md), and what they are made of."""

from pathlib import Path
from typing import Any

from experiments.card.models import Asked
from experiments.records.card import AttentionCase, AttentionTimes
from experiments.records.measurement import Contender, FixedLengths, Measurement, Samples, Timing
from gqa_fairseq.architecture import Architecture


def stamp(asked: Asked) -> dict[str, Any]:
    return asked.stamp()


def two_models() -> list[Architecture]:
    return Asked("cpu", Path(), 1.0, 1).models((8, 1))


def measurement_of(asked: Asked, *timings: Timing) -> Measurement:
    return Measurement(**stamp(asked), operators="PyTorch", timings=list(timings))


def samples_of(own: Architecture, engine: str, total: float, size: int = 0) -> Samples:
    return Samples(
        contender=Contender(architecture=own, engine=engine, weights="random"),
        tokens_produced=10,
        total_s=[total] * 3,
        encoder_s=[1.0] * 3 if size else None,
        bytes_by_part={"all": size} if size else {},
        peak_memory_bytes=1000,
        peak_memory_kind="cuda_allocated",
    )


def timing_of_decoding() -> Timing:
    """Decoders of 4 s and 2 s for 300 and 100 bytes at 100 bytes/s; stock takes 20 s."""
    multi_head, single = two_models()
    workload = FixedLengths(batch=2, source_tokens=6, target_tokens=5, beam=4, max_positions=32)
    return Timing(
        workload=workload,
        warmup_runs=1,
        samples=[
            samples_of(multi_head, "gqa", 5.0, 300),
            samples_of(single, "gqa", 3.0, 100),
            samples_of(multi_head, "stock", 20.0),
        ],
        read_bytes_per_s=[100.0],
        matrix_flops_per_s=[1.0],
    )


def case_of(**seconds: float) -> AttentionCase:
    ways = [AttentionTimes(name=name, seconds=[s, s, 9 * s]) for name, s in seconds.items()]
    ways.append(AttentionTimes(name="other", refused="it cannot"))
    return AttentionCase(
        kind="self", batch=1, beam=1, heads=8, kv_heads=1, head_dim=16, slots=3, bytes_read=1,
        ways=ways,
    )  # fmt: skip
