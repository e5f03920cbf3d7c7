"""The command around a card's parts: one that fails stops no other, none is done twice."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from experiments import gpu
from experiments.card import command
from experiments.card.command import Call
from experiments.card.models import Asked
from experiments.card.parts import PARTS, Part
from experiments.errors import ExperimentError
from experiments.records import provenance
from experiments.records.card import (
    read_summary,
)
from experiments.records.parts import Hardware

ROOT = Path(__file__).resolve().parents[2]


SCRIPTS = {
    "good": "import pathlib; pathlib.Path(r'{record}').write_text('7'); print('fine')",
    "bad": "import sys; print('it began'); print('error: it broke', file=sys.stderr); sys.exit(2)",
    # A process of its own, as a part has, that would go on.
    "slow": "import pathlib, subprocess; child = subprocess.Popen(['sleep', '60']); "
    "pathlib.Path(r'{folder}/pid').write_text(str(child.pid)); print('working', flush=True); "
    "child.wait()",
}


def has_ended(pid: int) -> bool:
    """Also where nobody has asked yet how it ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def fake(name: str, limit_s: float = 30.0) -> Part:
    return Part(name, f"is it {name}?", limit_s, name, lambda path: f"figure {path.read_text()}")


def call_of(asked: Asked, folder: Path) -> Call:
    def command_of(part: Part, asked: Asked) -> list[str]:
        (asked.folder).mkdir(parents=True, exist_ok=True)
        text = SCRIPTS[part.name].replace("{record}", str(asked.folder / part.record))
        return [sys.executable, "-c", text.replace("{folder}", str(folder))]

    return Call(asked, folder / "logs", folder / "bring", command_of)


def test_a_part_that_fails_or_takes_too_long_stops_no_other(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(command, "LEAST_S", 0.5)
    parts = [fake("bad"), fake("slow", 3.0), fake("good")]
    assert not call_of(asked, tmp_path).carry_out(parts, again=False)
    ends = {end.part: end for end in read_summary(asked.folder).parts}
    assert {name: end.outcome for name, end in ends.items()} == {
        "bad": "failed", "slow": "timed out", "good": "done",
    }  # fmt: skip
    assert ends["bad"].found == "it broke"
    assert ends["slow"].found == "working"
    assert ends["good"].found == "figure 7"
    said = capsys.readouterr().out.strip().split("\n")
    assert [line.split()[0] for line in said[-3:]] == ["bad", "slow", "good"]
    assert has_ended(int((tmp_path / "pid").read_text()))  # what it had started
    assert not list(asked.folder.glob(".*"))  # what they worked in
    with tarfile.open(tmp_path / "bring/gpu.tar.gz") as archive:
        names = archive.getnames()
    assert {Path(name).name for name in names} >= {"summary.json", "good", "bad.log", "slow.log"}
    assert (tmp_path / "bring/summary.txt").read_text().count("\n") == 3


def test_what_is_done_is_not_done_again(asked: Asked, tmp_path: Path, capsys) -> None:
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    first = read_summary(asked.folder).parts[0]
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    assert "good: done before by the same code on this card" in capsys.readouterr().out
    assert read_summary(asked.folder).parts == [first]
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=True)
    assert read_summary(asked.folder).parts[0].created_utc > first.created_utc


