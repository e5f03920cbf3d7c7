"""`make gpu` as a dry run: every part in its process, with tiny shapes on the CPU."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from experiments.card.parts import PARTS
from tests.kernel_runs import needs_triton

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@needs_triton
def test_every_part_is_done(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "make", "-s", "gpu", "DEVICE=cpu", f"PYTHON={sys.executable}",
            f"OUT={tmp_path / 'brought'}", f"ARGS=--out {tmp_path / 'records'}",
        ],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.strip().split("\n")[-len(PARTS) :]
    assert [line.split()[:2] for line in lines] == [[part.name, "done"] for part in PARTS]
    assert "says nothing" not in done.stdout
    (records,) = (tmp_path / "records").iterdir()
    assert {part.record for part in PARTS} <= {path.name for path in records.iterdir()}
    # What comes back: few files, none in a folder.
    brought = sorted(path.name for path in (tmp_path / "brought").iterdir())
    assert brought == ["gpu.tar.gz", "summary.txt"]
    with tarfile.open(tmp_path / "brought/gpu.tar.gz") as archive:
        names = [Path(name).name for name in archive.getnames()]
    assert {f"{part.name}.log" for part in PARTS} <= set(names)
    summary = (tmp_path / "brought/summary.txt").read_text(encoding="utf-8")
    assert summary.strip() == "\n".join(lines)
