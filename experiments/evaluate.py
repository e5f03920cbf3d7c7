"""Quality of a trained model: loss on dev, translations of dev and test and their scores.

    python -m experiments.evaluate outputs/runs/quickstart/mqa-seed1-0123456789ab

reads the job's config and last checkpoint, and writes hypotheses, model.json and evaluation.json.
Every line of dev and test counts: one that the model cannot take is an error, never skipped. A
subset of test is scored on its lines of test's translations.
"""

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece
import torch
from fairseq import utils
from fairseq.data import LanguagePairDataset
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import FairseqTask
from sacrebleu.metrics import BLEU, CHRF

from experiments.config import DecodeConfig, SuiteConfig
from experiments.corpus import read_lines, read_subsets
from experiments.errors import ExperimentError
from experiments.layout import TARGET, DataFolder, JobFolder, data_folder, run_on_job
from experiments.record_parts import (
    BaselineScore,
    Evaluation,
    LengthPenalty,
    ModelInfo,
    ModelScore,
    search_name,
)
from experiments.storage import write_json, write_text
from gqa_fairseq import parity
from gqa_fairseq.checkpoint import load_model
from gqa_fairseq.decoding.search import GroupedQueryGenerator

GENERATORS = {"gqa": GroupedQueryGenerator, "stock": SequenceGenerator}
FAIRSEQ_NAMES = {"dev": "valid", "test": "test"}
BASELINES: tuple[Literal["copy", "nearest"], ...] = ("copy", "nearest")

# Which lines of a hypotheses file are scored under which name: a whole split, or a subset of it.
Parts = Mapping[str, Sequence[int]]


def evaluate(job: JobFolder) -> None:
    """Write the job's hypotheses, model.json and evaluation.json.

    Raises ExperimentError when a line does not fit the model or the data lacks lines.
    """
    config = job.read_config()
    data = data_folder(config)
    model, task = load_trained(job, data)
    if config.hardware.device == "cuda":
        model.cuda()
    references = {split: read_lines(data.text(split, TARGET)) for split in FAIRSEQ_NAMES}
    datasets = {split: _load_split(task, split, len(references[split])) for split in FAIRSEQ_NAMES}
    parts: dict[str, Parts] = {
        split: {split: range(len(lines))} for split, lines in references.items()
    }
    parts["test"] = {**parts["test"], **read_subsets(data, len(references["test"]))}
    print("dev loss", flush=True)
    nll, tokens = nll_nats(model, datasets["dev"], config.decode.batch_sentences)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces_model))
    scores = []
    for split, beam, penalty in searches(config.decode):
        name = f"{split}.{search_name(beam, penalty)}"
        translations = translate(
            model, task, datasets[split], config.decode, beam, penalty, pieces, name
        )
        path = job.hypotheses / f"{name}.{TARGET}"
        write_text(path, "".join(f"{line}\n" for line in translations))
        scores += [
            ModelScore(
                **score,
                beam=beam,
                engine=config.decode.engine,
                length_penalty=penalty,
                length_alpha=config.decode.length_alpha,
            )
            for score in score_file(path, references[split], parts[split])
        ]
    evaluation = Evaluation(
        dev_nll_nats_per_token=nll / tokens,
        dev_perplexity=math.exp(nll / tokens),
        dev_target_tokens=tokens,
        scores=scores,
        baselines=_baselines(data, references["test"], parts["test"]),
    )
    write_json(job.model, describe_model(model, config, len(task.target_dictionary)))
    write_json(job.evaluation, evaluation)


def searches(decode: DecodeConfig) -> list[tuple[str, int, LengthPenalty]]:
    """(split, beam, length penalty) of each translation, as Shazeer 2019 reports them.

    Greedy search stops at its first hypothesis: no penalty has anything to choose from, so one
    translation stands for all.
    """
    first, *_ = decode.length_penalties
    with_beam = [("test", decode.beam, penalty) for penalty in decode.length_penalties]
    return [("dev", 1, first), ("test", 1, first), *with_beam]


def load_trained(job: JobFolder, data: DataFolder) -> tuple[BaseFairseqModel, FairseqTask]:
    """The job's trained model and its task; raises ExperimentError, one line."""
    try:
        return load_model(job.trained, data.binarized)
    except (OSError, ValueError) as error:
        raise ExperimentError(str(error)) from error


