"""A small grid of cells, and a bench that plays their measurement, for tests of plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.intensity import plans
from experiments.intensity.campaign import START_S, Campaign, Settings
from experiments.intensity.cells import parts_of
from experiments.intensity.models import PRESETS, architecture_of
from experiments.measure.request import Request, decoding_workloads
from experiments.records.measurement import Contender, Measurement, Samples, Timing
from experiments.records.parts import CodeInfo, Hardware, Provenance
from gqa_fairseq.architecture import Heads
from gqa_fairseq.roofline import Load, Machine, encoder_seconds, total_seconds

PAPER = architecture_of(PRESETS["paper"])
TINY = replace(
    PAPER, d_model=32, encoder_heads=Heads(4, 8, 4), decoder_heads=Heads(4, 8, 4), encoder_layers=1,
    decoder_layers=2, encoder_d_ff=48, decoder_d_ff=48, vocab_size=44,
)  # fmt: skip
MACHINE = Machine("a test", 1e6, {"float32": 1e7, "int8": 4e7}, 2**34, "a test")
MADE_BY = Provenance(
    code=CodeInfo(commit="0" * 40, dirty=False, digest="0" * 64),
    versions={"torch": "0"},
    hardware=Hardware(cpu_model="a test", cores_usable=1, memory_bytes=2**34, gpus=[]),
    threads=1,
)


def small_grid(**changes: Any) -> plans.Plan:
    values: dict[str, Any] = {
        "kv_heads": (4, 1),
        "batches": (1, 4),
        "lengths": (3, 6),
        "beams": (1, 2),
        "weights": ("float32", "int8"),
        "cache": "float32",
        "positions": 8,
    }
    return plans.grid(TINY, **(values | changes))


def settings(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "folder": folder,
        "machine": MACHINE,
        "memory_bytes": 2**34,
        "budget_s": 1e6,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "repeats": 2,
    }
    return Settings(**(values | changes))


class Bench:
    """Stands for the measurement: a clock, and seconds that are `times` what is predicted.

    `break_at` is the number of cells after which it raises `error`.
    """

    def __init__(self, times: float = 2.0, break_at: int = -1, error: Any = None) -> None:
        self.now, self.times = 0.0, times
        self.break_at, self.error = break_at, error
        self.requests: list[Request] = []
        self.cells = 0

    def clock(self) -> float:
        return self.now

    def measure(self, request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
        self.requests.append(request)
        self.now += START_S
        timings: list[Timing] = []
        for workload in decoding_workloads(request):
            if self.cells == self.break_at:
                raise self.error
            samples = []
            for contender in request.contenders:
                is_int8 = contender.engine == "gqa+int8"
                load = Load(
                    workload.batch, workload.source_tokens, workload.target_tokens, workload.beam,
                    "int8" if is_int8 else "float32", "float32",
                )  # fmt: skip
                own = contender.architecture
                decoder = self.times * total_seconds(parts_of(own, load, MACHINE, False))
                encoder = total_seconds(encoder_seconds(own, load, MACHINE))
                self.now += (1 + request.repeats) * (decoder + encoder)
                samples.append(
                    Samples(
                        contender=Contender(
                            architecture=own, engine=contender.engine, weights="random"
                        ),
                        tokens_produced=workload.batch * workload.target_tokens,
                        total_s=[decoder + encoder] * request.repeats,
                        encoder_s=[encoder] * request.repeats,
                    )
                )
            timings.append(
                Timing(
                    workload=workload,
                    warmup_runs=1,
                    samples=samples,
                    read_bytes_per_s=[MACHINE.bytes_per_s] * request.repeats,
                    matrix_flops_per_s=[MACHINE.flops_per_s["float32"]] * request.repeats,
                    int8_flops_per_s=[MACHINE.flops_per_s["int8"]] * request.repeats
                    if is_int8
                    else [],
                )
            )
            self.cells += 1
            measured = Measurement(
                created_utc=datetime(2026, 1, 2, tzinfo=UTC),
                provenance=MADE_BY,
                device="cpu",
                dtype="float32",
                operators="none",
                timings=list(timings),
            )
            on_measured(measured)
        return measured

    def campaign(self, plan: plans.Plan, asked: Settings) -> Campaign:
        return Campaign(plan, asked, self.measure, self.clock, lambda line: None)

    def asked(self) -> list[tuple[int, ...]]:
        """All searches that were asked of the models themselves, in order."""
        return [
            (*search, request.contenders[0].engine == "gqa+int8")
            for request in self.requests
            for search in request.searches
            if request.contenders[0].architecture.name != "tiny"
        ]
