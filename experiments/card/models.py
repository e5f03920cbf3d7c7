"""What the parts work on: the paper's model on a card, a tiny one in a dry run; their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.intensity.cells import Cell, needed_bytes
from experiments.measure.request import Dtype
from experiments.records import provenance
from experiments.records.checked import Device
from experiments.records.measurement import FixedLengths, TrainingUpdates
from experiments.records.parts import Provenance
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.costs import training_parts
from gqa_fairseq.parity import BASELINES, Baseline
from gqa_fairseq.roofline import BYTES, Load

PAPER_POSITIONS = 256  # Shazeer 2019, section 4.1
_PAPER = replace(
    BASELINES["wmt_en_de"],
    vocab_size=32001,
    max_source_positions=PAPER_POSITIONS,
    max_target_positions=PAPER_POSITIONS,
)
# As few as a head of 16 allows, which the kernel needs.
_TINY = Baseline(
    d_model=128,
    mha_d_ff=128,
    encoder_layers=1,
    decoder_layers=1,
    vocab_size=97,
    max_source_positions=32,
    max_target_positions=32,
)


@dataclass(frozen=True)
class Asked:
    """What a part is asked for: where it runs and writes, and its seconds.

    A run on a CPU is a dry run: tiny shapes in float32, so that nothing in it rots.
    """

    device: Device
    folder: Path
    limit_s: float
    threads: int

    @property
    def is_dry(self) -> bool:
        return self.device == "cpu"

    @property
    def dtype(self) -> Dtype:
        return "float32" if self.is_dry else "bfloat16"

    @property
    def training_dtype(self) -> Dtype:
        """fairseq's command line trains in fp16, not in bf16 (docs/decisions, training)."""
        return "float32" if self.is_dry else "float16"

    def provenance(self) -> Provenance:
        return Provenance(
            code=provenance.code_info(),
            versions=provenance.versions(),
            hardware=provenance.hardware(),
            threads=self.threads,
        )

    def stamp(self, dtype: Dtype | None = None) -> dict[str, Any]:
        """What every record of a card has."""
        return {
            "created_utc": datetime.now(UTC),
            "provenance": self.provenance(),
            "device": self.device,
            "dtype": dtype or self.dtype,
        }

    def models(self, kv_heads: Sequence[int]) -> list[Architecture]:
        """One model for each number of key/value heads."""
        baseline = _TINY if self.is_dry else _PAPER
        return [baseline.resolve(Variant(G)) for G in kv_heads]


def predicted_peak_bytes(own: Architecture, workload: FixedLengths, dtype: str) -> int:
    """Memory that decoding takes at its peak: the parameters, and what the load adds."""
    load = Load(
        workload.batch,
        workload.source_tokens,
        workload.target_tokens,
        workload.beam,
        dtype,
        dtype,
    )
    return needed_bytes(Cell((own,), load))


def flops_of_an_update(own: Architecture, workload: TrainingUpdates) -> int:
    """Operations of a forward and a backward pass, attention included."""
    parts = training_parts(
        own,
        batch=workload.batch,
        source_tokens=workload.source_tokens,
        target_tokens=workload.target_tokens,
        element_bytes=BYTES["float16"],
    )
    return sum(part.flops for part in parts.values())
