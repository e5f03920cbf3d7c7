"""One command of each family that stands in the documents really runs, made small.

`make test-long` does it. tests/unit/test_documents.py dry-runs all commands in seconds.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT, Command, documented_commands
from kept_results import read_records

from experiments.stages.folders import JobFolder

pytestmark = [pytest.mark.slow, pytest.mark.long]

# How the documents' commands are made small, in the order in which they run: the start of a command
# (the first one of the documents that has it is taken), words that are replaced in it, and words
# that are added. JOB, DATA and the model's folder are those of the first command.
SMALL_TRAINING = [
    "train.max_updates=12", "train.tokens_per_update=512", "train.warmup_updates=4",
    "train.log_every_updates=2", "train.validate_every_updates=6", "model=tiny",
    "measure.batch=2", "measure.shapes=[[16,16]]", "measure.training_batch=2", "measure.repeats=3",
    "data.vocab_size=500", "data.max_pieces=60", "decode.max_len_b=5", "hardware.threads=1",
]  # fmt: skip
FAMILIES: list[tuple[str, dict[str, str], list[str]]] = [
    ("python -m experiments.run -m", {"1,2,4,8": "1,4", "1,2,3": "1"}, SMALL_TRAINING),
    ("python -m experiments.run experiment=quickstart", {}, SMALL_TRAINING),
    ("python -m experiments.translate outputs/runs/quickstart/JOB", {}, []),
    ("python -m experiments.translate outputs/runs/quickstart/JOB text.en", {}, []),
    ("python -m experiments.translate MODEL.pt", {"outputs/data/mine": "outputs/data/DATA"}, []),
    ("fairseq-generate outputs/data/DATA/bin", {}, ["--scoring", "sacrebleu"]),
    ("fairseq-interactive outputs/stages/train/MODEL", {}, []),
    ("python -m experiments.report", {}, []),
    ("python -m experiments.evaluate", {}, []),
    ("python -m experiments.status", {}, []),
    ("python -m experiments.clean", {}, []),
    ("python -m experiments.tracking --records", {}, []),
    ("python -m experiments.benchmark --job", {}, ["--repeats", "1"]),
    (
        "python -m experiments.benchmark --shapes",
        {"8x128x128": "2x8x8"},
        ["--size", "small", "--repeats", "1"],
    ),
    ("python -m experiments.benchmark --show", {}, []),
    ("python -m gqa_fairseq.parity", {}, []),
    ("python -m gqa_fairseq.checkpoints.convert checkpoint_best.pt", {}, []),
    ("python -m data_prep sample_en_de", {}, ["--vocab-size", "500"]),
    (
        "fairseq-train DATA --user-dir gqa_fairseq --task gqa_translation --arch gqa_transformer",
        {"…": "--cpu"},
        [
            "--optimizer", "adam", "--lr", "0.001", "--max-tokens", "500", "--max-update", "2",
            "--encoder-layers", "1", "--decoder-layers", "1", "--no-epoch-checkpoints",
            "--share-all-embeddings", "--encoder-embed-dim", "32", "--decoder-embed-dim", "32",
            "--encoder-attention-heads", "4", "--decoder-attention-heads", "4",
            "--mha-ffn-embed-dim", "64", "--save-dir", "own",
        ],
    ),
]  # fmt: skip


def started_by(start: str) -> Command:
    """The first documented command that begins so."""
    for command in documented_commands():
        if shlex.join(command.words).removeprefix(".venv/bin/").startswith(start):
            return command
    raise AssertionError(f"no document has {start} any more")


def run(folder: Path, words: list[str], text: str) -> str:
    """Run a command as one would in a checkout with its environment; returns what it printed."""
    binaries = Path(sys.executable).parent
    words = [word.removeprefix(".venv/bin/") for word in words]
    words[0] = str(binaries / words[0])
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def places(folder: Path) -> dict[str, str]:
    """What the placeholders of the documents stand for, once the first command has run."""
    jobs = {r.variant: r.name for r in read_records(folder / "outputs/runs")}
    [job], [mha] = ((folder / "outputs/runs").rglob(jobs[variant]) for variant in ("mqa", "mha"))
    model, data = JobFolder(job).model().path, JobFolder(job).data().path
    shutil.copyfile(JobFolder(job).checkpoint(), folder / "MODEL.pt")
    shutil.copyfile(JobFolder(mha).checkpoint(), folder / "checkpoint_best.pt")
    (folder / "text.en").write_text("Open the file.\n\nClose it.\n")
    return {"JOB": job.name, "MODEL": model.name, "DATA": data.name}


def test_one_command_of_each_family_runs(tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(ROOT / "results")
    found: dict[str, str] = {}
    printed = {}
    for start, changes, more in FAMILIES:
        words = started_by(start).words
        for old, new in changes.items():
            assert any(old in word for word in words), f"{start}: no {old} in it"
            words = [word.replace(old, new) for word in words]
        for name, real in found.items():
            words = [word.replace(f"/{name}", f"/{real}") for word in words]
            words = [f"outputs/data/{real}/bin" if word == name == "DATA" else word
                     for word in words]  # fmt: skip
        # The documents' commands are run where the plugin lies; a second folder is another plugin.
        words = [str(ROOT / word) if word == "gqa_fairseq" else word for word in words]
        if words[-1].endswith("*.json"):
            words[-1:] = [str(path) for path in sorted(tmp_path.glob(words[-1]))]
        printed[start] = run(tmp_path, [*words, *more], "Open the file.\n")
        found = found or places(tmp_path)
    lines = printed["python -m experiments.translate outputs/runs/quickstart/JOB text.en"]
    assert lines.count("\n") == 3
    assert "the translations are the same" in printed["python -m experiments.evaluate"]
    assert "BLEU" in printed["fairseq-generate outputs/data/DATA/bin"]
