"""Contenders that train: whole updates of fairseq's trainer at one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from omegaconf import DictConfig, open_dict

import gqa_fairseq.models
import gqa_fairseq.tasks  # noqa: F401  a training command names what these register
from experiments.errors import ExperimentError
from experiments.measure.decoding import SEED, check_architecture
from experiments.measure.loop import Competitor
from experiments.measure.request import TRAINER, RequestedContender, with_positions
from experiments.measure.workloads import random_sources
from experiments.records.measurement import Contender, TrainingUpdates


class Training(Competitor):
    """fairseq's trainer with the options of a job's training command, in this one process.

    Weights are random: the time of an update does not depend on them. Nothing is saved.

    Raises:
        ExperimentError: the command builds another architecture.
    """

    def __init__(self, asked: RequestedContender, workload: TrainingUpdates) -> None:
        self.contender = Contender(
            architecture=asked.architecture,
            engine=TRAINER,
            weights="random",
            jobs=tuple(asked.jobs),
        )
        longest = max(workload.source_tokens, workload.target_tokens)
        architecture = with_positions(asked.architecture, longest)
        cfg = one_process_config(
            asked.training_command,
            {
                "--max-source-positions": architecture.max_source_positions,
                "--max-target-positions": architecture.max_target_positions,
            },
        )
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(SEED)
        model = task.build_model(cfg.model)
        check_architecture(model, architecture, "the training command")
        self.trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        self.trainer.begin_epoch(1)
        dictionary = task.target_dictionary
        net_input = random_sources(dictionary, workload.batch, workload.source_tokens)
        target = random_sources(dictionary, workload.batch, workload.target_tokens)["src_tokens"]
        self.sample: dict[str, Any] = {
            "id": torch.arange(workload.batch),
            "nsentences": workload.batch,
            "ntokens": target.numel(),
            "net_input": {**net_input, "prev_output_tokens": target.roll(1, dims=1)},
            "target": target,
        }

    def run(self) -> None:
        self.trainer.train_step([self.sample])

    def tokens(self) -> int:
        return self.sample["target"].numel()


def one_process_config(command: Sequence[str], extra: Mapping[str, int]) -> DictConfig:
    """fairseq's own config of a training command with `extra` options, for one process.

    Args:
        command: `fairseq-train` or what stands for it, then its options.
        extra: options that replace those of the command.
    """
    replaced = {**extra, "--distributed-world-size": 1}
    arguments = [*command[1:], *(str(part) for option in replaced.items() for part in option)]
    try:
        parsed = options.parse_args_and_arch(options.get_training_parser(), arguments)
    except SystemExit as error:
        raise ExperimentError(f"the training command is refused by fairseq: {error}") from error
    cfg = convert_namespace_to_omegaconf(parsed)
    with open_dict(cfg):
        cfg.distributed_training.distributed_init_method = None
        cfg.distributed_training.distributed_rank = 0
    return cfg
