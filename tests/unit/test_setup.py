"""`make setup` and what make passes on: contents decide, and nothing goes without a word."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"TORCH": "default", "TORCH_VERSION": "1.0", "TRITON_VERSION": "2.0"}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", *(f"{name}={value}" for name, value in VERSIONS.items()), *arguments],
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and the pins, beside an environment that seems to be made of them."""
    for name in ("Makefile", "requirements", "conf"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, tmp_path / name)
    pins = "cat requirements/py311.txt requirements/py312.txt | cksum"
    found = subprocess.run(
        pins, shell=True, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stamp = f"TORCH=default torch==1.0 triton==2.0 pins {found.stdout}"
    (tmp_path / ".venv/.installed").write_text(stamp)
    return tmp_path


def test_a_fresher_time_stamp_changes_nothing(checkout: Path) -> None:
    for path in (checkout / "requirements").iterdir():
        os.utime(path, (2_000_000_000, 2_000_000_000))
    done = make(checkout, "setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (checkout / ".venv/.installed").exists()


def test_other_pins_make_it_anew_and_say_so_and_not_in_a_dry_run(checkout: Path) -> None:
    with (checkout / "requirements/py311.txt").open("a") as stream:
        stream.write("# another\n")
    dry = make(checkout, "setup", "DRY_RUN=1")
    assert dry.returncode == 0
    assert dry.stderr.startswith("note: .venv was made of other pins")
    assert make(checkout, "-n", "setup").returncode == 0
    assert (checkout / ".venv/.installed").exists()
    # An interpreter that cannot be used: found before anything is removed.
    anew = make(checkout, "setup", "PYTHON=/bin/false")
    assert anew.returncode != 0
    assert ".venv was made of other pins than requirements/ has" in anew.stderr
    assert "error: no Python 3.11 or 3.12 found" in anew.stderr
    assert (checkout / ".venv/.installed").exists()


def test_an_environment_that_make_did_not_make_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv/.installed").unlink()
    done = make(checkout, "setup")
    assert done.returncode != 0
    assert done.stderr.startswith("error: .venv is there, and make did not make it")
    assert (checkout / ".venv/bin").exists()


def test_what_make_passes_on_is_text_for_the_shell_and_for_hydra(checkout: Path) -> None:
    """A stand-in for Python prints its arguments; nothing in them is run or expanded."""
    python = checkout / ".venv/bin/python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    odd = "/a `touch x`'b\"c,~ü$(shell touch y)$HOME"
    done = make(checkout, "wmt14-data", f"MIRROR={odd}", "ARGS=\"seed=2\" 'x=a b'")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    quoted = odd.replace('"', '\\"')
    assert f'data.mirror="{quoted}"' in words
    assert words[-2:] == ["seed=2", "x=a b"]
    sweep = make(checkout, "wmt14-sweep", "SEEDS=`touch x`", "KV_HEADS=1;touch x", "HARDWARE=cpu")
    assert sweep.returncode == 0, sweep.stderr
    assert "seed=`touch x`" in sweep.stdout.splitlines()
    assert "attention.num_kv_heads=1;touch x" in sweep.stdout.splitlines()
    refused = make(checkout, "wmt14-mqa", "HARDWARE=`touch x`")
    assert refused.stderr.startswith("error: HARDWARE=`touch x` is unknown")
    assert not {"x", "y"} & {path.name for path in checkout.iterdir()}
