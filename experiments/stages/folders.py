"""Where results lie: prepared data, a stage's result, a job's folder.

A job's folder names its stages by paths relative to itself, so that `outputs` can be moved, and
used from any current folder.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from data_prep.spec import DataError, Manifest, load_manifest
from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.records.checked import Checked, Positive, Sha256, Text
from experiments.records.parts import Evaluation, Share, StageInfo, Training
from experiments.records.record import RECORD_NAME, Diverged, Record, read_record
from experiments.records.storage import read_json, write_json

RESULT_NAME = "result.json"
PIECES_NAME = "spm.model"

Result = TypeVar("Result")


class Done(msgspec.Struct, Generic[Result], frozen=True, forbid_unknown_fields=True):
    """The one result file of a stage: what it found, and what made it."""

    info: StageInfo
    result: Result


class Trained(Checked, frozen=True, kw_only=True, tag="trained", tag_field="outcome"):
    """A model: its checkpoint by its path in the stage's folder, and the data that it learned."""

    checkpoint: Text
    data_checksum: Sha256
    training: Training


class Converted(Checked, frozen=True, kw_only=True, tag="converted", tag_field="outcome"):
    """A model with other heads, by its path in the stage's folder; `parent_updates` it had."""

    checkpoint: Text
    data_checksum: Sha256
    parent_updates: Positive


class UptrainedPoint(Checked, frozen=True, kw_only=True):
    """The model after the share `alpha` of its parent's updates."""

    alpha: Share
    checkpoint: Text
    training: Training


class Uptrained(Checked, frozen=True, kw_only=True, tag="uptrained", tag_field="outcome"):
    """The models of one run, as far as it came: `diverged` says why it ended before its last."""

    data_checksum: Sha256
    points: list[UptrainedPoint]
    diverged: Diverged | None = None


class Measured(Checked, frozen=True, kw_only=True):
    """The measurement is a file of its own, whose digest this is."""

    sha256: Sha256


TrainResult = Trained | Diverged
ModelResult = Trained | Converted | Uptrained | Diverged

# What the result file of a stage is read as, by the stage's name. Prepared data has a manifest.
RESULTS: dict[str, Any] = {
    "train": Done[ModelResult],
    "convert": Done[ModelResult],
    "uptrain": Done[ModelResult],
    "evaluate": Done[Evaluation],
    "measure": Done[Measured],
}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a stage: its checkpoint by its path in the stage's folder.

    `data_checksum` is of what it learned. `training` is null where it was converted alone.
    """

    checkpoint: str
    data_checksum: str
    training: Training | None


def model_of(result: ModelResult, alpha: float) -> Model | Diverged:
    """The model that a stage has, of several that after the share `alpha`; or why it has none."""
    if isinstance(result, Diverged):
        return result
    if isinstance(result, Uptrained):
        reached = [point for point in result.points if point.alpha == alpha]
        if not reached:
            assert result.diverged is not None  # else all points are there
            return result.diverged
    found = reached[0] if isinstance(result, Uptrained) else result
    return Model(
        checkpoint=found.checkpoint,
        data_checksum=result.data_checksum,
        training=None if isinstance(found, Converted) else found.training,
    )


class DataFolder(msgspec.Struct, frozen=True):
    """A folder that `python -m data_prep` made, for one pair of languages."""

    path: Path
    source_lang: str
    target_lang: str

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self) -> Manifest:
        """Raises ExperimentError, one line, when it cannot be used."""
        try:
            return load_manifest(self.manifest_path)
        except DataError as error:
            raise ExperimentError(str(error)) from error

    @property
    def binarized(self) -> Path:
        return self.path / "bin"

    @property
    def pieces_model(self) -> Path:
        return self.path / PIECES_NAME

    def text(self, split: str, language: str) -> Path:
        return self.path / "text" / f"{split}.{language}"

    def model_free(self, name: str) -> Path:
        """Translations of test that need no model; not every corpus has them."""
        return self.path / "baselines" / f"{name}.test.{self.target_lang}"

    def check(self, checksum: str, what: str) -> None:
        """Raise ExperimentError unless the data is what `what` was made with."""
        found = self.manifest().checksum
        if found != checksum:
            raise ExperimentError(
                f"{self.path}: this data has the checksum {found[:12]}, {what} was made with "
                f"{checksum[:12]} (restore that data, or use rerun=train)"
            )


class ModelFolder(msgspec.Struct, frozen=True):
    """The folder of a train stage: checkpoints, and what else a model needs to translate."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """What training goes on from."""
        return self.checkpoints / "checkpoint_last.pt"

    @property
    def average(self) -> Path:
        """The mean of the last checkpoints, where the config asks for one."""
        return self.checkpoints / "checkpoint_average.pt"

    @property
    def converted(self) -> Path:
        """The model with other heads, where this is the folder of a convert stage."""
        return self.checkpoints / "converted.pt"

    @property
    def pieces_model(self) -> Path:
        return self.path / PIECES_NAME

    def dictionary(self, language: str) -> Path:
        return self.path / f"dict.{language}.txt"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    @property
    def result(self) -> Path:
        return self.path / RESULT_NAME


class Links(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders of a job's stages, relative to the job's own; null where it has no such stage."""

    data: str
    train: str | None = None
    convert: str | None = None
    uptrain: str | None = None
    evaluate: str


