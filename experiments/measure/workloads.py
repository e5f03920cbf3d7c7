"""What engines are compared on: fixed lengths with random weights, or a trained job's test set.

A specification is small and can be sent to another process; loading it makes the batches and can
build the model as often as there are engines, always with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import sentencepiece
import torch
from fairseq.data import Dictionary
from sacrebleu.metrics import BLEU
from torch import Tensor

from experiments.comparison import PAPER_POSITIONS, WorkloadInfo
from experiments.corpus import read_lines
from experiments.errors import ExperimentError
from experiments.evaluate import batches, load_trained
from experiments.layout import TARGET, JobFolder, data_folder
from gqa_fairseq.architectures import SHAPES
from gqa_fairseq.model import GroupedQueryTransformerConfig, GroupedQueryTransformerModel


@dataclass
class Workload:
    """Batches of sources, the search's limits, and the model.

    `batches` are fairseq's `net_input`: src_tokens [B, S] padded on the left, src_lengths [B].
    `search` are arguments of SequenceGenerator. `build_model` takes the kv heads, which must be
    `num_kv_heads` unless that is None: then any number will do. `bleu` scores the best hypotheses,
    one a sentence in the order of the batches (0 to 100, tokenizer 13a); None without references.
    """

    info: WorkloadInfo
    dictionary: Dictionary
    batches: list[dict[str, Tensor]]
    search: dict[str, Any]
    num_kv_heads: int | None
    build_model: Callable[[int], GroupedQueryTransformerModel]
    bleu: Callable[[list[list[int]]], float] | None = None


class WorkloadSpec(Protocol):
    """Something that can be loaded here, and in a fresh process."""

    def load(self) -> Workload: ...


@dataclass(frozen=True)
class FixedLengths:
    """`batch` random sources of `source` tokens, decoded to exactly `target` tokens each.

    Weights are random: time does not depend on them. A shape gets the paper's 256 positions, or as
    many as the longer side needs.
    """

    size: str
    vocab_size: int
    batch: int
    source: int
    target: int
    beam: int

    def load(self) -> Workload:
        dictionary = Dictionary()
        for index in range(self.vocab_size):
            dictionary.add_symbol(f"piece{index}")
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch, self.source)
        source = torch.randint(dictionary.nspecial, len(dictionary), shape, generator=generator)
        source[:, -1] = dictionary.eos()
        lengths = torch.full((self.batch,), self.source)
        positions = max(PAPER_POSITIONS, self.source, self.target)
        info = WorkloadInfo(
            model=self.size,
            weights="random",
            num_heads=SHAPES[self.size]["encoder_attention_heads"],
            max_positions=positions,
            beam=self.beam,
            batch=self.batch,
            sentences=self.batch,
            source_tokens=source.numel(),
            target_tokens=self.target,
        )
        task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)

        def build(num_kv_heads: int) -> GroupedQueryTransformerModel:
            torch.manual_seed(0)
            options = SHAPES[self.size] | {
                "num_kv_heads": num_kv_heads,
                "max_source_positions": positions,
                "max_target_positions": positions,
            }
            config = GroupedQueryTransformerConfig(**options)
            return GroupedQueryTransformerModel.build_model(config, task)

        last = self.target - 1  # and the end of the sentence
        limits = {"beam_size": self.beam, "max_len_b": last, "min_len": last}
        sample = {"src_tokens": source, "src_lengths": lengths}
        return Workload(info, dictionary, [sample], limits, None, build)


@dataclass(frozen=True)
class JobText:
    """The test set of a trained job, with the job's weights, batches and length limits."""

    job: Path
    beam: int | None  # None: the job's own

    def load(self) -> Workload:
        """Raises ExperimentError where the job has no checkpoint or its data is gone."""
        job = JobFolder(self.job)
        config = job.read_config()
        data = data_folder(config)
        _, task = load_trained(job, data)
        try:
            task.load_dataset("test")
        except (OSError, ValueError) as error:
            raise ExperimentError(
                f"{data.binarized}: no test set that can be read: {error}"
            ) from error
        found = list(batches(task.dataset("test"), config.decode.batch_sentences))
        samples = [batch["net_input"] for batch in found]
        inputs = [{key: sample[key] for key in ("src_tokens", "src_lengths")} for sample in samples]
        lengths = torch.cat([sample["src_lengths"] for sample in inputs])
        beam = config.decode.beam if self.beam is None else self.beam
        info = WorkloadInfo(
            model=f"{config.experiment_name}/{job.path.resolve().name}",
            weights="trained",
            num_heads=config.model.num_heads,
            max_positions=config.model.max_positions,
            beam=beam,
            batch=config.decode.batch_sentences,
            sentences=len(lengths),
            source_tokens=int(lengths.sum()),
            target_tokens=None,
        )
        limits = {
            "beam_size": beam,
            "len_penalty": config.decode.length_alpha,
            "max_len_a": config.decode.max_len_a,
            "max_len_b": config.decode.max_len_b,
        }

        def build(num_kv_heads: int) -> GroupedQueryTransformerModel:
            model, _ = load_trained(job, data)
            return model

        lines = read_lines(data.text("test", TARGET))
        references = [lines[i] for batch in found for i in batch["id"].tolist()]
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces_model))

        def bleu(best: list[list[int]]) -> float:
            texts = [task.target_dictionary.string(tokens).split(" ") for tokens in best]
            return BLEU(tokenize="13a").corpus_score(pieces.decode(texts), [references]).score

        own_heads = config.attention.num_kv_heads
        return Workload(info, task.target_dictionary, inputs, limits, own_heads, build, bleu)
