"""The record: everything that one job did and found, in one JSON file.

Files are the truth; the report and wandb are views of them. A record that contradicts itself is
refused, when it is written and when it is read. Speed is not in it: a ratio is measured side by
side, and a measurement (records/measurement.py) names the jobs that it belongs to.

Later fields get a default, so that old records stay readable; a change of meaning gets a new
`SCHEMA_VERSION`.
"""

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from data_prep.spec import Manifest
from experiments.errors import ExperimentError
from experiments.records.checked import Checked, Text, require
from experiments.records.parts import (
    Evaluation,
    JobInfo,
    StageInfo,
    Training,
    TrainPoint,
    Uptraining,
    check_curve,
)
from experiments.records.storage import read_versioned, write_json
from gqa_fairseq.architecture import Architecture

SCHEMA_VERSION = 2
RECORD_NAME = "record.json"


class Finished(Checked, frozen=True, kw_only=True, tag="finished", tag_field="outcome"):
    """A model was trained and evaluated; `training` is null where it was converted alone."""

    training: Training | None
    evaluation: Evaluation

    @property
    def curve(self) -> list[TrainPoint]:
        return self.training.curve if self.training else []


class Diverged(Checked, frozen=True, kw_only=True, tag="diverged", tag_field="outcome"):
    """Training ended with losses or gradients that are no numbers; `curve` is what came before."""

    after_update: Annotated[int, Meta(ge=0)]
    reason: Text
    curve: list[TrainPoint]

    def check(self) -> None:
        check_curve(self.curve, self.after_update)


class Record(Checked, frozen=True, kw_only=True):
    """One job. `stages` are those that it went through, in order, with what made each.

    `uptraining` is null for a model trained from scratch. Otherwise `result` is that of the updates
    after the conversion.
    """

    schema_version: int
    job: JobInfo
    config: dict[str, Any]
    commands: dict[str, list[str]]
    stages: Annotated[list[StageInfo], Meta(min_length=1)]
    seed: int
    data: Manifest
    architecture: Architecture
    result: Finished | Diverged
    uptraining: Uptraining | None = None

    @property
    def variant(self) -> str:
        """The architecture, and how it was uptrained: `mqa` or `mqa-ff768-svd-product-0.05`."""
        name = self.architecture.name
        return f"{name}-{self.uptraining.label}" if self.uptraining else name

    @property
    def name(self) -> str:
        """Such as `mqa-seed1-0123456789ab`: the job's folder, and its run in wandb."""
        return f"{self.variant}-seed{self.seed}-{self.job.id[:12]}"

    @property
    def evaluation(self) -> Evaluation | None:
        return self.result.evaluation if isinstance(self.result, Finished) else None

    @property
    def training(self) -> Training | None:
        return self.result.training if isinstance(self.result, Finished) else None

    def stage(self, name: str) -> StageInfo | None:
        """The stage of that name, None where the job did not get to it."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def lines(self, split: str) -> int | None:
        """Lines of a split or of a subset of test; None when there is none of that name."""
        if split in self.data.splits:
            return self.data.splits[split].read
        subset = self.data.subsets.get(split.removeprefix("test_"))
        return subset.lines if subset and split.startswith("test_") else None

    def check(self) -> None:
        require(
            self.schema_version == SCHEMA_VERSION,
            f"schema_version is {self.schema_version}, this code reads {SCHEMA_VERSION}",
        )
        require(self.config.get("seed", self.seed) == self.seed, "seed is not config's seed")
        if isinstance(self.result, Finished):
            updates = self.uptraining.updates if self.uptraining else None
            trained = self.result.training.updates if self.result.training else 0
            require(
                updates is None or updates == trained,
                f"uptraining.updates is {updates}, training has {trained}",
            )
            require(
                self.uptraining is not None or self.result.training is not None,
                "result.training is null, which only a converted model may have",
            )
        for split, counts in self.data.splits.items():
            is_whole = split == "train" or counts.kept == counts.read
            require(is_whole, f"data.splits.{split} drops lines, which only train may")
        for name, subset in self.data.subsets.items():
            of_test = self.lines("test") or 0
            require(
                subset.lines <= of_test,
                f"data.subsets.{name} has {subset.lines} lines, more than test with {of_test}",
            )
        if self.evaluation is None:
            return
        require(
            self.evaluation.parameters == self.architecture.parameters,
            f"the model has {self.evaluation.parameters} parameters, its architecture "
            f"{self.architecture.parameters}",
        )
        for score in [*self.evaluation.scores, *self.evaluation.model_free]:
            lines = self.lines(score.split)
            require(lines is not None, f"a score is on {score.split}, which data does not hold")
            require(
                score.lines == lines,
                f"a score on {score.split} has {score.lines} lines, the data has {lines}",
            )


def write_record(path: Path, record: Record) -> None:
    """Write `record` atomically; raises ExperimentError when it would be refused on reading."""
    write_json(path, record)


def read_record(path: Path) -> Record:
    """Read one record strictly; raises ExperimentError, one line that names file and field."""
    remedy = "use the commit that wrote it, or run the job again"
    return read_versioned(path, Record, SCHEMA_VERSION, remedy)


def record_files(folder: Path) -> list[Path]:
    """Every record.json below `folder`, sorted; raises ExperimentError where it is missing."""
    if not folder.is_dir():
        raise ExperimentError(f"{folder}: no such folder of records (run an experiment first)")
    return sorted(folder.rglob(RECORD_NAME))
