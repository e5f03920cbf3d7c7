"""What a sweep asks to be measured: each architecture once, with the jobs whose speed it is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from finished_stages import finish_data, finish_evaluation, finish_training
from suite_configs import changed, smoke_config

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.measure.request import Request, check_request
from experiments.stages import measuring
from experiments.stages.folders import Measured
from experiments.stages.graph import Job, plan
from experiments.stages.job import run_job
from experiments.stages.measuring import contender, measure_request


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    folder = tmp_path_factory.mktemp("outputs")
    paths = [f"paths.{name}={folder}/{name}" for name in ("stages", "runs")]
    return smoke_config(folder, "measure.shapes=[[16,16],[32,8]]", *paths)


@pytest.fixture(scope="module")
def jobs(config: SuiteConfig) -> list[Job]:
    """MHA and MQA, two seeds each, trained and evaluated."""
    jobs, _ = plan(
        changed(config, {"attention.num_kv_heads": heads, "seed": seed})
        for heads in (4, 1)
        for seed in (1, 2)
    )
    finish_data(jobs[0])
    for job in jobs:
        finish_training(job)
        finish_evaluation(job)
        assert run_job(job).status == "done"
    return jobs


def test_a_contender_is_a_jobs_model_with_its_engine(jobs: list[Job]) -> None:
    job = jobs[2]
    found = contender(job)
    assert found.name == "mqa, gqa"
    assert found.architecture == job.config.architecture
    assert found.jobs == [job.id]
    assert found.checkpoint == str(job.train.folder / "checkpoints/checkpoint_last.pt")
    assert found.data == str(job.prepare.folder / "bin")
    assert Path(found.checkpoint).is_file()
    assert found.training_command[0] == "fairseq-train"


def test_stock_search_is_measured_over_the_plugins_model(jobs: list[Job]) -> None:
    stock = changed(jobs[0].config, {"decode.engine": "stock"})
    assert contender(msgspec.structs.replace(jobs[0], config=stock)).name == "mha, gqa+stock"


def test_seeds_of_an_architecture_are_one_contender(jobs: list[Job]) -> None:
    request = measure_request(jobs[0].config, [contender(job) for job in jobs])
    assert [one.name for one in request.contenders] == ["mha, gqa", "mqa, gqa"]
    ids = [job.id for job in jobs]
    assert [one.jobs for one in request.contenders] == [ids[:2], ids[2:]]
    assert check_request(request) == []


def test_several_baselines_are_contenders_of_one_request(jobs: list[Job]) -> None:
    """A smaller MHA beside MHA and MQA, although both are called mha."""
    (narrow,), _ = plan([changed(jobs[0].config, {"model.d_model": 16})])
    finish_training(narrow)
    finish_evaluation(narrow)
    assert run_job(narrow).status == "done"
    request = measure_request(narrow.config, [contender(job) for job in [*jobs, narrow]])
    widths = [(one.name, one.architecture.d_model) for one in request.contenders]
    assert widths == [("mha, gqa", 32), ("mqa, gqa", 32), ("mha, gqa", 16)]
    assert request.contenders[2].jobs == [narrow.id]
    assert check_request(request) == []
    doubled = msgspec.structs.replace(
        request, contenders=[*request.contenders, request.contenders[2]]
    )
    with pytest.raises(ExperimentError, match="contenders: mha-d16, gqa is there twice"):
        check_request(doubled)


def test_the_request_says_what_the_config_says(jobs: list[Job]) -> None:
    config = jobs[0].config
    request = measure_request(config, [contender(jobs[0])])
    assert request.shapes == [(2, 16, 16), (2, 32, 8)]
    assert request.beams == [1, 4]
    assert (request.warmup_runs, request.repeats) == (1, 5)
    assert request.training is not None
    assert (request.training.batch, request.training.repeats) == (2, 5)
    assert (request.device, request.dtype, request.threads) == ("cpu", "float32", 1)
    encoded = msgspec.json.encode(request)
    assert msgspec.json.decode(encoded, type=Request) == request


def test_another_measurement_than_was_measured_is_refused(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage: Any = SimpleNamespace(folder=tmp_path)
    done = SimpleNamespace(result=Measured(sha256="0" * 64))
    monkeypatch.setattr(measuring, "run_stage", lambda *_: done)
    for content in (None, b"{}"):
        if content:
            (tmp_path / "measurement.json").write_bytes(content)
        with pytest.raises(ExperimentError, match=r"not what was measured \(measure again: rerun="):
            measuring.measure(stage, jobs)


def test_a_job_whose_data_changed_is_not_measured(jobs: list[Job]) -> None:
    manifest = jobs[0].prepare.folder / "manifest.json"
    whole = manifest.read_bytes()
    checksum = msgspec.json.decode(whole)["checksum"].encode()
    try:
        manifest.write_bytes(whole.replace(checksum, b"1" * 64))
        with pytest.raises(ExperimentError, match="this data has the checksum 111111111111"):
            contender(jobs[0])
    finally:
        manifest.write_bytes(whole)
