"""A training command for a model with random weights, of made-up words: its updates are timed."""

from __future__ import annotations

from pathlib import Path

from experiments.records.checked import Device
from experiments.stages.training.command import PLUGIN, options_of, with_options
from gqa_fairseq.architecture import Architecture

SPECIAL_SYMBOLS = 4  # of fairseq's dictionary, which its file does not list


def training_command(own: Architecture, folder: Path, device: Device, dtype: str) -> list[str]:
    """fairseq-train with this suite's loss and optimizer; writes its dictionaries into `folder`.

    Nothing that sets quality is chosen here: the time of an update does not depend on it.
    """
    words = "".join(f"piece{index} 1\n" for index in range(own.vocab_size - SPECIAL_SYMBOLS))
    for language in ("en", "de"):
        (folder / f"dict.{language}.txt").write_text(words, encoding="utf-8")
    flags = ["--cpu"] if device == "cpu" else []
    flags += {"float16": ["--fp16"], "bfloat16": ["--bf16"]}.get(dtype, [])
    options, switches = options_of(own)
    options = {
        "--user-dir": PLUGIN,
        "--task": "gqa_translation",
        "--source-lang": "en",
        "--target-lang": "de",
        "--arch": "gqa_transformer",
        **options,
        "--dropout": 0.1,
        "--criterion": "gqa_label_smoothed_cross_entropy",
        "--label-smoothing": 0.1,
        "--optimizer": "gqa_adam",
        "--lr": 0.001,
    }
    return [*with_options(["fairseq-train", str(folder)], options), *switches, *flags]
