"""What a sweep will do, said before it does it: its stages, their commands, what training takes.

Nothing here needs data, torch or fairseq.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config import SuiteConfig
from experiments.records.measurement import MEASUREMENT_NAME
from experiments.stages.corpus import prepare_command
from experiments.stages.folders import RESULT_NAME, DataFolder, ModelFolder
from experiments.stages.graph import Job, Stage
from experiments.stages.training.command import train_command
from experiments.stages.uptraining.convert import convert_command
from experiments.stages.uptraining.uptrain import uptrain_command
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


def describe_uptraining(job: Job) -> list[str]:
    """Lines that say what training on will take, and where the model is kept."""
    points = job.config.uptrain.updates(job.parent_updates)
    shares = ", ".join(f"{alpha:g}" for alpha in job.config.uptrain.points)
    return [
        f"{points[-1]:,} updates after the parent's {job.parent_updates:,}; the model is kept "
        f"after {', '.join(f'{updates:,}' for updates in points)} (alpha {shares})",
        f"{job.architecture.parameters:,} parameters, d_ff {job.architecture.encoder_d_ff} "
        f"(encoder) and {job.architecture.decoder_d_ff} (decoder), as the parent has",
    ]


def print_plan(jobs: Sequence[Job], stages: Sequence[Stage]) -> None:
    """Print each stage once, with its command, ready for a shell, and whether it is done."""
    by_stage = {stage.folder: job for job in jobs for stage in job.stages}
    for stage in stages:
        job = by_stage.get(stage.folder, jobs[0])
        done = (stage.folder / _result_name(stage)).exists()
        print(f"# {stage.title}{': done' if done else ''}")
        notes = []
        if stage.name == "train":
            notes = describe(trained_config(job))
        if stage.name == "uptrain":
            notes = describe_uptraining(job)
        for line in notes:
            print(f"#   {line}")
        print(shlex.join(command_of(stage, job)))


def trained_config(job: Job) -> SuiteConfig:
    """The config of what a job's train stage trains: of an uptrained model its parent."""
    return job.config.multi_head if job.method else job.config


def command_of(stage: Stage, job: Job) -> list[str]:
    """The command that does a stage's work; the suite writes what it reads from a file.

    That of an uptrain stage runs to its last point; the work stops at each before.
    """
    if stage.name == "prepare":
        return prepare_command(job.config.data, stage.folder)
    spec, folder = job.config.data, ModelFolder(stage.folder)
    binarized = DataFolder(job.prepare.folder, spec.source_lang, spec.target_lang).binarized
    if stage.name == "train":
        return train_command(trained_config(job), binarized, folder.checkpoints)
    if stage.name == "convert":
        return convert_command(job, _parent_checkpoint(job), folder)
    if stage.name == "uptrain":
        converted = ModelFolder(stage.parents[0].folder).converted
        points = job.config.uptrain.updates(job.parent_updates)
        return uptrain_command(job, binarized, folder.checkpoints, converted, points[-1])
    if stage.name == "evaluate":
        return [sys.executable, "-m", "experiments.stages.evaluation", str(stage.folder)]
    files = [str(stage.folder / name) for name in ("request.json", MEASUREMENT_NAME)]
    return [sys.executable, "-m", "experiments.measure", *files]


def _parent_checkpoint(job: Job) -> Path:
    """What is converted."""
    if job.parent:
        return job.parent.path
    trained = ModelFolder(job.train.folder)
    return trained.average if job.config.train.average_checkpoints else trained.last


def _result_name(stage: Stage) -> str:
    return "manifest.json" if stage.name == "prepare" else RESULT_NAME
