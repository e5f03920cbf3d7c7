"""`experiments.status` of a sweep: done, running, left, and how long that will take."""

import fcntl
from datetime import UTC, datetime
from pathlib import Path

import pytest
import synthetic_records as synthetic
from finished_stages import (
    diverge,
    finish_conversion,
    finish_data,
    finish_evaluation,
    finish_training,
)
from suite_configs import compose_config

from experiments import status
from experiments.records.record import write_record
from experiments.records.storage import write_json
from experiments.stages import sweep
from experiments.stages.folders import JobFolder, ModelFolder
from experiments.stages.graph import Job, StageName
from experiments.stages.runner import TRIES_NAME, Tries, Try
from experiments.stages.status.expected import sweeps
from experiments.stages.status.inventory import Outputs

FOLDERS = ("data", "stages", "runs", "measurements", "report")
LOG = "2026-11-24 10:00:00 | INFO | train_inner | "
UPDATE = '{"num_updates": "%s", "nll_loss": "5", "lr": "1", "wpb": "9", "wps": "9", "wall": "1"}\n'


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def started(outputs: Path, experiment: str, *options: str) -> list[Job]:
    """The jobs of a sweep that has begun and done nothing; each has one of the options more."""
    paths = [f"paths.{name}={outputs}/{name}" for name in FOLDERS]
    wanted = [f"experiment={experiment}", *paths]
    return sweep.start([compose_config(*wanted, option) for option in options])


@pytest.fixture
def jobs(outputs: Path) -> list[Job]:
    return started(outputs, "quickstart", *(f"attention.num_kv_heads={n}" for n in (8, 2, 1)))


def line_of(outputs: Path) -> str:
    (found,) = sweeps(Outputs(outputs).jobs())
    return found.line


def begin(job: Job, wall_s: float, name: StageName = "train", update: int = 500) -> None:
    """A training whose log comes to that update: half of a quickstart's 1,000."""
    stage = job.stage(name)
    assert stage is not None
    log = ModelFolder(stage.folder).log(name)
    log.parent.mkdir(parents=True)
    log.write_text(LOG + UPDATE % update)
    started = datetime(2026, 11, 1, tzinfo=UTC)
    write_json(stage.folder / TRIES_NAME, Tries(tries=[Try(started_utc=started, wall_s=wall_s)]))


def finish(job: Job) -> None:
    finish_training(job)
    finish_evaluation(job)
    write_record(JobFolder(job.folder).record_path, synthetic.record())


def test_all_jobs_of_a_sweep_are_there_before_the_first_works(
    jobs: list[Job], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["--outputs", str(outputs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == sorted(f"quickstart/{j.name}" for j in jobs)
    assert lines[3:] == [
        "sweep quickstart: 3 jobs: 3 left; how long it takes is known when the first stage is done"
    ]


def test_a_training_tells_from_its_own_updates_how_long_it_takes(
    jobs: list[Job], outputs: Path
) -> None:
    begin(jobs[0], wall_s=90.0)
    with (jobs[0].train.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert line_of(outputs) == (
            "sweep quickstart: 3 jobs: 1 running, 2 left; about 90 s of work, one job at a time, "
            "and 3 × evaluate, 2 × train"
        )


def test_what_is_left_takes_as_long_as_what_is_done_took(jobs: list[Job], outputs: Path) -> None:
    """7 s a stage: half a training and an evaluation, and another job's two stages."""
    finish_data(jobs[0])
    finish(jobs[0])
    begin(jobs[1], wall_s=1000.0)
    assert line_of(outputs) == (
        "sweep quickstart: 3 jobs: 1 done, 2 left; about 24 s of work, one job at a time"
    )
    finish(jobs[1])
    finish(jobs[2])
    assert line_of(outputs) == "sweep quickstart: 3 jobs: 3 done"
    JobFolder(jobs[2].folder).record_path.unlink()
    assert line_of(outputs) == "sweep quickstart: 3 jobs: 2 done, 1 left"


def test_an_uptraining_counts_from_its_parents_last_update(outputs: Path) -> None:
    """40 of the 100 updates that follow the parent's 1,000 took 40 s: 60 s are left."""
    jobs = started(outputs, "uptrain", "uptrain.alpha=0.05", "uptrain.alpha=0.1")
    finish_data(jobs[0])
    finish_training(jobs[0])
    finish_conversion(jobs[0])
    begin(jobs[0], 40.0, "uptrain", update=1040)
    assert line_of(outputs) == (
        "sweep uptrain: 2 jobs: 2 left; about 60 s of work, one job at a time, and 2 × evaluate"
    )


def test_a_job_that_diverged_is_not_done(
    jobs: list[Job], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before its record is written and after it."""
    finish_data(jobs[0])
    finish(jobs[0])
    finish(jobs[1])
    diverge(jobs[2])
    expected = "sweep quickstart: 3 jobs: 2 done, 1 diverged"
    assert line_of(outputs) == expected
    diverged = synthetic.record(1, diverged_after=100)
    write_record(JobFolder(jobs[2].folder).record_path, diverged)
    assert line_of(outputs) == expected
    assert status.main(["--outputs", str(outputs)]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if f"/{jobs[2].name}" in each]
    assert line.endswith("  train diverged, after update 100")


def test_damaged_files_leave_the_others_their_lines(
    jobs: list[Job], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command makes a job again whose record is refused: that one is left."""
    finish_data(jobs[0])
    for job in jobs:
        finish(job)
    damaged = [
        JobFolder(jobs[0].folder).record_path,
        jobs[1].train.folder / "result.json",
        jobs[1].evaluate.folder / "result.json",
        JobFolder(jobs[2].folder).links_path,
        JobFolder(jobs[2].folder).record_path,
    ]
    JobFolder(jobs[1].folder).record_path.unlink()
    for path in damaged:
        path.write_bytes(path.read_bytes()[:20])
    assert status.main(["--outputs", str(outputs)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    states = {line.split()[1]: line.split(maxsplit=2)[2] for line in lines if line[:3] == "job"}
    assert states == {
        f"quickstart/{jobs[0].name}": "record.json cannot be read",
        f"quickstart/{jobs[1].name}": "train unfinished, result.json cannot be read; "
        "evaluate unfinished, result.json cannot be read",
        f"quickstart/{jobs[2].name}": "record.json cannot be read",
    }
    assert last.startswith("sweep quickstart: 3 jobs: 3 left; about ")


def test_one_job_is_no_sweep(jobs: list[Job]) -> None:
    assert sweeps([jobs[0].folder]) == []


def test_a_record_that_is_there_is_left_alone_and_its_damaged_links_are_mended(
    jobs: list[Job], outputs: Path
) -> None:
    finish(jobs[0])
    copied, damaged = (JobFolder(job.folder) for job in jobs[:2])
    copied.links_path.unlink()
    copied.config_path.unlink()
    finish(jobs[1])
    damaged.config_path.write_text("{", encoding="utf-8")
    sweep.start([job.config for job in jobs])
    assert not copied.links_path.exists()
    assert damaged.config() == jobs[1].config
    assert JobFolder(jobs[2].folder).links_path.exists()