def test_what_is_done_has_its_record(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A summary alone is no answer; and a folder's summary tells of its own records alone."""
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    (asked.folder / "good").unlink()
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    assert (asked.folder / "good").read_text() == "7"
    assert "done before" not in capsys.readouterr().out
    elsewhere = replace(asked, folder=tmp_path / "elsewhere" / asked.folder.name)
    monkeypatch.setattr(command, "KEPT", {"cpu": asked.folder.parent})
    assert call_of(elsewhere, tmp_path).carry_out([fake("good")], again=False)
    said = capsys.readouterr().out
    assert f"good: done before by the same code on this card: {asked.folder / 'good'}" in said
    assert said.strip().split("\n")[-1].split()[:2] == ["good", "done"]
    assert read_summary(elsewhere.folder).parts == []


def test_an_earlier_record_stays_until_there_is_a_new_one(asked: Asked, tmp_path: Path) -> None:
    """And no figure is made of it: the part has found nothing."""
    asked.folder.mkdir(parents=True)
    for name in ("good", "bad"):
        (asked.folder / name).write_text("earlier")
    assert not call_of(asked, tmp_path).carry_out([fake("good"), fake("bad")], again=False)
    assert (asked.folder / "good").read_text() == "7"
    assert (asked.folder / "bad").read_text() == "earlier"
    assert [end.found for end in read_summary(asked.folder).parts] == ["figure 7", "it broke"]


def test_another_card_or_other_code_is_asked_again(asked: Asked) -> None:
    made_by = asked.provenance()
    end = command.PartEnd(
        **(asked.stamp() | {"device": "cuda"}), part="x", outcome="done", wall_s=1.0
    )

    def on(card: str, cpu: str = "any", digest: str = made_by.code.digest) -> Any:
        hardware = Hardware(cpu_model=cpu, cores_usable=1, memory_bytes=1, gpus=[card])
        code = msgspec.structs.replace(made_by.code, digest=digest)
        return msgspec.structs.replace(made_by, hardware=hardware, code=code)

    end = msgspec.structs.replace(end, provenance=on("H100", "one"))
    assert end.is_of(on("H100", "another"), "cuda")
    assert not end.is_of(on("H200"), "cuda")
    assert not end.is_of(on("H100", digest="0" * 64), "cuda")
    assert not end.is_of(on("H100"), "cpu")


def test_a_part_without_time_is_not_begun(tmp_path: Path) -> None:
    asked = Asked("cpu", tmp_path / "records", 5.0, 1)
    assert not call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    (end,) = read_summary(asked.folder).parts
    assert (end.outcome, end.wall_s) == ("no time", 0)


def test_a_machine_without_a_gpu_says_so_in_one_line(monkeypatch, capsys) -> None:
    none = Hardware(cpu_model="x", cores_usable=1, memory_bytes=1, gpus=[])
    monkeypatch.setattr(provenance, "hardware", lambda: none)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "error: no GPU is there: nvidia-smi names none (--device cpu is a dry run with tiny "
        "shapes)\n"
    )


def test_all_that_is_missing_is_named_at_once(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "MODULES", ("torch", "no_such_a", "json", "no_such_b"))
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "error: not installed: no_such_a, no_such_b (put their wheels into WHEELS)\n"
    )


@pytest.mark.parametrize("arguments", [["--parts", "correctness,nothing"], ["--seconds", "0"]])
def test_bad_arguments_end_with_one_line(arguments: list[str], capsys) -> None:
    assert gpu.main(["--device", "cpu", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_needs_wandb_while_tracking_is_off(tmp_path: Path) -> None:
    """Every module of the suite is imported, and a job planned, where wandb cannot be."""
    script = f"""
import importlib, pkgutil, sys
sys.modules["wandb"] = None
import experiments, gqa_fairseq, data_prep
for package in (experiments, gqa_fairseq, data_prep):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__") and not found.name.endswith("triton_kernels"):
            importlib.import_module(found.name)
from experiments.run import main
sys.argv = ["run", "experiment=quickstart", "dry_run=true", "paths.runs={tmp_path}"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "# train " in done.stdout


def test_the_parts_fit_their_calls() -> None:
    """The first two in 8 minutes; each has a module with `run`, and a line of its record."""
    assert sum(part.limit_s for part in PARTS[:2]) <= 480
    assert len({part.record for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert (ROOT / (part.module.replace(".", "/") + ".py")).is_file()


def test_make_installs_wheels_beside_python_and_passes_on_what_is_asked() -> None:
    done = subprocess.run(
        ["make", "-n", "gpu", "WHEELS=w", "PARTS=kernels", "OUT=/o", "SECONDS=540", "PYTHON=py"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "py -m pip install -q --no-index --no-deps" in done.stdout
    assert "--target outputs/gpu/site w/*.whl" in done.stdout
    run = done.stdout.replace("\\\n", " ").split("-m experiments.gpu")[1]
    expected = ["--device", "cuda", "--parts", "kernels", "--bring", "/o", "--seconds", "540"]
    assert shlex.split(run) == expected
    assert ".venv" not in done.stdout


def test_a_record_that_says_nothing_is_no_reason_to_stop(asked: Asked, tmp_path: Path) -> None:
    def broken(path: Path) -> str:
        raise ExperimentError(f"{path.name}: damaged")

    part = Part("good", "?", 30.0, "good", broken)
    assert not call_of(asked, tmp_path).carry_out([part, fake("bad")], again=False)
    end, other = read_summary(asked.folder).parts
    assert (end.outcome, end.found) == ("failed", "its record says nothing: good: damaged")
    assert other.part == "bad"
    assert json.loads((asked.folder / "summary.json").read_text())["schema_version"] == 1
