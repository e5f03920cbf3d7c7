"""A job's run in wandb while it trains: killed, gone on with, and never in a job's way."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from data_prep_corpus import write_local_files
from finished_stages import finish_data, finish_evaluation, finish_training
from suite_configs import ROOT, changed, compose_config
from wandb_files import all_runs

from experiments.config import SuiteConfig
from experiments.records.parts import TrainPoint
from experiments.records.record import Record, write_record
from experiments.records.storage import write_json
from experiments.stages import live
from experiments.stages.folders import JobFolder, ModelFolder, Outcome
from experiments.stages.graph import Job, job_of
from experiments.stages.job import run_job
from experiments.stages.live import Tracker, log_sweep
from experiments.tracking.keys import run_config, summary
from experiments.tracking.runs import RunStart, open_run, run_id

STARTED = datetime(2026, 11, 2, 3, 4, 5, tzinfo=UTC)
PATIENCE_S = 60.0
UPDATES = 600


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    folder = tmp_path_factory.mktemp("prepared")
    spec = write_local_files(folder / "text")
    sides = [f"{split}_{s}" for split in ("train", "dev", "test") for s in ("source", "target")]
    config = compose_config(
        "experiment=smoke",
        "tracking=offline",
        f"train.max_updates={UPDATES}",
        "train.log_every_updates=50",
        "train.validate_every_updates=100",
        *(f"data.{side}={getattr(spec, side)}" for side in sides),
        f"paths.data={folder}/data",
    )
    finish_data(job_of(config))
    return config


@pytest.fixture
def job(prepared: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    folders = ("stages", "runs", "measurements", "report")
    return job_of(changed(prepared, {f"paths.{name}": f"{tmp_path}/{name}" for name in folders}))


@pytest.fixture
def record(job: Job) -> Record:
    """What the job will find, in its place; its curve is what `log_of` writes."""
    made = synthetic.record(updates=UPDATES)
    return msgspec.structs.replace(
        made, job=msgspec.structs.replace(made.job, id=job.id, started_utc=STARTED)
    )


def log_of(points: Sequence[TrainPoint]) -> str:
    """What fairseq logs of these points."""
    lines = []
    for point in points:
        assert point.train_nll_nats_per_token is not None
        trained = {
            "num_updates": point.update,
            "nll_loss": point.train_nll_nats_per_token / math.log(2),
            "lr": point.learning_rate,
            "wpb": 4000,
            "wps": 10_000,
            "wall": point.wall_s,
            "gnorm": 1.5,
        }
        lines.append(f"2026-11-24 10:00:00 | INFO | train_inner | {json.dumps(trained)}\n")
        if point.dev_nll_nats_per_token is not None:
            loss = point.dev_nll_nats_per_token / math.log(2)
            valid = {"valid_num_updates": point.update, "valid_nll_loss": loss}
            lines.append(f"2026-11-24 10:00:00 | INFO | valid | {json.dumps(valid)}\n")
    return "".join(lines)


def write_log(job: Job, text: str) -> None:
    log = ModelFolder(job.train.folder).log("train")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(text)


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


KILLED = """
import sys, time
from datetime import datetime
from pathlib import Path
from experiments.config import SuiteConfig
from experiments.records.storage import read_json
from experiments.stages.graph import job_of
from experiments.stages.live import Tracker
with Tracker(job_of(read_json(Path(sys.argv[1]), SuiteConfig))) as tracker:
    tracker.follow(datetime.fromisoformat(sys.argv[2]))
    print("follows", flush=True)
    time.sleep(600)
"""


def test_a_killed_job_goes_on_with_its_run(job: Job, record: Record, tmp_path: Path) -> None:
    """The curve is there as far as it came; after the kill it is whole, no update twice."""
    points = record.result.curve
    config = tmp_path / "config.json"
    write_json(config, job.config)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(config), STARTED.isoformat()],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env=os.environ | {"WANDB_RUN_ID": "somebody-elses", "WANDB_RUN_GROUP": "theirs"},
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "follows\n"
        write_log(job, log_of(points[:7]))
        wait_for(lambda: [run["steps"] for run in all_runs(tmp_path)] != [])
        os.kill(killed.pid, signal.SIGKILL)
    wait_for(lambda: all_runs(tmp_path)[0]["exit"] is not None)
    [first] = all_runs(tmp_path)
    assert first["exit"] == 1
    assert first["steps"] == [point.update for point in points[:7]]
    assert first["config"]["variant"] == "mha"
    assert first["history"][100]["train/grad_norm"] == 1.5
    assert first["history"][100]["dev/nll_nats_per_token"] == pytest.approx(
        points[1].dev_nll_nats_per_token
    )

    write_record(JobFolder(job.folder).record_path, record)
    with Tracker(job) as tracker:
        tracker.follow(STARTED)
        write_log(job, log_of(points[4:]))  # from the last checkpoint on
        tracker.finish(STARTED)
    second = all_runs(tmp_path)[-1]
    assert second["exit"] == 0
    assert first["id"] == second["id"] == run_id("smoke", job.id, STARTED)
    assert first["name"] == second["name"] == job.name
    assert first["group"] == second["group"] == "smoke"
    assert second["steps"] == [point.update for point in points]
    expected = summary(record)
    assert {key: second["summary"][key] for key in expected} == pytest.approx(expected)
    assert second["config"]["stages"] == run_config(record)["stages"]
    assert ("record", record.name) in second["artifacts"]


def test_the_newest_point_waits_for_its_validation(job: Job, record: Record) -> None:
    """A row of wandb's history cannot be added to."""
    points = record.result.curve
    before_validation = log_of(points[:2]).rsplit("\n", 2)[0] + "\n"
    write_log(job, before_validation)
    ours, theirs = os.pipe()
    os.write(theirs, b"the record\n")
    seen: list[list[int]] = []

    class Run:
        def log_curve(self, points_now: Sequence[TrainPoint]) -> None:
            seen.append([point.update for point in points_now])
            if len(seen) == 1:
                write_log(job, log_of(points[1:3]))
            elif len(seen) == 2:
                os.close(theirs)

    # Updates beyond those of the job's own model are another's.
    asked = live.Followed(
        start=a_start("offline", job),
        log=str(ModelFolder(job.train.folder).log("train")),
        after=0,
        updates=100,
    )
    said = live._until_end(Run(), asked, ours)  # type: ignore[arg-type]
    os.close(ours)
    assert said == "the record"
    assert seen == [[50], [50, 100], [50, 100]]


