"""How a training ends: its last checkpoint is enough to finish, and nothing goes before it is read.

The checkpoints here are small and read by the check's own process; fairseq does not run.
"""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_stages import CHECKSUM, finish_data
from suite_configs import changed, smoke_config

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.records.record import Diverged
from experiments.stages.folders import DataFolder, Done, ModelFolder, Trained, TrainResult
from experiments.stages.graph import Job, job_of
from experiments.stages.runner import run_stage
from experiments.stages.training import train as training
from experiments.stages.training.train import train

LINE = (
    '2026-11-23 23:59:03 | INFO | train_inner | {{"nll_loss": "{loss}", "wps": "1000", '
    '"wpb": "500", "num_updates": "{update}", "lr": "0.001", "wall": "{update}"}}\n'
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """A job of 12 updates whose data is prepared."""
    config = smoke_config(tmp_path_factory.mktemp("prepared"))
    finish_data(job_of(config))
    return config


@pytest.fixture
def job(prepared: SuiteConfig, tmp_path: Path) -> Job:
    return job_of(changed(prepared, {"paths.stages": f"{tmp_path}/stages"}))


@pytest.fixture
def folder(job: Job) -> ModelFolder:
    folder = ModelFolder(job.train.folder)
    folder.checkpoints.mkdir(parents=True)
    folder.log("train").parent.mkdir()
    return folder


def data_of(job: Job) -> DataFolder:
    return DataFolder(job.prepare.folder, "en", "de")


def trained(job: Job) -> Done[Any]:
    def work(attempt: Any) -> TrainResult:
        return train(attempt, job.config, data_of(job))

    return run_stage(job.train, TrainResult, work, threads=1)  # type: ignore[arg-type]


def save(path: Path, updates: int) -> None:
    weights = {"weight": torch.ones(3)}
    torch.save({"model": weights, "optimizer_history": [{"num_updates": updates}]}, path)


def write_log(folder: ModelFolder, updates: int, loss: str = "7.1") -> None:
    lines = [LINE.format(update=n, loss=loss) for n in range(2, updates + 1, 2)]
    folder.log("train").write_text("".join(lines), encoding="utf-8")


def no_training(*arguments: object) -> None:
    pytest.fail("the model was trained")


def test_the_last_checkpoint_is_enough_to_finish_even_half_copied(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the last checkpoint and the result."""
    monkeypatch.setattr(training, "_run_training", no_training)
    for updates in (6, 12):
        save(folder.checkpoints / f"checkpoint_1_{updates}.pt", updates)
    save(folder.checkpoints / "checkpoint_best.pt", 6)
    whole = (folder.checkpoints / "checkpoint_1_12.pt").read_bytes()
    folder.last.write_bytes(whole[: len(whole) // 2])
    write_log(folder, 12)
    result = trained(job).result
    assert isinstance(result, Trained)
    assert result.checkpoint == "checkpoints/checkpoint_last.pt"
    assert result.data_checksum == CHECKSUM
    assert (result.training.updates, result.training.target_tokens) == (12, 12 * 500)
    assert [path.name for path in folder.checkpoints.iterdir()] == [folder.last.name]
    assert folder.last.read_bytes() == whole
    # What a model needs to translate lies with it.
    assert folder.pieces_model.read_bytes() == data_of(job).pieces_model.read_bytes()
    for language in ("en", "de"):
        assert folder.dictionary(language).exists()


def test_a_copy_that_was_never_made_is_made_before_anything_is_removed(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq copies its last checkpoint inside an assertion, which Python may leave out."""
    whole = b""

    def train_without_the_copy(*arguments: object) -> None:
        nonlocal whole
        for updates in (6, 12):
            save(folder.checkpoints / f"checkpoint_1_{updates}.pt", updates)
        whole = (folder.checkpoints / "checkpoint_1_12.pt").read_bytes()
        write_log(folder, 12)

    monkeypatch.setattr(training, "_run_training", train_without_the_copy)
    assert isinstance(trained(job).result, Trained)
    assert [path.name for path in folder.checkpoints.iterdir()] == [folder.last.name]
    assert folder.last.read_bytes() == whole


def test_a_run_goes_on_from_a_numbered_checkpoint_alone(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a training whose process ended without a copy; the newest is cut off."""
    monkeypatch.setattr(training, "_run_training", no_training)
    save(folder.checkpoints / "checkpoint_1_12.pt", 12)
    (folder.checkpoints / "checkpoint_1_14.pt").write_bytes(b"PK half a checkpoint")
    write_log(folder, 12)
    assert isinstance(trained(job).result, Trained)


def test_a_checkpoint_of_too_few_updates_is_kept_for_the_next_run(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_run_training", lambda *arguments: None)
    save(folder.checkpoints / "checkpoint_1_6.pt", 6)
    with pytest.raises(ExperimentError, match="training stopped at update 6 of 12"):
        trained(job)
    assert (folder.checkpoints / "checkpoint_1_6.pt").exists()
    assert folder.last.exists()


def test_a_checkpoint_that_cannot_be_read_is_refused_and_nothing_removed(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_run_training", no_training)
    with zipfile.ZipFile(folder.last, "w") as archive:
        archive.writestr("anything", "no checkpoint")
    save(folder.checkpoints / "checkpoint_1_12.pt", 12)
    write_log(folder, 12)
    before = {path: path.read_bytes() for path in folder.checkpoints.iterdir()}
    with pytest.raises(ExperimentError, match=r"cannot be read as a checkpoint") as caught:
        trained(job)
    assert "\n" not in str(caught.value)
    assert "nothing was removed; rerun=train starts over" in str(caught.value)
    assert {path: path.read_bytes() for path in folder.checkpoints.iterdir()} == before


def test_a_checkpoint_beyond_the_last_update_is_not_trusted(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two processes once trained side by side: one wrote update 13 of 12."""
    save(folder.last, 13)
    write_log(folder, 12)
    left: list[bool] = []

    def stop(*arguments: object) -> None:
        left.extend([folder.checkpoints.exists(), folder.log("train").exists()])
        raise ExperimentError("stopped here")

    monkeypatch.setattr(training, "_run_training", stop)
    with pytest.raises(ExperimentError, match="training failed: stopped here"):
        trained(job)
    assert left == [False, False]
    assert "its checkpoint has 13 updates, more than 12: training starts over" in (
        capsys.readouterr().err
    )


def test_a_training_that_stops_early_is_no_result(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_run_training", lambda *arguments: None)
    with pytest.raises(ExperimentError, match="training stopped at update 0 of 12 and printed no"):
        trained(job)


@pytest.mark.parametrize("fails", [True, False])
def test_a_training_whose_loss_is_no_number_diverged(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Whether fairseq stops for it or not: it is a result, and is not tried again."""

    def run(*arguments: object) -> None:
        write_log(folder, 4)
        with folder.log("train").open("a") as stream:
            stream.write(LINE.format(update=6, loss="nan"))
        if fails:
            raise ExperimentError("FloatingPointError: gradients are Nan/Inf")

    monkeypatch.setattr(training, "_run_training", run)
    result = trained(job).result
    assert isinstance(result, Diverged)
    assert (result.after_update, result.reason) == (4, "the loss at update 6 is nan")
    assert [point.update for point in result.curve] == [2, 4]
    monkeypatch.setattr(training, "_run_training", no_training)
    assert trained(job).result == result
