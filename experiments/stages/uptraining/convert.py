"""The convert stage: a trained model gets the variant's heads (gqa_fairseq.checkpoints.convert)."""

import sys
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.progress import StageView
from experiments.stages.folders import Converted, DataFolder, ModelFolder
from experiments.stages.graph import Job
from experiments.stages.process import run_command
from experiments.stages.runner import Attempt
from experiments.stages.training.run import check, keep_vocabulary


def convert_command(job: Job, checkpoint: Path, folder: ModelFolder) -> list[str]:
    """The command that converts `checkpoint` for a job, into a folder of its stage."""
    options = {
        "--num-kv-heads": job.architecture.num_kv_heads,
        "--placement": job.architecture.placement,
        "--method": job.config.uptrain.method,
        "--seed": job.config.seed,
        "--out": folder.converted,
    }
    command = [sys.executable, "-m", "gqa_fairseq.checkpoints.convert", str(checkpoint)]
    return [*command, *(str(word) for option in options.items() for word in option), "--force"]


def convert(attempt: Attempt, job: Job, data: DataFolder, checkpoint: Path) -> Converted:
    """Convert a checkpoint, and read the result again; raises ExperimentError when that fails."""
    folder = ModelFolder(attempt.folder)
    keep_vocabulary(folder, data, job.config)
    folder.checkpoints.mkdir(exist_ok=True)
    command, log = convert_command(job, checkpoint, folder), folder.log("convert")
    with StageView(attempt.stage.title) as view:
        try:
            ended = run_command(command, log, attempt.threads, view.status, attempt.lock)
        except ExperimentError as error:
            raise ExperimentError(f"conversion failed: {error}") from error
    attempt.seen(ended.peak_rss_bytes)
    found = check(attempt, folder.converted)
    if found.updates != job.parent_updates:
        raise ExperimentError(
            f"{checkpoint} has had {found.updates} updates, not {job.parent_updates} as its config "
            "says (give the checkpoint of its last update)"
        )
    return Converted(
        checkpoint=folder.converted.relative_to(folder.path).as_posix(),
        data_checksum=data.manifest().checksum,
        parent_updates=found.updates,
    )