@pytest.mark.parametrize(("alpha", "updates", "log"), [(0.25, 150, "uptrain.log"), (0, 0, None)])
def test_an_uptrained_job_is_followed_from_its_conversion_on(
    job: Job, alpha: float, updates: int, log: str | None
) -> None:
    """As far as its own point: the run of a longer one may go on."""
    values = {"method": "mean", "points": [0.25, 0.5], "alpha": alpha}
    heads = {"attention.num_kv_heads": 1, "attention.d_ff": "kept"}
    uptrained = job_of(changed(job.config, heads | {f"uptrain.{k}": v for k, v in values.items()}))
    asked = Tracker(uptrained)._followed("offline", STARTED)
    assert (asked.after, asked.updates) == (UPDATES, updates)
    assert (asked.log and Path(asked.log).name) == log
    assert asked.start.name == uptrained.name
    assert asked.start.name.startswith(f"{asked.start.config['variant']}-seed1-")
    assert asked.start.config["variant"] == f"mqa-ff64-mean-{alpha:g}"


def a_start(mode: Any, job: Job) -> RunStart:
    return RunStart(
        id="id", name="name", group="group", config={}, mode=mode,
        directory=str(Path(job.config.paths.runs).parent),
    )  # fmt: skip


class OnlineRun:
    """A run that wandb's server knows, with 300 updates."""

    starting_step = 301

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.logged: list[int] = []

    def log(self, values: dict[str, float], step: int, commit: bool) -> None:
        self.logged.append(step)

    def __enter__(self) -> "OnlineRun":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_online_goes_on_after_the_last_update_that_the_server_has(
    job: Job, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    known = OnlineRun()

    def init(**arguments: Any) -> OnlineRun:
        asked.append(arguments)
        return known

    monkeypatch.setattr("wandb.init", init)
    for mode in ("online", "offline"):
        with open_run(a_start(mode, job)) as run:
            run.log_curve(record.result.curve)
            run.log_curve(record.result.curve)
        assert known.logged == [350, 400, 450, 500, 550, 600]
        known.logged.clear()
    assert [(each["id"], each["resume"]) for each in asked] == [("id", "allow"), ("id", None)]


def fake_wandb(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wandb for child processes, in the place of the real one."""
    folder.mkdir()
    (folder / "wandb.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")


@pytest.fixture
def finished(job: Job) -> Job:
    finish_training(job)
    finish_evaluation(job)
    return job


def test_a_broken_wandb_costs_a_line(
    finished: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "def teardown(): raise OSError('no space left')\n"
    fake_wandb(tmp_path / "fake", code, monkeypatch)
    assert run_job(finished) == Outcome(job=finished.name, status="done")
    said = [line for line in capfd.readouterr().err.split("\n") if "wandb: " in line]
    assert said == [f"{finished.name}: wandb: no space left ({live.LATER})"]
    log_sweep([finished])
    assert capfd.readouterr().err == f"wandb: no space left ({live.LATER})\n"


def test_nobody_waits_for_wandb_long(
    finished: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_wandb(tmp_path / "fake", "import time; time.sleep(600)\n", monkeypatch)
    monkeypatch.setattr(live, "JOB_WAIT_S", 0.2)
    assert run_job(finished).status == "done"
    said = capfd.readouterr().err
    assert f"{finished.name}: wandb: not done after 0.2 s ({live.LATER})\n" in said
    log_sweep([finished], wait_s=0.2)
    assert capfd.readouterr().err == f"wandb: not done after 0.2 s ({live.LATER})\n"


def test_a_killed_process_is_told_of(
    job: Job,
    record: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    fake_wandb(tmp_path / "fake", code, monkeypatch)
    with Tracker(job) as tracker:
        tracker.finish(STARTED)
    said = capfd.readouterr().err
    assert said == f"{job.name}: wandb: its process ended with -9 ({live.LATER})\n"


def test_without_tracking_there_is_no_process(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(live, "subprocess", SimpleNamespace(Popen=refused, run=refused))
    silent = job_of(changed(job.config, {"tracking.mode": "none"}))
    with Tracker(silent) as tracker:
        tracker.follow(STARTED)
        tracker.finish(STARTED)
    log_sweep([silent])
