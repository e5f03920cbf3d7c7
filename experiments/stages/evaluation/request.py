"""What the evaluate stage's process is asked for; nothing here imports torch."""

from pathlib import Path

import msgspec

from experiments.config import DecodeConfig
from experiments.records.checked import Device
from experiments.stages.folders import DataFolder

REQUEST_NAME = "request.json"
EVALUATION_NAME = "evaluation.json"


class EvaluationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, the data that it is evaluated on, and how it translates."""

    checkpoint: Path
    data: DataFolder
    decode: DecodeConfig
    device: Device
