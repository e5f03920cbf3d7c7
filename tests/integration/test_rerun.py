"""A job that is trained, and run again by `experiments.rerun`: every number comes out alike."""

import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.records.record import RECORD_NAME, read_record

ROOT = Path(__file__).resolve().parents[2]
LINES = {"train": (0, 400), "dev": (400, 417), "test": (417, 440)}


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.long
def test_a_job_comes_out_as_its_record_says_and_other_numbers_are_found(tmp_path: Path) -> None:
    overrides = []
    for side, language in (("source", "en"), ("target", "de")):
        packed = ROOT / f"data_prep/corpora/sample/libreoffice-help.{language}.xz"
        lines = lzma.decompress(packed.read_bytes()).decode("utf-8").split("\n")
        for split, (start, end) in LINES.items():
            path = tmp_path / f"{split}.{language}"
            path.write_text("".join(f"{line}\n" for line in lines[start:end]), encoding="utf-8")
            overrides.append(f"data.{split}_{side}={path}")
    done = python(tmp_path, "experiments.run", "experiment=smoke", "hardware.threads=1", *overrides)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "outputs" / "runs").rglob(RECORD_NAME)
    record, raw = read_record(path), path.read_bytes()
    again = python(tmp_path, "experiments.rerun", str(path.parent))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "12 of 12 numbers are the same, and 3 of 3 files of translations" in again.stdout
    [new] = (tmp_path / "outputs" / "rerun").rglob(RECORD_NAME)
    assert read_record(new).evaluation == record.evaluation
    assert read_record(new).stage("train") != record.stage("train")  # it was trained anew
    assert path.read_bytes() == raw
    assert record.evaluation is not None
    nats = record.evaluation.dev_nll_nats_per_token
    rate = f'"learning_rate": {record.config["train"]["learning_rate"]}'.encode()
    assert rate in raw
    path.write_bytes(raw.replace(rate, b'"learning_rate": 0.01'))
    other = python(tmp_path, "experiments.rerun", str(path.parent))
    assert other.returncode == 3, other.stdout + other.stderr
    assert "its recipe, data or code's defaults have changed since" in other.stdout
    assert f"{nats:,.6g}" in other.stdout
