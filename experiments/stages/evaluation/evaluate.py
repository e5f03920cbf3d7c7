"""Quality of a trained model: loss on dev, translations of dev and test and their scores.

Every line of dev and test counts: one that the model cannot take is an error, never skipped. A
subset of test is scored on its lines of test's translations.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sentencepiece
import torch
from fairseq import utils
from fairseq.data import LanguagePairDataset
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask

from experiments.config import DecodeConfig
from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of, sentence_statistics
from experiments.records.hypotheses import (
    Hypotheses,
    LineCounts,
    hypotheses_digest,
    write_hypotheses,
)
from experiments.records.parts import (
    MODEL_FREE,
    Evaluation,
    LengthPenalty,
    ModelFreeScore,
    ModelScore,
    search_name,
)
from experiments.records.storage import read_lines
from experiments.stages.corpus import read_subsets
from experiments.stages.evaluation.request import EvaluationRequest
from experiments.stages.evaluation.translation import (
    batches,
    load_trained,
    make_search,
    text_of,
    translate_batches,
)
from experiments.stages.folders import DataFolder

FAIRSEQ_NAMES = {"dev": "valid", "test": "test"}

# Which lines of a hypotheses file are scored under which name: a whole split, or a subset of it.
Parts = Mapping[str, Sequence[int]]


def evaluate(request: EvaluationRequest, hypotheses_folder: Path) -> Evaluation:
    """Translate and score; the translations go into `hypotheses_folder`.

    Raises ExperimentError when a line does not fit the model or the data lacks lines.
    """
    decode, data = request.decode, request.data
    model, task = load_trained(request.checkpoint, data.binarized)
    if request.device == "cuda":
        model.cuda()
    references = {split: read_lines(data.text(split, data.target_lang)) for split in FAIRSEQ_NAMES}
    datasets = {split: load_split(task, split, len(references[split])) for split in FAIRSEQ_NAMES}
    parts: dict[str, Parts] = {
        split: {split: range(len(lines))} for split, lines in references.items()
    }
    parts["test"] = {**parts["test"], **read_subsets(data, len(references["test"]))}
    print("dev loss", flush=True)
    nll, tokens = nll_nats(model, datasets["dev"], decode.batch_sentences)
    perplexity = perplexity_of(nll / tokens)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces_model))
    scores = []
    for split, beam, penalty in searches(decode):
        name = f"{split}.{search_name(beam, penalty)}"
        lines = translate(model, task, datasets[split], decode, beam, penalty, pieces, name)
        write_hypotheses(hypotheses_folder, Hypotheses(lines, []))  # whatever scoring does
        found = score_lines(lines, references[split], parts[split], data.target_lang)
        write_hypotheses(hypotheses_folder, Hypotheses(lines, found.counts))
        scores += [
            ModelScore(**score, beam=beam, length_penalty=penalty, length_alpha=decode.length_alpha)
            for score in found.scores
        ]
    return Evaluation(
        engine=decode.engine,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dev_nll_nats_per_token=nll / tokens,
        dev_perplexity=perplexity,
        dev_target_tokens=tokens,
        scores=scores,
        model_free=_model_free(data, references["test"], parts["test"], hypotheses_folder),
    )


def perplexity_of(nll_nats_per_token: float) -> float:
    """exp of the loss; raises ExperimentError unless both are finite numbers.

    A record holds no others, and what is translated with such a model is worth no time.
    """
    try:
        perplexity = math.exp(nll_nats_per_token)
    except OverflowError:
        perplexity = math.inf
    if not math.isfinite(perplexity):
        raise ExperimentError(
            f"the loss on dev is {nll_nats_per_token:g} nats/token: this model is no result, and "
            "nothing was translated (train it with a lower train.learning_rate)"
        )
    return perplexity


def searches(decode: DecodeConfig) -> list[tuple[str, int, LengthPenalty]]:
    """(split, beam, length penalty) of each translation, as Shazeer 2019 reports them.

    Greedy search stops at its first hypothesis: no penalty has anything to choose from, so one
    translation stands for all.
    """
    first, *_ = decode.length_penalties
    with_beam = [("test", decode.beam, penalty) for penalty in decode.length_penalties]
    return [("dev", 1, first), ("test", 1, first), *with_beam]


def load_split(task: FairseqTask, split: str, lines: int) -> LanguagePairDataset:
    """The binarized split; raises ExperimentError unless it has all lines of the text."""
    task.load_dataset(FAIRSEQ_NAMES[split])
    dataset = task.dataset(FAIRSEQ_NAMES[split])
    if len(dataset) != lines:
        raise ExperimentError(
            f"{split} has {lines} lines of text but {len(dataset)} binarized ones "
            "(prepare the data again)"
        )
    return dataset


@torch.no_grad()
def nll_nats(
    model: BaseFairseqModel, dataset: LanguagePairDataset, batch_sentences: int
) -> tuple[float, int]:
    """Negative log-likelihood of all targets in nats, and their tokens.

    No label smoothing; the end of a sentence is a token, as in fairseq. Summed in float64.
    """
    device = next(model.parameters()).device
    pad = dataset.tgt_dict.pad()
    total, tokens = 0.0, 0
    for batch in batches(dataset, batch_sentences):
        batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        log_probs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
        target = batch["target"]  # [B, T]
        nll = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)[target.ne(pad)]
        total += nll.double().sum().item()
        tokens += nll.numel()
    return total, tokens


def translate(
    model: BaseFairseqModel,
    task: FairseqTask,
    dataset: LanguagePairDataset,
    decode: DecodeConfig,
    beam: int,
    penalty: LengthPenalty,
    pieces: sentencepiece.SentencePieceProcessor,
    label: str,
) -> list[str]:
    """One detokenized line for each source, in the order of the dataset."""
    dictionary = task.target_dictionary
    search = make_search(model, dictionary, decode, beam, penalty)
    found: dict[int, str] = {}
    for batch in translate_batches(model, search, dataset, decode.batch_sentences):
        for index, hypotheses in batch.items():
            found[index] = text_of(hypotheses[0]["tokens"], dictionary, pieces)
        print(f"{label}: {len(found)}/{len(dataset)} lines", flush=True)
    # A missing or doubled sentence would fail here.
    return [found[index] for index in range(len(dataset))]


class Scored(msgspec.Struct, frozen=True):
    """Fields of a Score for each part and metric, and the counts of each line by metric."""

    scores: list[dict[str, Any]]
    counts: list[LineCounts]


def score_lines(
    hypotheses: list[str], references: list[str], parts: Parts, target_lang: str
) -> Scored:
    """Every metric's score of each part, from the counts of its lines.

    Raises ExperimentError unless there is one hypothesis a reference.
    """
    if len(hypotheses) != len(references):
        raise ExperimentError(f"{len(hypotheses)} translations for {len(references)} references")
    digest = hypotheses_digest(hypotheses)
    scores, counts = [], []
    for metric in METRICS.values():
        scorer = metric.scorer(target_lang)
        lines_counts = sentence_statistics(scorer, hypotheses, references)
        signature = str(scorer.get_signature())
        counts.append(LineCounts(metric=metric.name, signature=signature, lines=lines_counts))
        for part, lines in parts.items():
            scores.append(
                {
                    "split": part,
                    "metric": metric.name,
                    "value": score_of(scorer, [lines_counts[i] for i in lines]),
                    "signature": signature,
                    "lines": len(lines),
                    "hypotheses_sha256": digest,
                }
            )
    return Scored(scores, counts)


def _model_free(
    data: DataFolder, references: list[str], parts: Parts, folder: Path
) -> list[ModelFreeScore]:
    """Scores of what needs no model, where the data comes with such translations.

    Their text is the corpus's own, which may not be redistributed: only counts are kept.
    """
    scores = []
    for name in MODEL_FREE:
        path = data.model_free(name)
        if path.exists():
            lines = read_lines(path)
            found = score_lines(lines, references, parts, data.target_lang)
            write_hypotheses(folder, Hypotheses(lines, found.counts), keep_text=False)
            scores += [ModelFreeScore(**score, name=name) for score in found.scores]
    return scores
