"""What a sweep will do, said before it does it: its stages, their commands, what training takes.

Nothing here needs data, torch or fairseq.
"""

import shlex
import sys
from collections.abc import Sequence

from experiments.config import SuiteConfig
from experiments.records.measurement import MEASUREMENT_NAME
from experiments.stages.corpus import prepare_command
from experiments.stages.folders import RESULT_NAME, DataFolder, ModelFolder
from experiments.stages.graph import Job, Stage
from experiments.stages.training.command import train_command
from gqa_fairseq.costs import BYTES_PER_PARAMETER, training_memory_bytes

GIB = 2**30


def describe(config: SuiteConfig) -> list[str]:
    """Lines that say what training will take."""
    train, hardware, architecture = config.train, config.hardware, config.architecture
    state, activations = training_memory_bytes(
        architecture, hardware.precision, config.padded_tokens_per_batch
    )
    return [
        f"{train.max_updates:,} updates of {train.tokens_per_update:,} target tokens, "
        f"{train.max_updates * train.tokens_per_update:,} in all; an update is "
        f"{config.update_freq} x {config.target_tokens_per_batch:,.0f} on {config.world_size} "
        f"{hardware.device}",
        f"{architecture.parameters:,} parameters, d_ff {architecture.encoder_d_ff} (encoder) and "
        f"{architecture.decoder_d_ff} (decoder)",
        f"memory of a device: about {state / GIB:.2g} GiB for parameters, gradients and Adam's "
        f"state ({BYTES_PER_PARAMETER[hardware.precision]} bytes a parameter), up to about "
        f"{activations / GIB:.2g} GiB for activations",
    ]


def print_plan(jobs: Sequence[Job], stages: Sequence[Stage]) -> None:
    """Print each stage once, with its command, ready for a shell, and whether it is done."""
    by_stage = {stage.key: job for job in jobs for stage in job.stages}
    for stage in stages:
        job = by_stage.get(stage.key, jobs[0])
        done = (stage.folder / _result_name(stage)).exists()
        print(f"# {stage.title}{': done' if done else ''}")
        if stage.name == "train":
            for line in describe(job.config):
                print(f"#   {line}")
        print(shlex.join(command_of(stage, job)))


def command_of(stage: Stage, job: Job) -> list[str]:
    """The command that does a stage's work; the suite writes what it reads from a file."""
    if stage.name == "prepare":
        return prepare_command(job.config.data, stage.folder)
    if stage.name == "train":
        data = job.config.data
        binarized = DataFolder(job.prepare.folder, data.source_lang, data.target_lang).binarized
        return train_command(job.config, binarized, ModelFolder(stage.folder).checkpoints)
    if stage.name == "evaluate":
        return [sys.executable, "-m", "experiments.stages.evaluation", str(stage.folder)]
    files = [str(stage.folder / name) for name in ("request.json", MEASUREMENT_NAME)]
    return [sys.executable, "-m", "experiments.measure", *files]


def _result_name(stage: Stage) -> str:
    return "manifest.json" if stage.name == "prepare" else RESULT_NAME
