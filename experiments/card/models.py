"""What the parts work on: the paper's model on a card, a tiny one in a dry run; their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.measure.request import Dtype
from experiments.records import provenance
from experiments.records.checked import Device
from experiments.records.measurement import FixedLengths, TrainingUpdates
from experiments.records.parts import Provenance
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.costs import cache_bytes, step_matrix_elements, training_parts
from gqa_fairseq.parity import PAPER, Baseline
from gqa_fairseq.roofline import BYTES

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
        return provenance.made_by(self.threads)

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
        baseline = _TINY if self.is_dry else PAPER
        return [baseline.resolve(Variant(G)) for G in kv_heads]


def predicted_peak_bytes(own: Architecture, workload: FixedLengths, dtype: Dtype) -> int:
    """What torch has allocated at the peak of a search on a GPU (decoding/gpu), model included.

    The larger of two moments: the widest point of an encoder layer, and a step that has all
    scores of the vocabulary. Sizes count as they are, so they should be such that the search need
    not round them up (`bucket`).
    """
    size, C = BYTES[dtype], own.d_model
    tokens = workload.batch * workload.source_tokens
    rows = workload.batch * workload.beam
    parameters = own.parameters * size
    # Input, norm, output and residual; the hidden layer before and after its activation.
    encoding = parameters + tokens * (4 * C + 2 * own.encoder_d_ff) * size
    heads = own.decoder_heads
    cache = cache_bytes(
        batch=workload.batch,
        beam=workload.beam,
        source_tokens=workload.source_tokens,
        target_tokens=workload.target_tokens,
        layers=own.decoder_layers,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        bytes_per_element=size,
        window=own.window,
    )
    # The encoder's input and output, and the last layer's keys and values before they were stored.
    source = tokens * (2 * C + 2 * heads.num_kv_heads * heads.head_dim) * size
    # A word and a parent in 64 bits, a sum in 32; which beams read the slot, in 32.
    history = workload.target_tokens * rows * (20 if workload.beam == 1 else 24)
    # As they are, and log-probabilities in float32. PyTorch makes a float32 copy on the way, but
    # for float16.
    scores = rows * own.vocab_size * (size + (8 if dtype == "bfloat16" else 4))
    weights = parameters + step_matrix_elements(own) * size  # steps have a copy, fused
    return max(encoding, weights + sum(cache.values()) + source + history + scores)


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
