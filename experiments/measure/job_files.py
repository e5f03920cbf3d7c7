"""What a measurement needs of a trained job: a stand-in until job folders have their layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.records.record import RECORD_NAME, read_record
from gqa_fairseq.architecture import Architecture


@dataclass(frozen=True)
class JobFiles:
    """Paths hold wherever the folder is and whatever the current folder is.

    `data` has bin/, text/ and spm.model; `decode` has `beam`, `batch_sentences`, `length_alpha`,
    `max_len_a` and `max_len_b`. `id` is the job's.
    """

    name: str
    id: str
    architecture: Architecture
    checkpoint: Path
    data: Path
    decode: dict[str, Any]
    source_lang: str
    target_lang: str


def job_files(folder: Path) -> JobFiles:
    """The files of a finished job; raises ExperimentError, one line, where one is missing."""
    record = read_record(folder / RECORD_NAME)
    if record.evaluation is None:
        raise ExperimentError(f"{folder}: the job has no trained model: its training diverged")
    folder = folder.resolve()
    average = folder / "checkpoints/checkpoint_average.pt"
    checkpoint = average if average.exists() else folder / "checkpoints/checkpoint_last.pt"
    data = folder / "data"
    for path in (checkpoint, data):
        if not path.exists():
            raise ExperimentError(f"{path}: is not there")
    languages = record.config["data"]
    return JobFiles(
        name=f"{record.job.experiment}/{record.name}",
        id=record.job.id,
        architecture=record.architecture,
        checkpoint=checkpoint,
        data=data,
        decode=record.config["decode"],
        source_lang=languages.get("source_lang", "en"),
        target_lang=languages.get("target_lang", "de"),
    )
