"""Contenders that train: whole updates of fairseq's trainer at one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer import TransformerModelBase
from fairseq.trainer import Trainer
from omegaconf import DictConfig, open_dict
from torch import Tensor

import gqa_fairseq.models
import gqa_fairseq.tasks  # noqa: F401  a training command names what these register
from experiments.engines.stock import STOCK, stock_model
from experiments.errors import ExperimentError
from experiments.measure.decoding import SEED, check_architecture
from experiments.measure.loop import Competitor
from experiments.measure.request import TRAINER, RequestedContender, with_positions
from experiments.measure.workloads import random_sources
from experiments.records.measurement import Contender, TrainingText, TrainingUpdates
from gqa_fairseq.architecture import Architecture

Sample = dict[str, Any]  # a batch as fairseq's loader makes it
Updates = TrainingUpdates | TrainingText


def competitors(
    contenders: Sequence[RequestedContender],
    trainers: Sequence[str],
    workload: Updates,
    batches: list[Sample] | None,
) -> list[Competitor]:
    """Every contender with each of `trainers` that can have its architecture."""
    found: list[Competitor] = []
    for asked in contenders:
        for trainer in trainers:
            if trainer == "products":
                found.append(Products(asked, workload, batches))
            elif trainer == TRAINER or STOCK.refusal(asked.architecture, "cpu", "float32") is None:
                found.append(Training(asked, workload, trainer, batches))
    return found


class Training(Competitor):
    """fairseq's trainer with the options of a job's training command, in this one process.

    Weights are random: the time of an update does not depend on them. Nothing is saved.
    `trainer` "stock" has fairseq's own model, with the same weights, its loss and its Adam.

    Raises:
        ExperimentError: the command builds another architecture.
    """

    def __init__(
        self,
        asked: RequestedContender,
        workload: Updates,
        trainer: str = TRAINER,
        batches: list[Sample] | None = None,
    ) -> None:
        self.contender = _contender(asked, trainer)
        architecture = asked.architecture
        if isinstance(workload, TrainingUpdates):
            longest = max(workload.source_tokens, workload.target_tokens)
            architecture = with_positions(architecture, longest)
        cfg = _config(asked, architecture)
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(SEED)
        model = task.build_model(cfg.model)
        check_architecture(model, architecture, "the training command")
        if trainer == "stock":
            with open_dict(cfg):
                cfg.criterion._name, cfg.optimizer._name = "label_smoothed_cross_entropy", "adam"
            model = stock_model(TransformerModelBase, model, task.target_dictionary)
        self.trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        self.trainer.begin_epoch(1)
        if batches is None:
            assert isinstance(workload, TrainingUpdates)
            batches = [_fixed_batch(workload, task.target_dictionary)]
        self.batches = batches

    def run(self) -> None:
        for batch in self.batches:
            self.trainer.train_step([batch])

    def tokens(self) -> int:
        return sum(batch["ntokens"] for batch in self.batches)


class Products(Competitor):
    """The matrix products of updates and nothing else: what no training is faster than.

    Each product has its two gradients. Padding is not multiplied; queries, keys and values of one
    input are one product. Attention's own products are left out: they are few at these lengths.
    """

    def __init__(
        self,
        asked: RequestedContender,
        workload: Updates,
        batches: list[Sample] | None,
    ) -> None:
        self.contender = _contender(asked, "products")
        if batches is None:
            assert isinstance(workload, TrainingUpdates)
            rows = [(workload.batch * n) for n in (workload.source_tokens, workload.target_tokens)]
            self._rows = [(rows[0], rows[1])]
        else:
            self._rows = [(_source_tokens(batch), batch["ntokens"]) for batch in batches]
        self._shapes = _products(asked.architecture)
        self._memory: dict[tuple[str, int, int], Tensor] = {}
        # As fairseq's trainer chooses them.
        common = _config(asked, asked.architecture).common
        is_cuda = torch.cuda.is_available() and not common.cpu
        self._device = torch.device("cuda" if is_cuda else "cpu")
        self._dtype = torch.float16 if common.fp16 else torch.float32

    def run(self) -> None:
        for source, target in self._rows:
            for is_source, inputs, outputs in self._shapes:
                rows = source if is_source else target
                x, d_x = self._of("x", rows, inputs), self._of("d_x", rows, inputs)
                y = self._of("y", rows, outputs)
                weight, d_weight = (self._of(name, outputs, inputs) for name in ("w", "d_w"))
                torch.mm(x, weight.t(), out=y)
                torch.mm(y, weight, out=d_x)
                torch.mm(y.t(), x, out=d_weight)

    def _of(self, name: str, rows: int, width: int) -> Tensor:
        """Memory that is there already, as an allocator keeps it: [rows, width]."""
        most = max(max(pair) for pair in self._rows)
        key = (name, rows if name in ("w", "d_w") else most, width)
        if key not in self._memory:
            self._memory[key] = torch.zeros(key[1:], device=self._device, dtype=self._dtype)
        return self._memory[key][:rows]

    def tokens(self) -> int:
        return sum(target for _, target in self._rows)


def real_updates(
    asked: RequestedContender, name: str, count: int
) -> tuple[TrainingText, list[Sample]]:
    """`count` of the training command's own batches, evenly spread over those of an epoch.

    Raises:
        ExperimentError: the text cannot be read.
    """
    cfg = _config(asked, asked.architecture)
    task = tasks.setup_task(cfg.task)
    try:
        # As fairseq's trainer says that it is training.
        task.load_dataset("train", combine=True, data_selector=None, epoch=1)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"the training text cannot be read: {error}") from error
    dataset = task.dataset("train")
    found = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=cfg.dataset.max_tokens)
    count = min(count, len(found))
    chosen = [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
    batches = [dataset.collater([dataset[i] for i in batch]) for batch in chosen]
    workload = TrainingText(
        name=name,
        updates=count,
        sentences=sum(batch["nsentences"] for batch in batches),
        source_tokens=sum(map(_source_tokens, batches)),
        target_tokens=sum(batch["ntokens"] for batch in batches),
    )
    return workload, batches


def _contender(asked: RequestedContender, trainer: str) -> Contender:
    return Contender(
        architecture=asked.architecture,
        engine=trainer,
        weights="random",
        jobs=tuple(asked.jobs),
    )


def _config(asked: RequestedContender, architecture: Architecture) -> DictConfig:
    return one_process_config(
        asked.training_command,
        {
            "--max-source-positions": architecture.max_source_positions,
            "--max-target-positions": architecture.max_target_positions,
        },
    )


def _fixed_batch(workload: TrainingUpdates, dictionary: Any) -> Sample:
    """Random sentences of the same lengths."""
    net_input = random_sources(dictionary, workload.batch, workload.source_tokens)
    target = random_sources(dictionary, workload.batch, workload.target_tokens)["src_tokens"]
    return {
        "id": torch.arange(workload.batch),
        "nsentences": workload.batch,
        "ntokens": target.numel(),
        "net_input": {**net_input, "prev_output_tokens": target.roll(1, dims=1)},
        "target": target,
    }


def _source_tokens(batch: Sample) -> int:
    return int(batch["net_input"]["src_lengths"].sum())


def _products(own: Architecture) -> list[tuple[bool, int, int]]:
    """Of a forward pass: whether rows are the source's, inputs and outputs."""
    C = own.d_model
    encoder, decoder = (
        (heads.num_heads * heads.head_dim, 2 * heads.num_kv_heads * heads.head_dim)
        for heads in (own.encoder_heads, own.decoder_heads)
    )
    found = own.encoder_layers * [
        (True, C, sum(encoder)),
        (True, encoder[0], C),
        (True, C, own.encoder_d_ff),
        (True, own.encoder_d_ff, C),
    ]
    found += own.decoder_layers * [
        (False, C, sum(decoder)),
        (False, decoder[0], C),
        (False, C, decoder[0]),
        (True, C, decoder[1]),
        (False, decoder[0], C),
        (False, C, own.decoder_d_ff),
        (False, own.decoder_d_ff, C),
    ]
    return [*found, (False, C, own.vocab_size)]


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
