"""What a measurement needs of a trained job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.config import DecodeConfig
from experiments.errors import ExperimentError
from experiments.stages.folders import JobFolder
from gqa_fairseq.architecture import Architecture


@dataclass(frozen=True)
class JobFiles:
    """Paths hold wherever the folder is and whatever the current folder is.

    `data` has bin/, text/ and spm.model. `id` is the job's.
    """

    name: str
    id: str
    architecture: Architecture
    checkpoint: Path
    data: Path
    decode: DecodeConfig
    source_lang: str
    target_lang: str


def job_files(folder: Path) -> JobFiles:
    """The files of a finished job; raises ExperimentError, one line, where one is missing.

    Data that is not what the model was trained on is refused.
    """
    job = JobFolder(folder)
    record, data, config = job.record(), job.data(), job.config()
    checkpoint = job.checkpoint()
    if not checkpoint.exists():
        raise ExperimentError(f"{checkpoint}: the job's model is not there (restore the file)")
    return JobFiles(
        name=f"{record.job.experiment}/{record.name}",
        id=record.job.id,
        architecture=record.architecture,
        checkpoint=checkpoint,
        data=data.path,
        decode=config.decode,
        source_lang=data.source_lang,
        target_lang=data.target_lang,
    )
