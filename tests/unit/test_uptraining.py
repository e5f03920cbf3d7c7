"""Training a converted model on: to one point after the other, whatever interrupts it.

The checkpoints here are small and read by the check's own process; fairseq does not run.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from finished_stages import CHECKSUM, finish_data
from suite_configs import changed, smoke_config

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.stages.folders import (
    Converted,
    DataFolder,
    Diverged,
    Model,
    ModelFolder,
    Uptrained,
    model_of,
)
from experiments.stages.graph import Job, job_of
from experiments.stages.runner import run_stage
from experiments.stages.training.command import train_command, with_options
from experiments.stages.uptraining import uptrain as uptraining
from experiments.stages.uptraining.convert import convert_command
from experiments.stages.uptraining.uptrain import log_interval, uptrain, uptrain_command

LINE = (
    '2026-11-23 23:59:03 | INFO | train_inner | {{"nll_loss": "{loss}", "wps": "1000", '
    '"wpb": "500", "num_updates": "{update}", "lr": "0.001", "wall": "{update}"}}\n'
)
PARENT_UPDATES = 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """A job whose data is prepared, with points after 3 and after 6 of 12 updates more."""
    config = smoke_config(
        tmp_path_factory.mktemp("prepared"),
        "uptrain=converted",
        "attention=mqa",
        "uptrain.points=[0.25,0.5]",
        "uptrain.alpha=0.5",
    )
    finish_data(job_of(config))
    return config


@pytest.fixture
def job(prepared: SuiteConfig, tmp_path: Path) -> Job:
    return job_of(changed(prepared, {"paths.stages": f"{tmp_path}/stages"}))


@pytest.fixture
def folder(job: Job) -> ModelFolder:
    folder = ModelFolder(job.model.folder)
    folder.checkpoints.mkdir(parents=True)
    folder.log("uptrain").parent.mkdir()
    return folder


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a checkpoint is checked, in a process of its own, is the train stage's test."""

    def updates_of(attempt: Any, path: Path) -> int:
        return torch.load(path)["optimizer_history"][-1]["num_updates"] if path.exists() else 0

    monkeypatch.setattr(uptraining, "updates_of", updates_of)


def data_of(job: Job) -> DataFolder:
    return DataFolder(job.prepare.folder, "en", "de")


def uptrained(job: Job) -> Uptrained:
    def work(attempt: Any) -> Uptrained:
        return uptrain(attempt, job, data_of(job), Path("converted.pt"))

    return run_stage(job.model, Uptrained, work, threads=1).result


def save(path: Path, updates: int) -> bytes:
    weights = {"weight": torch.full((3,), float(updates))}
    torch.save({"model": weights, "optimizer_history": [{"num_updates": updates}]}, path)
    return path.read_bytes()


class Trainer:
    """In the place of fairseq's command: it saves its last update, and logs each one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, diverges_at: int | None = None) -> None:
        self.goals: list[int] = []
        self.diverges_at = diverges_at
        monkeypatch.setattr(uptraining, "run_training", self)

    def __call__(self, attempt: Any, command: list[str], log: Path, goal: int, after: int) -> None:
        assert after == PARENT_UPDATES
        assert command[command.index("--max-update") + 1] == str(goal)
        self.goals.append(goal)
        write_log(log, (self.goals[-2] if self.goals[1:] else after) + 1, goal, self.diverges_at)
        checkpoints = attempt.folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        save(checkpoints / "checkpoint_last.pt", goal)
        save(checkpoints / "checkpoint_best.pt", goal)
        if self.diverges_at and goal >= self.diverges_at:
            raise ExperimentError("FloatingPointError: gradients are Nan/Inf")


def write_log(log: Path, first: int, last: int, diverges_at: int | None = None) -> None:
    with log.open("a", encoding="utf-8") as stream:
        for update in range(first, last + 1):
            stream.write(LINE.format(update=update, loss="nan" if update == diverges_at else "7.1"))


def test_the_model_is_kept_at_each_point(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(monkeypatch)
    result = uptrained(job)
    assert trainer.goals == [15, 18]
    assert result.diverged is None
    assert result.data_checksum == CHECKSUM
    assert [point.alpha for point in result.points] == [0.25, 0.5]
    assert [point.training.updates for point in result.points] == [3, 6]
    for point in result.points:
        updates = point.training.updates
        assert torch.load(folder.path / point.checkpoint)["model"]["weight"][0] == 12 + updates
        # Updates and tokens count from the parent's end.
        assert [one.update for one in point.training.curve] == list(range(1, updates + 1))
        assert point.training.target_tokens == 500 * updates
    names = {path.name for path in folder.checkpoints.iterdir()}
    assert names == {"uptrained_3.pt", "uptrained_6.pt"}
    assert folder.pieces_model.read_bytes() == data_of(job).pieces_model.read_bytes()


def test_what_was_reached_is_not_trained_again(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill: between the last checkpoint of a point and its copy, or after the copy."""
    trainer = Trainer(monkeypatch)
    last = save(folder.last, 15)
    write_log(folder.log("uptrain"), 13, 15)
    result = uptrained(job)
    assert trainer.goals == [18]
    assert (folder.path / result.points[0].checkpoint).read_bytes() == last
    (folder.path / "result.json").unlink()
    assert uptrained(job) == result
    assert trainer.goals == [18]


