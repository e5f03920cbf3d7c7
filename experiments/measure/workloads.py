"""What contenders work on: random sources of fixed lengths, or the test set of a corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from fairseq.data import Dictionary
from torch import Tensor

from experiments.engines.engine import Inputs
from experiments.errors import ExperimentError
from experiments.measure.request import RequestedText
from experiments.metrics import METRICS
from experiments.records.measurement import FixedLengths
from experiments.records.storage import read_lines


def fixed_inputs(workload: FixedLengths, dictionary: Dictionary) -> Inputs:
    """One batch of random sources; the search ends each sentence at the forced length.

    A hypothesis of n - 1 tokens and the end of the sentence takes n steps, no more, no less.
    """
    last = workload.target_tokens - 1
    sample = random_sources(dictionary, workload.batch, workload.source_tokens)
    limits = {"beam_size": workload.beam, "max_len_b": last, "min_len": last}
    return Inputs([sample], limits, workload.target_tokens, workload.max_positions)


def random_sources(dictionary: Dictionary, batch: int, tokens: int) -> dict[str, Tensor]:
    """Unpadded sources [batch, tokens] of the dictionary's ordinary symbols, always the same."""
    generator = torch.Generator().manual_seed(1)
    first, end = dictionary.nspecial, len(dictionary)
    source = torch.randint(first, end, (batch, tokens), generator=generator)
    source[:, -1] = dictionary.eos()
    return {"src_tokens": source, "src_lengths": torch.full((batch,), tokens)}


@dataclass
class Text:
    """A test set in batches of neighbours in length, longest first.

    `bleu` scores the best hypotheses, one a sentence in the order of the batches (0 to 100, with
    sacrebleu's tokenizer of the target language).
    """

    asked: RequestedText
    batches: list[dict[str, Tensor]]
    bleu: Callable[[list[list[int]]], float]

    @property
    def sentences(self) -> int:
        return sum(len(batch["src_lengths"]) for batch in self.batches)

    @property
    def source_tokens(self) -> int:
        return sum(int(batch["src_lengths"].sum()) for batch in self.batches)

    def inputs(self, beam: int, max_positions: int) -> Inputs:
        limits = {
            "beam_size": beam,
            "len_penalty": self.asked.length_alpha,
            "max_len_a": self.asked.max_len_a,
            "max_len_b": self.asked.max_len_b,
        }
        return Inputs(self.batches, limits, None, max_positions)


def load_text(asked: RequestedText) -> Text:
    """The test set; raises ExperimentError where it cannot be read."""
    dataset, dictionary = _test_set(asked)
    # Longest first, so that a memory that is too small shows at once.
    order = sorted(range(len(dataset)), key=lambda i: (-dataset.src_sizes[i], i))
    groups = [order[start : start + asked.batch] for start in range(0, len(order), asked.batch)]
    found = [dataset.collater([dataset[i] for i in group]) for group in groups]
    folder = Path(asked.data)
    path = folder / "text" / f"test.{asked.target_lang}"
    try:
        lines = read_lines(path)
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(lines) != len(dataset):
        raise ExperimentError(
            f"{path} has {len(lines)} lines but {len(dataset)} binarized ones (prepare the data "
            "again)"
        )
    references = [lines[i] for batch in found for i in batch["id"].tolist()]
    scorer = METRICS["bleu"].scorer(asked.target_lang)

    def bleu(best: list[list[int]]) -> float:
        texts = [dictionary.string(tokens).split(" ") for tokens in best]
        return scorer.corpus_score(pieces.decode(texts), [references]).score

    inputs = [batch["net_input"] for batch in found]
    batches = [{key: batch[key] for key in ("src_tokens", "src_lengths")} for batch in inputs]
    return Text(asked, batches, bleu)


def _test_set(asked: RequestedText) -> tuple[Any, Dictionary]:
    from gqa_fairseq.tasks.gqa_translation import (
        GroupedQueryTranslationConfig,
        GroupedQueryTranslationTask,
    )

    folder = Path(asked.data) / "bin"
    config = GroupedQueryTranslationConfig(
        data=str(folder),
        source_lang=asked.source_lang,
        target_lang=asked.target_lang,
        # fairseq takes these from other sections of its config, which are not here.
        dataset_impl=None,
        train_subset="train",
        required_seq_len_multiple=1,
    )
    try:
        task = GroupedQueryTranslationTask.setup_task(config)
        task.load_dataset("test")
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{folder}: no test set that can be read: {error}") from error
    return task.dataset("test"), task.target_dictionary
