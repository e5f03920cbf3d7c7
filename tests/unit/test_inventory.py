"""What lies in outputs: `experiments.status` says how far it is, `clean` what can go."""

import fcntl
import shutil
import zipfile
from pathlib import Path

import pytest
import synthetic_records as synthetic
from finished_stages import diverge, finish_data, finish_evaluation, finish_training, info
from suite_configs import compose_config

from experiments import clean, status
from experiments.records.measurement import write_measurement
from experiments.records.record import write_record
from experiments.records.storage import write_json
from experiments.stages.folders import Done, JobFolder, Measured, ModelFolder
from experiments.stages.graph import Job, job_of, measurements_of
from experiments.stages.status.inventory import Outputs, in_bytes, size_of

FOLDERS = ("data", "stages", "runs", "measurements", "report")
LOG = "2026-11-24 10:00:00 | INFO | train_inner | "
UPDATE = '{"num_updates": "275", "nll_loss": "5", "lr": "1", "wpb": "9", "wps": "9", "wall": "1"}\n'


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def job(outputs: Path) -> Job:
    """A job whose folder is there, and nothing else."""
    paths = [f"paths.{name}={outputs}/{name}" for name in FOLDERS]
    job = job_of(compose_config("experiment=quickstart", *paths))
    JobFolder(job.folder).write_links(job.config, {s.name: s.folder for s in job.stages})
    return job


def whole(path: Path, size: int = 100) -> Path:
    """What a checkpoint is to who looks from outside: a zip file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights", b"0" * size)
    return path


@pytest.fixture
def finished(job: Job) -> Job:
    """All stages are done; the mean of two checkpoints was evaluated; the record is written."""
    downloads = finish_data(job).path / "downloads"
    downloads.mkdir()
    (downloads / "corpus.tgz").write_bytes(b"1" * 3000)
    finish_training(job, checkpoint="checkpoints/checkpoint_average.pt")
    whole(ModelFolder(job.train.folder).average)
    whole(ModelFolder(job.train.folder).last, 2000)
    finish_evaluation(job)
    write_record(JobFolder(job.folder).record_path, synthetic.record())
    return job


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert status.main([*arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return [line.split(maxsplit=2) for line in captured.out.splitlines()]


def test_what_is_done(finished: Job, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--outputs", str(outputs)) == [
        ["job", f"quickstart/{finished.name}", "done"],
        ["prepare", finished.prepare.folder.name, "done"],
        ["train", finished.train.folder.name, "done"],
        ["evaluate", finished.evaluate.folder.name, "done"],
    ]


def test_what_is_left(job: Job, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [[_, _, state]] = shown(capsys, "--outputs", str(outputs))
    assert state == "prepare not begun; train not begun; evaluate not begun"
    finish_data(job)
    log = ModelFolder(job.train.folder).log("train")
    log.parent.mkdir(parents=True)
    log.write_text(LOG + UPDATE)
    [[_, _, state], _, [_, _, train]] = shown(capsys, "--outputs", str(outputs))
    assert state == "train unfinished, update 275; evaluate not begun"
    assert train == "unfinished, update 275"
    with (job.train.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        [[_, _, state], *_] = shown(capsys, "--outputs", str(outputs))
        assert state == "train running, update 275; evaluate not begun"
        # What runs is not removed, whatever is asked for.
        assert clean.main(["--outputs", str(outputs), "--unfinished", "--yes"]) == 0
        assert log.exists()
        assert "nothing to remove" in capsys.readouterr().out
    finish_training(job)
    [[_, _, state], *_] = shown(capsys, "--outputs", str(outputs))
    assert state == "evaluate not begun"


def test_what_takes_how_much(
    finished: Job, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["--outputs", str(outputs), "--disk"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [train] = [line for line in lines if " train " in line]
    assert train.startswith(f"{in_bytes(size_of(finished.train.folder)):>8}  train ")
    assert lines[-1] == f"{in_bytes(size_of(outputs)):>8}  all of {outputs}"
    assert [in_bytes(n) for n in (0, 999, 1500, 36_400_000)] == ["0 B", "999 B", "1.5 kB", "36 MB"]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_clean_says_what_it_would_remove_and_removes_it_when_asked_to(
    finished: Job, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(outputs)
    last = ModelFolder(finished.train.folder).last
    downloads = finished.prepare.folder / "downloads"
    assert clean.main(["--outputs", str(outputs)]) == 0
    said = capsys.readouterr().out
    assert f"{last}  (checkpoints/checkpoint_average.pt is the model)" in said
    assert f"{downloads}  (" in said
    assert "nothing was: give --yes" in said
    assert files(outputs) == before
    assert clean.main(["--outputs", str(outputs), "--yes"]) == 0
    assert before - files(outputs) == {last, downloads / "corpus.tgz"}
    assert "removed: " in capsys.readouterr().out
    assert clean.main(["--outputs", str(outputs), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert clean.main(["--outputs", str(outputs), "--yes", "--data"]) == 0
    assert not finished.prepare.folder.exists()
    assert ModelFolder(finished.train.folder).average.exists()


def test_nothing_is_removed_beside_a_model_that_is_not_whole(
    finished: Job, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelFolder(finished.train.folder)
    model.average.write_bytes(model.average.read_bytes()[:50])
    assert clean.main(["--outputs", str(outputs), "--yes"]) == 0
    assert model.last.exists()


def test_what_a_diverged_or_an_interrupted_training_left(
    job: Job, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = whole(ModelFolder(job.train.folder).last)
    assert clean.main(["--outputs", str(outputs), "--yes"]) == 0
    assert last.exists()  # it would go on from there
    assert clean.main(["--outputs", str(outputs), "--yes", "--unfinished"]) == 0
    assert not job.train.folder.exists()
    last = whole(ModelFolder(job.train.folder).last)
    diverge(job)
    assert clean.main(["--outputs", str(outputs), "--yes"]) == 0
    assert not last.exists()
    capsys.readouterr()
    [[_, _, state], *_] = shown(capsys, "--outputs", str(outputs))
    assert state == "train diverged, after update 0"


def test_a_measurement_is_done_when_its_stage_is_and_not_with_its_first_workload(
    finished: Job, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [(stage, _)] = measurements_of([finished])
    found = stage.folder / "measurement.json"
    write_measurement(found, synthetic.measurement([synthetic.record()]))
    assert shown(capsys, "--outputs", str(outputs))[-1][::2] == ["measure", "unfinished"]
    result = stage.folder / "result.json"
    measured = Done(info(stage), Measured(sha256=synthetic.sha256("all")))
    write_json(result, measured, Done[Measured])
    assert shown(capsys, "--outputs", str(outputs))[-1][::2] == ["measure", "done"]
    result.write_bytes(result.read_bytes()[:20])
    damaged = ["measure", "unfinished, result.json cannot be read"]
    assert shown(capsys, "--outputs", str(outputs))[-1][::2] == damaged
    assert clean.main(["--outputs", str(outputs), "--yes", "--unfinished"]) == 0
    assert not found.exists()


@pytest.mark.parametrize("command", [status.main, clean.main])
def test_where_there_is_nothing(
    command: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(command)
    assert command(["--outputs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none: no such folder (run an")
    assert command(["--no-such-option"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert Outputs(tmp_path).stages() == []
    shutil.rmtree(tmp_path)
