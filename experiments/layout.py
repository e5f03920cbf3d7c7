"""Where a job keeps its files, and where prepared data keeps those that jobs read."""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.records import RECORD_NAME
from experiments.storage import read_json

SOURCE, TARGET = "en", "de"


class JobFolder(msgspec.Struct, frozen=True):
    """The folder of one job. A file that is there is whole: each is written in one step."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint(self) -> Path:
        return self.checkpoints / "checkpoint_last.pt"

    @property
    def average(self) -> Path:
        """The mean of the last checkpoints, where the config asks for one."""
        return self.checkpoints / "checkpoint_average.pt"

    @property
    def trained(self) -> Path:
        """What evaluation and benchmark load."""
        return self.average if self.average.exists() else self.checkpoint

    @property
    def hypotheses(self) -> Path:
        return self.path / "hypotheses"

    @property
    def training(self) -> Path:
        return self.path / "training.json"

    @property
    def model(self) -> Path:
        return self.path / "model.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def benchmark(self) -> Path:
        return self.path / "benchmark.json"

    @property
    def record(self) -> Path:
        return self.path / RECORD_NAME

    def log(self, stage: str) -> Path:
        return self.path / "logs" / f"{stage}.log"

    def read_config(self) -> SuiteConfig:
        """The job's config; raises ExperimentError where there is none."""
        return read_json(self.config, SuiteConfig)


def job_folder(config: SuiteConfig, identity: str) -> JobFolder:
    """Such as `outputs/runs/quickstart/mqa-seed1-0123456789ab`."""
    name = f"{config.variant}-seed{config.seed}-{identity[:12]}"
    return JobFolder(Path(config.paths.runs) / config.experiment_name / name)


class DataFolder(msgspec.Struct, frozen=True):
    """A folder that `python -m data_prep` made."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def binarized(self) -> Path:
        return self.path / "bin"

    @property
    def pieces_model(self) -> Path:
        return self.path / "spm.model"

    def text(self, split: str, language: str) -> Path:
        return self.path / "text" / f"{split}.{language}"

    def baseline(self, name: str, language: str) -> Path:
        """Hypotheses of a baseline on the test split; not every corpus has them."""
        return self.path / "baselines" / f"{name}.test.{language}"


def data_folder(config: SuiteConfig) -> DataFolder:
    """Where the data of this config is prepared: other settings or files, another folder."""
    settings = msgspec.structs.replace(config.data, mirror=None)
    digest = hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest()[:8]
    return DataFolder(Path(config.paths.data) / f"{config.data.name}-{digest}")


def run_on_job(stage: Callable[[JobFolder], None], module: str, description: str | None) -> int:
    """The command line of a stage: `python -m MODULE JOB`; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("job", type=Path, help="the job's folder")
    try:
        stage(JobFolder(parser.parse_args().job))
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
