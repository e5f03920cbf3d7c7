"""The fairseq-train command of a config: a pure function of it, which records keep."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.config import HardwareConfig, SuiteConfig
from gqa_fairseq.architecture import Architecture

PLUGIN = Path(__file__).resolve().parents[3] / "gqa_fairseq"


def train_command(config: SuiteConfig, binarized: Path, checkpoints: Path) -> list[str]:
    """The fairseq-train command of a job: a pure function of its arguments.

    Between variants only the heads, both d_ff that pay for them, and --save-dir differ. Checkpoints
    are written at validations and at the end; no epoch's end adds one, so that the number of
    checkpoints does not depend on the corpus.
    """
    train, hardware, positions = config.train, config.hardware, config.model.max_positions
    prefix = "gqa_" if train.implementation == "gqa" else ""
    options: dict[str, object] = {
        "--user-dir": os.path.relpath(PLUGIN),
        "--task": "gqa_translation",
        "--source-lang": config.data.source_lang,
        "--target-lang": config.data.target_lang,
        "--arch": "gqa_transformer",
    }
    model_options, flags = options_of(config.architecture)
    options |= model_options
    options |= {
        "--dropout": train.dropout,
        "--attention-dropout": train.attention_dropout,
        "--activation-dropout": train.activation_dropout,
        "--criterion": f"{prefix}label_smoothed_cross_entropy",
        "--label-smoothing": train.label_smoothing,
        "--optimizer": f"{prefix}adam",
        "--adam-betas": str(train.adam_betas),
        "--weight-decay": train.weight_decay,
        "--clip-norm": train.clip_norm,
        "--lr": train.learning_rate,
        "--lr-scheduler": "inverse_sqrt",
        "--warmup-updates": train.warmup_updates,
        "--warmup-init-lr": 1e-7,
        "--max-update": train.max_updates,
        "--target-tokens-per-update": train.tokens_per_update,
        "--update-freq": config.update_freq,
        "--distributed-world-size": config.world_size,
        "--max-tokens": hardware.max_tokens_per_device,
        "--max-tokens-valid": max(config.padded_tokens_per_batch, positions),
        "--seed": config.seed,
        **saving_options(config, checkpoints),
    }
    if hardware.nodes > 1:
        # On a machine with GPUs fairseq starts one process for each, with ranks from this one on.
        options["--distributed-init-method"] = f"tcp://{hardware.master}"
        options["--distributed-rank"] = hardware.node_rank * hardware.devices
        if hardware.device == "cpu":
            options["--distributed-backend"] = "gloo"
            options["--ddp-backend"] = "legacy_ddp"
            flags.append("--distributed-no-spawn")
    command = ["fairseq-train", str(binarized)]
    return [*with_options(command, options), *flags, *machine_flags(hardware)]


def options_of(architecture: Architecture) -> tuple[dict[str, object], list[str]]:
    """fairseq's options of a model, and those that have no value."""
    given = {
        f"--{name.replace('_', '-')}": value
        for name, value in architecture.fairseq_options().items()
        if value is not False
    }
    flags = [option for option, value in given.items() if value is True]
    return {option: value for option, value in given.items() if value is not True}, flags


def saving_options(config: SuiteConfig, checkpoints: Path) -> dict[str, object]:
    """When to validate and to save, and what the log says."""
    train, never = config.train, 10**9
    return {
        "--validate-interval": never,
        "--validate-interval-updates": train.validate_every_updates,
        "--save-interval": never,
        "--save-interval-updates": train.validate_every_updates,
        "--keep-interval-updates": train.average_checkpoints or 1,
        "--save-dir": checkpoints,
        "--num-workers": 0,
        "--log-format": "json",
        "--log-interval": train.log_every_updates,
    }


def machine_flags(hardware: HardwareConfig) -> list[str]:
    """The device, and its precision; no epoch's end adds a checkpoint."""
    flags = ["--no-epoch-checkpoints"]
    if hardware.device == "cpu":
        flags.append("--cpu")
    if hardware.precision != "fp32":
        flags.append(f"--{hardware.precision}")
    return flags


def with_options(command: Sequence[str], options: Mapping[str, object]) -> list[str]:
    """The command with other values of its options; those that it lacks come last."""
    changed = list(command)
    for name, value in options.items():
        if name in changed:
            changed[changed.index(name) + 1] = str(value)
        else:
            changed += [name, str(value)]
    return changed
