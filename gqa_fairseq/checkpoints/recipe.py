"""How a checkpoint was trained, so that its training can go on: what fairseq keeps of the options.

    python -m gqa_fairseq.checkpoints.recipe CHECKPOINT

prints as JSON: its updates, its model, and the options of fairseq-train that make the same updates.
Left out is what belongs to a machine and to one run: devices, files, what is saved, shown and
validated, and where the training ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq import registry, tasks
from fairseq.data import data_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import CommonConfig, DatasetConfig, OptimizationConfig
from fairseq.models.transformer import TransformerModelBase

import gqa_fairseq.tasks  # noqa: F401  registers the task that a checkpoint may name
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.checkpoints.allowlist import read_state
from gqa_fairseq.checkpoints.parent import build_parent, plugin_options, upgraded
from gqa_fairseq.decoding.rules import OWN_OPTIONS

# Both make the same updates; fairseq's drops lines of a validation.
TASK, TASKS = "gqa_translation", ("translation", "gqa_translation")
# The training log gives a loss without smoothing, which dev and test are compared by.
CRITERIA = ("label_smoothed_cross_entropy", "gqa_label_smoothed_cross_entropy")
# Others end with their training: there is nothing to continue.
SCHEDULES = ("inverse_sqrt", "fixed")

# By group of the config. An option is kept unless it is left out here.
_LEFT_OUT = {
    "optimization": {"max_epoch", "max_update", "stop_time_hours", "update_freq"},
    "dataset": {
        *("num_workers", "data_buffer_size", "train_subset", "valid_subset", "gen_subset"),
        *("combine_valid_subsets", "ignore_unused_valid_subsets", "disable_validation"),
        *("validate_interval", "validate_interval_updates", "validate_after_updates"),
        *("fixed_validation_seed", "max_valid_steps", "num_shards", "shard_id"),
    },
    "task": {
        *("data", "source_lang", "target_lang", "eval_bleu", "eval_bleu_args", "eval_bleu_detok"),
        *("eval_bleu_detok_args", "eval_tokenized_bleu", "eval_bleu_remove_bpe"),
        *("eval_bleu_print_samples", "search", "int8"),
        *(option.name for option in OWN_OPTIONS),
    },
}
# Of what is common to all of fairseq's commands.
_COMMON = {
    *("seed", "min_loss_scale", "threshold_loss_scale", "fp16_init_scale", "fp16_scale_window"),
    *("fp16_scale_tolerance", "fp16_no_flatten_grads", "memory_efficient_fp16"),
}


def recipe(state: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a checkpoint; its keys are those of the command's JSON.

    Args:
        state: what torch.load gives; it is not changed.

    Raises:
        ValueError: one line that says why its training cannot go on.
    """
    state = upgraded(state)
    cfg, weights = state["cfg"], state["model"]
    for group, known in (("task", TASKS), ("criterion", CRITERIA), ("lr_scheduler", SCHEDULES)):
        if cfg[group]._name not in known:
            raise ValueError(
                f"its {group} is {cfg[group]._name}, and a training goes on with "
                f"{' or '.join(known)}"
            )
    parent = build_parent(cfg.model, weights)
    history = state.get("optimizer_history") or [{}]
    updates = history[-1].get("num_updates")
    if not updates:
        raise ValueError("it does not say how many updates it has had")
    batches = cfg.distributed_training.distributed_world_size * cfg.optimization.update_freq[-1]
    source, target = _languages(cfg.task)
    return {
        "updates": updates,
        "source_lang": source,
        "target_lang": target,
        "data": cfg.task.data,
        "seed": cfg.common.seed,
        "batches_per_update": batches,
        "options": _options(cfg),
        "model": plugin_options(parent),
        "architecture": asdict(_architecture(parent)),
        "source_words": parent.encoder.embed_tokens.num_embeddings,
        "target_words": parent.decoder.embed_tokens.num_embeddings,
    }


def _languages(task: Any) -> tuple[str | None, str | None]:
    """Source and target; fairseq infers what is not given from its data, which may be gone."""
    if task.source_lang is None or task.target_lang is None:
        folder = Path(task.data.split(os.pathsep)[0])
        return data_utils.infer_language_pair(folder) if folder.is_dir() else (None, None)
    return task.source_lang, task.target_lang


def _options(cfg: Any) -> list[str]:
    """Words of fairseq-train's command line."""
    common = set(CommonConfig.__dataclass_fields__) - _COMMON
    words = [
        *_words(cfg.common, CommonConfig(), common),
        *_words(cfg.dataset, DatasetConfig(), _LEFT_OUT["dataset"]),
        *_words(cfg.optimization, OptimizationConfig(), _LEFT_OUT["optimization"]),
        *("--task", TASK),
        *_words(cfg.task, tasks.TASK_DATACLASS_REGISTRY[cfg.task._name](), _LEFT_OUT["task"]),
    ]
    for group in ("criterion", "optimizer", "lr_scheduler"):
        name = cfg[group]._name
        known = registry.REGISTRIES[group]["dataclass_registry"][name]()
        words += [f"--{group.replace('_', '-')}", name, *_words(cfg[group], known, set())]
    return words


def _words(given: Any, usual: FairseqDataclass, left_out: set[str]) -> list[str]:
    """The options of a group that differ from fairseq's defaults."""
    words = []
    for name in usual._get_all_attributes():
        default = usual._get_default(name)
        # An option that another group has is taken from there.
        is_linked = isinstance(default, str) and default.startswith("${")
        value = given.get(name, default)
        if name.startswith("_") or name in left_out or is_linked or value in (None, default):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if not isinstance(value, bool):
            words.append(str(value))
    return words


def _architecture(parent: TransformerModelBase) -> Architecture:
    """The model's numbers; raises ValueError for what an `Architecture` does not describe."""
    words = parent.decoder.embed_tokens.num_embeddings
    built = Architecture.from_fairseq_options("parent", plugin_options(parent), words)
    counted = sum(parameter.numel() for parameter in parent.parameters())
    if counted != built.parameters:
        raise ValueError(
            f"it has {counted:,} parameters where its widths make {built.parameters:,}: an "
            "architecture of this suite has one vocabulary, and the same norms and biases on both "
            "sides"
        )
    return built


def main(arguments: list[str] | None = None) -> int:
    """Print how a checkpoint was trained; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gqa_fairseq.checkpoints.recipe", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path)
    path = parser.parse_args(arguments).checkpoint
    try:
        state = read_state(path)
        try:
            found = recipe(state)
        except ValueError as error:
            raise ValueError(f"{path} cannot be trained on: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).split("\n")[0]
        print(f"error: {first}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
