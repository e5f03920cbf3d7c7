"""How fast is an update at the paper's shape? The plugin's, stock fairseq's, and its products."""

from __future__ import annotations

import tempfile
from pathlib import Path

from experiments.card.decoding import record
from experiments.card.models import Asked
from experiments.intensity.updates import training_command
from experiments.measure.child import Measure, measure_in_process
from experiments.measure.request import TRAINERS, Request, RequestedContender, RequestedTraining

# 32,768 target tokens an update.
SENTENCES, TOKENS = 256, 128
DRY_SENTENCES, DRY_TOKENS = 2, 8


def request(asked: Asked, words: Path) -> Request:
    """Multi-head and multi-query; `words` is a folder for the dictionary."""
    tokens = DRY_TOKENS if asked.is_dry else TOKENS
    return Request(
        contenders=[
            RequestedContender(
                architecture=own,
                engine="gqa",
                training_command=training_command(own, words, asked.device, asked.training_dtype),
            )
            for own in asked.models((8, 1))
        ],
        training=RequestedTraining(
            batch=DRY_SENTENCES if asked.is_dry else SENTENCES,
            repeats=1 if asked.is_dry else 7,
            source_tokens=tokens,
            target_tokens=tokens,
            trainers=list(TRAINERS),
        ),
        memory=False,
        device=asked.device,
        dtype=asked.training_dtype,
        threads=asked.threads,
    )


def run(asked: Asked, measure: Measure = measure_in_process) -> None:
    """Measure and write the record."""
    with tempfile.TemporaryDirectory() as words:
        record(asked.folder / "training.json", request(asked, Path(words)), measure)
