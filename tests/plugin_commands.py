"""Arguments of fairseq's commands for a tiny model of the plugin on a tiny corpus."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq_commands import Result, run

import gqa_fairseq

PLUGIN = Path(gqa_fairseq.__file__).parent
LINES = {"train": 120, "valid": 11, "test": 13}
UPDATES = 12
MODEL = [
    *("--arch", "gqa_transformer", "--num-kv-heads", "2"),
    *("--encoder-embed-dim", "32", "--encoder-attention-heads", "4", "--encoder-layers", "1"),
    *("--decoder-embed-dim", "32", "--decoder-attention-heads", "4", "--decoder-layers", "1"),
    *("--mha-ffn-embed-dim", "64", "--share-all-embeddings", "--dropout", "0.1"),
]
TRAIN = [
    *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
    *("--optimizer", "adam", "--lr", "0.003", "--lr-scheduler", "fixed"),
    *("--max-tokens", "120", "--num-workers", "0", "--cpu", "--seed", "3"),
    *("--no-progress-bar", "--log-format", "json", "--log-interval", "1"),
    "--no-epoch-checkpoints",
]
TASK = ["--user-dir", str(PLUGIN), "--task", "gqa_translation"]


def train(
    corpus: Path, folder: Path, updates: int, *options: object, model: list[str] = MODEL
) -> Result:
    return run("train", *train_arguments(corpus, updates, *options, model=model), folder=folder)


def train_arguments(
    corpus: Path, updates: int, *options: object, model: list[str] = MODEL
) -> list[object]:
    places = ["--save-dir", "checkpoints", "--max-update", updates]
    return [corpus, *TASK, *model, *TRAIN, *places, *options]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["model"]
