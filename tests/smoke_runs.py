"""Commands of the smoke experiment on six files of real text, and what they leave."""

import lzma
import os
import subprocess
import sys
from pathlib import Path

from experiments.records.parts import Training

ROOT = Path(__file__).resolve().parents[1]
LINES = {"train": (0, 400), "dev": (400, 417), "test": (417, 440)}
FOLDERS = ("data", "stages", "runs", "measurements", "report")


def write_corpus(folder: Path) -> list[str]:
    """Overrides that name six files of real text in `folder`."""
    overrides = []
    for side, language in (("source", "en"), ("target", "de")):
        packed = ROOT / f"data_prep/corpora/sample/libreoffice-help.{language}.xz"
        lines = lzma.decompress(packed.read_bytes()).decode("utf-8").split("\n")
        for split, (start, end) in LINES.items():
            path = folder / f"{split}.{language}"
            text = "".join(f"{line}\n" for line in lines[start:end])
            path.write_text(text, encoding="utf-8", newline="\n")
            overrides.append(f"data.{split}_{side}={path}")
    return overrides


def command(folder: Path, *overrides: str) -> list[str]:
    paths = [f"paths.{name}={folder}/{name}" for name in FOLDERS]
    start = [sys.executable, "-m", "experiments.run"]
    return [*start, "experiment=smoke", "hardware.threads=1", *paths, *overrides]


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(folder, *overrides), "-m"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder)},  # no account of wandb's
        check=False,
    )


def losses(training: Training | None) -> list[tuple[float | None, float | None]]:
    assert training is not None
    return [(p.train_nll_nats_per_token, p.dev_nll_nats_per_token) for p in training.curve]