Status = Literal["done", "skipped", "diverged", "failed"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a job of a sweep ended: a file too, as a launcher may run it on another machine.

    `skipped`: its record was there. `message` says why, where it is `diverged` or `failed`."""

    job: str
    status: Status
    message: str = ""

    @property
    def has_model(self) -> bool:
        return self.status in ("done", "skipped")


class JobFolder(msgspec.Struct, frozen=True):
    """The folder of one job: its record, its hypotheses, and where its stages lie."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def links_path(self) -> Path:
        return self.path / "links.json"

    @property
    def record_path(self) -> Path:
        return self.path / RECORD_NAME

    @property
    def outcome_path(self) -> Path:
        return self.path / "outcome.json"

    @property
    def hypotheses(self) -> Path:
        return self.path / "hypotheses"

    def write_links(self, config: SuiteConfig, stages: Mapping[str, Path]) -> None:
        """Write the job's config, and where its stages lie: folders by name."""
        here = self.path.resolve()
        write_json(self.config_path, config)
        links = {name: os.path.relpath(path.resolve(), here) for name, path in stages.items()}
        write_json(self.links_path, Links(data=links.pop("prepare"), **links))

    def has_damaged_links(self) -> bool:
        """Whether what `write_links` wrote cannot be read; a record that was copied has none."""
        if not (self.config_path.exists() or self.links_path.exists()):
            return False
        try:
            self.config()
            self._links()
        except ExperimentError:
            return True
        return False

    def record(self) -> Record:
        return read_record(self.record_path)

    def config(self) -> SuiteConfig:
        """Raises ExperimentError where this is no job's folder."""
        return read_json(self.config_path, SuiteConfig)

    def model(self) -> ModelFolder:
        """The folder of the stage that has the job's model."""
        links = self._links()
        return ModelFolder(self._folder(links.uptrain or links.convert or links.train))

    def data(self) -> DataFolder:
        """The data that the job's model was trained on; raises ExperimentError when it is other.

        One command on a job after the other may run long after the training.
        """
        spec = self.config().data
        data = DataFolder(self._folder(self._links().data), spec.source_lang, spec.target_lang)
        data.check(self.trained().data_checksum, self.path.name)
        return data

    def trained(self) -> Model:
        """Raises ExperimentError where the job has no model."""
        path = self.model().result
        if not path.exists():
            raise ExperimentError(
                f"{self.path}: its model is not finished: there is no {path} (run its command to "
                "the end)"
            )
        found = model_of(read_json(path, Done[ModelResult]).result, self.config().uptrain.alpha)
        if isinstance(found, Diverged):
            raise ExperimentError(
                f"{self.path.name}: its training diverged after update {found.after_update}, so "
                "it has no model"
            )
        return found

    def checkpoint(self) -> Path:
        """The model that was evaluated."""
        return self.model().path / self.trained().checkpoint

    def _links(self) -> Links:
        if not self.links_path.exists():
            raise ExperimentError(
                f"{self.path}: no {self.links_path.name} in it (give the folder of a job, such as "
                "outputs/runs/quickstart/mha-seed1-...)"
            )
        return read_json(self.links_path, Links)

    def _folder(self, link: str | None) -> Path:
        """Where a link leads."""
        assert link is not None, f"{self.links_path} names no model"
        return (self.path / link).resolve()
