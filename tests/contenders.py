"""Small models, engines and what is asked of them, for tests of measuring."""

from __future__ import annotations

from typing import Any

import torch
from plugin_models import HEADS

from experiments.engines import EXACT_ENGINES
from experiments.measure.request import Request, RequestedContender
from experiments.records.measurement import FixedLengths
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.parity import Baseline

CPU = torch.device("cpu")
BASELINE = Baseline(
    d_model=32,
    num_heads=HEADS,
    mha_d_ff=48,
    encoder_layers=1,
    decoder_layers=2,
    vocab_size=44,
    max_source_positions=16,
    max_target_positions=16,
)

MHA, MQA = BASELINE.multi_head, BASELINE.resolve(Variant(1))
FAIRSEQ_ENGINES = [name for name in EXACT_ENGINES if name != "ctranslate2"]


def contender(architecture: Architecture = MHA, engine: str = "gqa", **more: Any) -> Any:
    return RequestedContender(architecture=architecture, engine=engine, **more)


def request(*contenders: RequestedContender, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "contenders": list(contenders) or [contender()],
        "shapes": [(2, 6, 5)],
        "beams": [2],
        "repeats": 2,
        "memory": False,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
    }
    return Request(**(values | changes))


def fixed(**changes: Any) -> FixedLengths:
    values: dict[str, Any] = {
        "batch": 2,
        "source_tokens": 6,
        "target_tokens": 5,
        "beam": 4,
        "max_positions": 256,
    }
    return FixedLengths(**(values | changes))
