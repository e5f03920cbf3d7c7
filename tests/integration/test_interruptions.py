"""Trainings that are killed, diverge or share machines, and data that cannot be prepared."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from kept_results import read_records
from smoke_runs import ROOT, command, losses, run, write_corpus
from wandb_files import all_runs

from experiments.config import SuiteConfig
from experiments.records.record import Diverged
from experiments.records.storage import write_json
from experiments.stages.corpus import prepare_data
from experiments.stages.folders import ModelFolder, Outcome, Trained, TrainResult
from experiments.stages.graph import Job, job_of
from experiments.stages.runner import Attempt, run_stage
from experiments.stages.sweep import resolve
from experiments.stages.training.train import train, train_along
from experiments.tracking.keys import summary
from experiments.tracking.runs import run_id
from gqa_fairseq.checkpoints.allowlist import allow_fairseq_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name six files of real text."""
    return write_corpus(tmp_path_factory.mktemp("text"))


def test_prepare_puts_the_data_where_jobs_look(corpus: list[str], tmp_path: Path) -> None:
    asked = [f"paths.data={tmp_path}", "experiment=smoke", *corpus]
    start = [sys.executable, "-m", "experiments.prepare"]
    done = subprocess.run([*start, *asked], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = job_of(resolve(compose("suite", overrides=asked)))
    assert (job.prepare.folder / "manifest.json").exists()
    wrong = [*start, *asked, "data.vocab_size=0"]
    refused = subprocess.run(wrong, capture_output=True, text=True, cwd=ROOT, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: config: data.vocab_size: ")
    assert refused.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def config(corpus: list[str], prepared: Path, tmp_path: Path) -> SuiteConfig:
    lengths = ["train.max_updates=60", "train.validate_every_updates=10"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["experiment=smoke", "attention=gqa2", "train.average_checkpoints=3", *lengths]
        paths = [f"paths.data={prepared}", f"paths.stages={tmp_path}/whole"]
        return resolve(compose("suite", overrides=[*overrides, *corpus, *paths]))


def with_stages(config: SuiteConfig, folder: Path) -> Job:
    paths = msgspec.structs.replace(config.paths, stages=str(folder))
    return job_of(msgspec.structs.replace(config, paths=paths))


def trained(job: Job) -> Trained:
    """The job's model, whose training does what is left."""
    data = prepare_data(job.config, job.prepare)

    def work(attempt: Attempt) -> TrainResult:
        return train(attempt, job.config, data)

    result = run_stage(job.train, TrainResult, work, threads=1).result
    assert isinstance(result, Trained)
    return result


@pytest.mark.long
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    config: SuiteConfig, tmp_path: Path
) -> None:
    """Killed in its middle with half a checkpoint, after its last update, and with all results."""
    whole, broken = (with_stages(config, tmp_path / name) for name in ("whole", "broken"))
    one = trained(whole)
    kept, model = ModelFolder(whole.train.folder), ModelFolder(broken.train.folder)
    assert set(kept.checkpoints.iterdir()) == {kept.last, kept.average}

    interrupt_after(broken, config, update=30)
    assert not model.result.exists()
    last = model.last.read_bytes()
    model.last.write_bytes(last[: len(last) // 2])  # killed while copying it
    two = trained(broken)

    log = model.log("train").read_text(encoding="utf-8")
    assert "Loaded checkpoint" in log  # it went on and did not start over
    assert losses(one.training) == losses(two.training)
    assert one.training.target_tokens == two.training.target_tokens
    assert one.training.averaged_updates == two.training.averaged_updates == [40, 50, 60]
    assert one.checkpoint == two.checkpoint == "checkpoints/checkpoint_average.pt"
    assert_same_weights(kept.last, model.last)
    assert_same_weights(kept.average, model.average)


@pytest.mark.long
def test_a_training_that_was_killed_after_its_last_checkpoint_is_kept(
    config: SuiteConfig, tmp_path: Path
) -> None:
    """Not one update more than asked for, and none again."""
    last_alone = msgspec.structs.replace(config.train, average_checkpoints=None)
    job = with_stages(msgspec.structs.replace(config, train=last_alone), tmp_path / "stages")
    before, model = trained(job), ModelFolder(job.train.folder)
    written = model.last.stat().st_mtime_ns
    model.result.write_text("")  # half a result counts as none
    after = trained(job)
    assert model.last.stat().st_mtime_ns == written
    assert losses(after.training) == losses(before.training)

    # A checkpoint of more updates than asked for is another training's: it is made again.
    longer = msgspec.structs.replace(last_alone, max_updates=70)
    other = with_stages(msgspec.structs.replace(config, train=longer), tmp_path / "stages")
    trained(other)
    shutil.copyfile(ModelFolder(other.train.folder).last, model.last)
    model.result.unlink()
    again = trained(job)
    assert losses(again.training) == losses(before.training)
    assert again.training.updates == 60


def interrupt_after(job: Job, config: SuiteConfig, update: int) -> None:
    """Train in a process that is killed, with SIGKILL, when `update` was validated."""
    code = (
        "import sys; from pathlib import Path; from experiments.config import SuiteConfig\n"
        "from experiments.records.storage import read_json\n"
        "from experiments.stages.corpus import prepare_data\n"
        "from experiments.stages.graph import job_of\n"
        "from experiments.stages.folders import TrainResult\n"
        "from experiments.stages.runner import run_stage\n"
        "from experiments.stages.training.train import train\n"
        "job = job_of(read_json(Path(sys.argv[1]), SuiteConfig))\n"
        "data = prepare_data(job.config, job.prepare)\n"
        "run_stage(job.train, TrainResult, lambda a: train(a, job.config, data), 1)\n"
    )
    path = job.train.folder.parent / "config.json"
    write_json(path, job.config)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if f"update {update}: dev" in line:
                break
        # The checkpoint of this update is written just after its validation.
        checkpoints = ModelFolder(job.train.folder).checkpoints
        while not list(checkpoints.glob(f"checkpoint_*_{update}.pt")):
            assert process.poll() is None
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_suite_that_is_ended_ends_its_training(
    corpus: list[str], prepared: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A training left behind would go on in the folder of the next run."""
    endless = ["train.max_updates=1000000", "train.validate_every_updates=1000000"]
    with subprocess.Popen(
        [*command(tmp_path, *corpus, *endless), f"paths.data={prepared}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        while not list(tmp_path.glob("stages/train/*/logs/train.log")):
            assert process.poll() is None
            time.sleep(0.05)
        children = training_of(process)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def training_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes below one, when fairseq's is among them."""
    while True:
        children = psutil.Process(process.pid).children(recursive=True)
        if any("fairseq_cli.train" in child.cmdline() for child in children):
            return children
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.long
def test_a_killed_job_goes_on_with_its_run_in_wandb(corpus: list[str], tmp_path: Path) -> None:
    """While it trains its curve is there; at the end one run has all of it, no update twice."""
    lengths = ["train.max_updates=60", "train.validate_every_updates=10"]
    asked = command(tmp_path, *corpus, *lengths, "attention=mqa", "tracking=offline")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    with subprocess.Popen(
        asked, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "update 30: dev" in line:
                break
        process.kill()
    while not (first := all_runs(tmp_path)) or first[0]["exit"] is None:
        time.sleep(0.1)  # its process sees the kill, and ends the run
    [interrupted] = first
    assert interrupted["exit"] == 1
    assert interrupted["steps"][:10] == list(range(2, 21, 2))
    done = subprocess.run(
        asked, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    [record] = read_records(tmp_path / "runs")
    _, live, measured = all_runs(tmp_path)
    expected = run_id(record.job.experiment, record.job.id, record.job.started_utc)
    assert {one["id"] for one in (interrupted, live, measured)} == {expected}
    assert live["steps"] == measured["steps"] == list(range(2, 61, 2))
    for one in (interrupted, live, measured):
        for point in record.result.curve:
            if shown := one["history"].get(point.update):
                assert shown["train/nll_nats_per_token"] == point.train_nll_nats_per_token
    assert summary(record).items() <= live["summary"].items()
    assert summary(record).items() <= measured["summary"].items()
    assert "decode/us_per_token_beam4_16x16_batch2" in measured["summary"]


@pytest.mark.long
def test_a_training_that_diverges_is_a_result(corpus: list[str], tmp_path: Path) -> None:
    """The others of the sweep go on; the same command does not train it again."""
    sweep = [*corpus, "attention=mqa", "train.clip_norm=0", "train.learning_rate=1e-4,1e8"]
    for words in ("training diverged after update", "has its record, skipped"):
        done = run(tmp_path, *sweep, "train.warmup_updates=2")
        assert done.returncode == 0, done.stderr
        assert words in done.stderr
    records = read_records(tmp_path / "runs")
    assert sorted(isinstance(record.result, Diverged) for record in records) == [False, True]
    outcomes = [
        msgspec.json.decode(path.read_bytes(), type=Outcome)
        for path in (tmp_path / "runs").rglob("outcome.json")
    ]
    assert sorted(outcome.status for outcome in outcomes) == ["diverged", "skipped"]


@pytest.mark.long
def test_data_that_cannot_be_prepared_fails_its_job_alone(
    corpus: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, *corpus, "attention=mqa", "data.vocab_size=200,100000")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the data could not be prepared" in done.stderr
    assert len(read_records(tmp_path / "runs")) == 1


@pytest.mark.long
def test_two_machines_train_one_model(config: SuiteConfig, tmp_path: Path) -> None:
    """As two jobs of `hardware.nodes=2` do, here on the CPU: half of an update each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    short = msgspec.structs.replace(config.train, max_updates=20, average_checkpoints=None)
    jobs = []
    for rank in (0, 1):
        hardware = msgspec.structs.replace(config.hardware, nodes=2, master=master, node_rank=rank)
        jobs.append(job_of(msgspec.structs.replace(config, train=short, hardware=hardware)))
    assert jobs[0].train.key == jobs[1].train.key
    folder = jobs[0].train.folder
    data = prepare_data(config, jobs[0].prepare)
    with ThreadPoolExecutor() as pool:
        along = pool.submit(train_along, jobs[1].config, folder, data, 1)
        result = trained(jobs[0]).training
        along.result()
    assert result.processes == 2
    assert result.target_tokens_per_update == pytest.approx(512, rel=0.05)
    assert result.curve[-1].dev_nll_nats_per_token is not None
    model = ModelFolder(folder)
    assert list(model.checkpoints.iterdir()) == [model.last]
    logs = {path.name for path in model.log("train").parent.iterdir()}
    assert logs == {"train.log", "train-node1.log", "check.log"}


def assert_same_weights(one: Path, two: Path) -> None:
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(two)[name]), name


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    allow_fairseq_checkpoints()
    return torch.load(checkpoint, weights_only=True)["model"]
