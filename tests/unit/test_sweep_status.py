"""`experiments.status` of a sweep: done, running, left, and how long that will take."""

import fcntl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from finished_stages import finish_data, finish_evaluation, finish_training
from suite_configs import compose_config

from experiments import status
from experiments.records.storage import write_json
from experiments.stages import sweep
from experiments.stages.folders import JobFolder, ModelFolder
from experiments.stages.graph import Job
from experiments.stages.runner import TRIES_NAME, Tries, Try
from experiments.stages.status.expected import sweeps
from experiments.stages.status.inventory import Outputs

FOLDERS = ("data", "stages", "runs", "measurements", "report")
LOG = "2026-11-24 10:00:00 | INFO | train_inner | "
UPDATE = '{"num_updates": "275", "nll_loss": "5", "lr": "1", "wpb": "9", "wps": "9", "wall": "1"}\n'


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def jobs(outputs: Path) -> list[Job]:
    """The jobs of a sweep that has begun and done nothing."""
    paths = [f"paths.{name}={outputs}/{name}" for name in FOLDERS]
    configs = [
        compose_config("experiment=quickstart", f"attention.num_kv_heads={heads}", *paths)
        for heads in (8, 2, 1)
    ]
    return sweep.start(configs)


def line_of(outputs: Path) -> str:
    (found,) = sweeps(Outputs(outputs).jobs())
    return found.line


def begin(job: Job, wall_s: float) -> None:
    """A training of 550 updates that has done 275 of them."""
    log = ModelFolder(job.train.folder).log("train")
    log.parent.mkdir(parents=True)
    log.write_text(LOG + UPDATE)
    started = datetime(2026, 11, 1, tzinfo=UTC)
    write_json(
        job.train.folder / TRIES_NAME, Tries(tries=[Try(started_utc=started, wall_s=wall_s)])
    )


def finish(job: Job) -> None:
    finish_training(job)
    finish_evaluation(job)
    JobFolder(job.folder).record_path.write_text("{}")


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


def test_one_job_is_no_sweep(jobs: list[Job]) -> None:
    assert sweeps([jobs[0].folder]) == []


def test_a_record_that_is_there_is_left_alone(jobs: list[Job], outputs: Path) -> None:
    finish(jobs[0])
    JobFolder(jobs[0].folder).links_path.unlink()
    sweep.start([job.config for job in jobs])
    assert not JobFolder(jobs[0].folder).links_path.exists()
    assert JobFolder(jobs[1].folder).links_path.exists()