def test_half_a_last_checkpoint_goes_on_from_the_point_before(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_point = save(folder.checkpoints / "uptrained_3.pt", 15)
    folder.last.write_bytes(at_point[: len(at_point) // 2])
    write_log(folder.log("uptrain"), 13, 15)
    found: list[bytes] = []

    def train(attempt: Any, command: list[str], log: Path, goal: int, after: int) -> None:
        found.append(folder.last.read_bytes())
        write_log(log, 16, goal)
        save(folder.last, goal)

    monkeypatch.setattr(uptraining, "run_training", train)
    assert [point.training.updates for point in uptrained(job).points] == [3, 6]
    assert found == [at_point]


def test_a_checkpoint_beyond_a_point_that_was_not_kept_is_not_trusted(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trainer = Trainer(monkeypatch)
    save(folder.last, 17)
    write_log(folder.log("uptrain"), 13, 17)
    assert len(uptrained(job).points) == 2
    assert trainer.goals == [15, 18]
    assert "its checkpoint has 17 updates, more than 15: it starts over" in capsys.readouterr().err


def test_a_run_that_diverges_has_the_points_before(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(monkeypatch, diverges_at=17)
    result = uptrained(job)
    assert trainer.goals == [15, 18]
    found = model_of(result, 0.25)
    assert isinstance(found, Model)
    assert found.training == result.points[0].training
    ended = model_of(result, 0.5)
    assert isinstance(ended, Diverged)
    assert (ended.after_update, ended.reason) == (6, "the loss at update 17 is nan")
    assert [point.update for point in ended.curve] == [1, 2, 3, 4, 6]
    assert uptrained(job) == result
    assert trainer.goals == [15, 18]


def test_a_run_that_stops_early_is_no_result(
    job: Job, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder.last, 14)
    monkeypatch.setattr(uptraining, "run_training", lambda *arguments: None)
    with pytest.raises(ExperimentError, match="training stopped at update 14 of 15 and printed"):
        uptrained(job)
    assert folder.last.exists()


def test_the_command_goes_on_with_the_parents_recipe(job: Job) -> None:
    """Of the parent's own command other heads, other files and the end of the training differ."""
    converted = Path("converted.pt")
    more = uptrain_command(job, Path("bin"), Path("c"), converted, 6)
    parent = train_command(job.config.multi_head, Path("bin"), Path("c"))
    expected = {
        "--num-kv-heads": 1,
        "--max-update": 18,
        "--log-interval": 1,
        "--continue-once": converted,
    }
    assert more == [*with_options(parent, expected), "--reset-meters"]


def test_a_line_of_the_log_ends_at_each_point(prepared: SuiteConfig) -> None:
    def interval(**train: int) -> int:
        values = {f"train.{name}": value for name, value in train.items()}
        return log_interval(job_of(changed(prepared, {**values, "uptrain.points": [0.05, 0.1],
                                                      "uptrain.alpha": 0.1})))  # fmt: skip

    sizes = {"max_updates": 100_000, "warmup_updates": 4000}
    assert interval(**sizes, log_every_updates=50, validate_every_updates=2000) == 50
    assert interval(**sizes, log_every_updates=40, validate_every_updates=2000) == 40
    odd = {"max_updates": 550, "log_every_updates": 25, "validate_every_updates": 275}
    assert interval(**odd) == 1  # points after 28 and 55


def test_a_conversion_is_a_command(job: Job, tmp_path: Path) -> None:
    command = convert_command(job, Path("parent.pt"), ModelFolder(tmp_path))
    assert command[1:4] == ["-m", "gqa_fairseq.checkpoints.convert", "parent.pt"]
    assert command[4:] == [
        "--num-kv-heads", "1", "--placement", "all", "--method", "svd-product", "--seed", "1",
        "--out", f"{tmp_path}/checkpoints/converted.pt", "--force",
    ]  # fmt: skip


def test_a_converted_model_was_not_trained() -> None:
    result = Converted(checkpoint="a.pt", data_checksum=CHECKSUM, parent_updates=12)
    assert model_of(result, 0.0) == Model(checkpoint="a.pt", data_checksum=CHECKSUM, training=None)
