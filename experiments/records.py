"""The record: everything that one job did and found, in one JSON file.

Files are the truth; the report and wandb are views of them. A record that contradicts itself is
refused, when it is written and when it is read.

Later fields get a default, so that old records stay readable; a change of meaning gets a new
`SCHEMA_VERSION`.
"""

from pathlib import Path
from typing import Any

import msgspec

from experiments.errors import ExperimentError
from experiments.record_parts import (
    Benchmark,
    CodeInfo,
    DataInfo,
    Evaluation,
    Hardware,
    JobInfo,
    ModelInfo,
    Part,
    Training,
    require,
)
from experiments.storage import decode_json, read_bytes, write_json

SCHEMA_VERSION = 1
RECORD_NAME = "record.json"


class Record(Part, frozen=True, kw_only=True):
    """One job. A stage that did not run is null; the report prints it as "not run"."""

    schema_version: int
    job: JobInfo
    config: dict[str, Any]
    commands: dict[str, list[str]]
    code: CodeInfo
    versions: dict[str, str]
    hardware: Hardware
    seed: int
    data: DataInfo
    model: ModelInfo
    training: Training | None
    evaluation: Evaluation | None
    benchmark: Benchmark | None

    def check(self) -> None:
        require(
            self.schema_version == SCHEMA_VERSION,
            f"schema_version is {self.schema_version}, this code reads {SCHEMA_VERSION}",
        )
        require(
            self.job.variant == self.model.variant,
            f"job.variant {self.job.variant} is not the model's {self.model.variant}",
        )
        require(self.config.get("seed", self.seed) == self.seed, "seed is not config's seed")
        if self.evaluation is None:
            return
        for score in [*self.evaluation.scores, *self.evaluation.baselines]:
            lines = self.data.lines(score.split)
            require(lines is not None, f"a score is on {score.split}, which data does not hold")
            require(
                score.lines == lines,
                f"a score on {score.split} has {score.lines} lines, the data has {lines}",
            )


def write_record(path: Path, record: Record) -> None:
    """Write `record` atomically; raises ExperimentError when it would be refused on reading."""
    write_json(path, record)


class _Versioned(msgspec.Struct):
    schema_version: int


def read_record(path: Path) -> Record:
    """Read one record strictly; raises ExperimentError, one line that names file and field."""
    raw = read_bytes(path)
    # The version first: another version's fields would only give a misleading message.
    version = decode_json(raw, _Versioned, path).schema_version
    if version != SCHEMA_VERSION:
        raise ExperimentError(
            f"{path}: schema_version: {version}, but this code reads {SCHEMA_VERSION} (use the "
            "commit that wrote it, or run the job again)"
        )
    return decode_json(raw, Record, path)


def read_records(folder: Path) -> list[Record]:
    """Every record.json below `folder`, in the order of the paths.

    Raises ExperimentError when the folder is missing or one of the records is refused.
    """
    if not folder.is_dir():
        raise ExperimentError(f"{folder}: no such folder of records (run an experiment first)")
    return [read_record(path) for path in sorted(folder.rglob(RECORD_NAME))]