def _load_split(task: FairseqTask, split: str, lines: int) -> LanguagePairDataset:
    """The binarized split; raises ExperimentError unless it has all lines of the text."""
    task.load_dataset(FAIRSEQ_NAMES[split])
    dataset = task.dataset(FAIRSEQ_NAMES[split])
    if len(dataset) != lines:
        raise ExperimentError(
            f"{split} has {lines} lines of text but {len(dataset)} binarized ones "
            "(prepare the data again)"
        )
    return dataset


def batches(dataset: LanguagePairDataset, sentences: int) -> Iterator[dict]:
    """Every sentence once, in fairseq's batches of neighbours in length, longest first."""
    order = sorted(range(len(dataset)), key=lambda i: (-dataset.src_sizes[i], i))
    for start in range(0, len(order), sentences):
        yield dataset.collater([dataset[i] for i in order[start : start + sentences]])


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
    device = next(model.parameters()).device
    dictionary = task.target_dictionary
    option = {"fairseq": "len_penalty", "gnmt": "gnmt_alpha"}[penalty]
    generator = GENERATORS[decode.engine](
        [model],
        dictionary,
        beam_size=beam,
        **{option: decode.length_alpha},
        max_len_a=decode.max_len_a,
        max_len_b=decode.max_len_b,
    )
    found: dict[int, str] = {}
    for batch in batches(dataset, decode.batch_sentences):
        batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        for index, hypotheses in zip(
            batch["id"].tolist(), generator.generate([model], batch), strict=True
        ):
            text = dictionary.string(hypotheses[0]["tokens"])
            found[index] = pieces.decode(text.split(" "))
        print(f"{label}: {len(found)}/{len(dataset)} lines", flush=True)
    # A missing or doubled sentence would fail here.
    return [found[index] for index in range(len(dataset))]


def score_file(path: Path, references: list[str], parts: Parts) -> list[dict]:
    """BLEU (13a and intl) and chrF of each part of a file of hypotheses, as fields of a Score.

    Raises ExperimentError unless there is one hypothesis a reference.
    """
    hypotheses = read_lines(path)
    if len(hypotheses) != len(references):
        raise ExperimentError(f"{path}: {len(hypotheses)} lines for {len(references)} references")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    scores = []
    for part, lines in parts.items():
        for name, tokenize, metric in (
            ("bleu", "13a", BLEU(tokenize="13a")),
            ("bleu", "intl", BLEU(tokenize="intl")),
            ("chrf", None, CHRF()),
        ):
            result = metric.corpus_score(
                [hypotheses[i] for i in lines], [[references[i] for i in lines]]
            )
            scores.append(
                {
                    "split": part,
                    "metric": name,
                    "tokenize": tokenize,
                    "value_0_100": result.score,
                    "signature": str(metric.get_signature()),
                    "lines": len(lines),
                    "hypotheses_sha256": digest,
                }
            )
    return scores


def _baselines(data: DataFolder, references: list[str], parts: Parts) -> list[BaselineScore]:
    """Scores of what needs no model, where the data comes with such hypotheses."""
    return [
        BaselineScore(**score, baseline=name)
        for name in BASELINES
        if data.baseline(name, TARGET).exists()
        for score in score_file(data.baseline(name, TARGET), references, parts)
    ]


def describe_model(model: BaseFairseqModel, config: SuiteConfig, vocab_size: int) -> ModelInfo:
    """The built model's shape, its parameters counted and as the parity arithmetic predicts."""
    shape = parity.Shape(**config.model.parity_shape, vocab_size=vocab_size)
    kv_heads, placement = config.attention.num_kv_heads, config.attention.placement
    counted = sum(parameter.numel() for parameter in model.parameters())
    mha = parity.parameter_count(shape, shape.num_heads, placement)
    return ModelInfo(
        arch="gqa_transformer",
        num_heads=shape.num_heads,
        num_kv_heads=kv_heads,
        head_dim=shape.head_dim,
        d_model=shape.d_model,
        placement=placement,
        encoder_layers=len(model.encoder.layers),
        decoder_layers=len(model.decoder.layers),
        encoder_d_ff=model.encoder.layers[0].fc1.out_features,
        decoder_d_ff=model.decoder.layers[0].fc1.out_features,
        bias=config.model.bias,
        parameters=counted,
        parameters_predicted=parity.parameter_count(shape, kv_heads, placement),
        parameters_mha=mha,
        residual=counted - mha,
    )


if __name__ == "__main__":
    sys.exit(run_on_job(evaluate, "experiments.evaluate", __doc__))
