"""What is done, skipped, done again and refused, with stages that only write their results."""

import fcntl
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from experiments.layout import DataFolder, JobFolder
from experiments.storage import write_json
from hydra import compose, initialize_config_dir

from experiments import jobs
from experiments.config import SuiteConfig, parse_config
from experiments.errors import ExperimentError
from experiments.records import read_records
from experiments.run import resolve

CONF = Path(__file__).resolve().parents[2] / "conf"


class Stages:
    """Stands in for the processes: notes which stage ran, fails when told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: str | None = None

    def train(self, config: SuiteConfig, job: JobFolder, data: DataFolder, threads: int) -> None:
        self._note("train")
        write_json(job.training, synthetic.training(8))

    def module(self, name: str, job: JobFolder, threads: int) -> None:
        self._note(name)
        if name == "evaluate":
            write_json(job.model, synthetic.model_info(8))
            write_json(job.evaluation, synthetic.evaluation(8))
        else:
            write_json(job.benchmark, synthetic.benchmark(8))

    def _note(self, name: str) -> None:
        if name == self.fails:
            raise ExperimentError(f"{name} failed")
        self.ran.append(name)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    stages = Stages()
    monkeypatch.setattr(jobs, "prepare_data", lambda config: DataFolder(Path("nowhere")))
    monkeypatch.setattr(jobs, "check_lengths", lambda model, data: None)
    monkeypatch.setattr(jobs, "read_data_info", lambda path: synthetic.data_info())
    monkeypatch.setattr(jobs, "train", stages.train)
    monkeypatch.setattr(jobs, "_run_module", stages.module)
    code = synthetic.record().code
    monkeypatch.setattr(jobs.provenance, "code_info", lambda: code)
    return stages


@pytest.fixture
def config(tmp_path: Path) -> SuiteConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["experiment=quickstart", f"paths.runs={tmp_path}/runs"]
        return resolve(compose("suite", overrides=overrides))


def with_force(config: SuiteConfig) -> SuiteConfig:
    return msgspec.structs.replace(config, force=True)


ALL = ["train", "evaluate", "benchmark"]


def test_a_job_with_its_record_is_skipped(
    stages: Stages, config: SuiteConfig, tmp_path: Path
) -> None:
    assert jobs.run_job(config)
    assert stages.ran == ALL
    (record,) = read_records(tmp_path / "runs")
    assert parse_config(record.config) == config
    assert record.commands["train"][0] == "fairseq-train"
    assert not jobs.run_job(config)
    assert stages.ran == ALL
    assert read_records(tmp_path / "runs") == [record]


def test_force_runs_it_again(stages: Stages, config: SuiteConfig, tmp_path: Path) -> None:
    jobs.run_job(config)
    (path,) = (tmp_path / "runs").rglob("record.json")
    stale = path.parent / "checkpoints/checkpoint_last.pt"
    stale.parent.mkdir()
    stale.write_bytes(b"stale")
    assert jobs.run_job(with_force(config))
    assert stages.ran == ALL + ALL
    assert not stale.exists()
    assert len(read_records(tmp_path / "runs")) == 1


def test_a_forced_job_that_fails_leaves_no_record(
    stages: Stages, config: SuiteConfig, tmp_path: Path
) -> None:
    jobs.run_job(config)
    stages.fails = "evaluate"
    with pytest.raises(ExperimentError, match="evaluate failed"):
        jobs.run_job(with_force(config))
    assert read_records(tmp_path / "runs") == []


@pytest.mark.parametrize("stage", ALL)
def test_a_job_goes_on_where_it_failed(
    stages: Stages, config: SuiteConfig, tmp_path: Path, stage: str
) -> None:
    stages.fails = stage
    with pytest.raises(ExperimentError, match=stage):
        jobs.run_job(config)
    assert read_records(tmp_path / "runs") == []
    stages.fails = None
    assert jobs.run_job(config)
    assert stages.ran == ALL  # each once


@pytest.mark.parametrize("what", ["seed", "data", "code"])
def test_what_the_result_depends_on_runs_another_job(
    stages: Stages, config: SuiteConfig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    jobs.run_job(config)
    if what == "seed":
        config = msgspec.structs.replace(config, seed=2)
    elif what == "data":
        monkeypatch.setattr(jobs, "read_data_info", lambda path: synthetic.data_info("other"))
    else:
        other = msgspec.structs.replace(synthetic.record().code, version="0" * 64)
        monkeypatch.setattr(jobs.provenance, "code_info", lambda: other)
    assert jobs.run_job(config)
    assert stages.ran == ALL + ALL


def test_two_processes_do_not_run_the_same_job(
    stages: Stages, config: SuiteConfig, tmp_path: Path
) -> None:
    jobs.run_job(config)
    (lock,) = (tmp_path / "runs").rglob(".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ExperimentError, match="another process"):
            jobs.run_job(with_force(config))
    assert len(read_records(tmp_path / "runs")) == 1
    assert stages.ran == ALL


def test_a_folder_that_cannot_be_written_is_one_line(
    stages: Stages, config: SuiteConfig, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ExperimentError, match=r"paths\.runs=FOLDER"):
        jobs.run_job(config)
    assert stages.ran == []
