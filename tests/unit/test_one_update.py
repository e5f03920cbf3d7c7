"""One training update of fairseq's trainer against the same update in float64 on the CPU.

KERNEL_DEVICE is `cpu`, if it is not set, or `cuda`: `make gpu` runs this file on a card. The
expected update is Adam's first step written out, from gradients of fairseq's own loss in float64;
epsilon is as large as the gradients are, so that a small error of a gradient is a small error of
its step.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from fairseq import tasks
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.trainer import Trainer
from torch import Tensor

import gqa_fairseq.models
import gqa_fairseq.tasks  # noqa: F401  the training command names what these register
from experiments.intensity.updates import training_command
from experiments.measure.training import one_process_config
from gqa_fairseq.architecture import Variant
from gqa_fairseq.parity import Baseline

DEVICE = os.environ.get("KERNEL_DEVICE", "cpu")
# A change is large beside the rounding of a weight, in half precision too.
LR, EPSILON, BETA, SMOOTHING = 0.1, 1e-3, 0.98, 0.1
DTYPES = ["float32", "float16"] if DEVICE == "cuda" else ["float32"]  # fairseq's fp16 needs a GPU
MODEL = Baseline(
    d_model=64,
    num_heads=4,
    mha_d_ff=96,
    encoder_layers=2,
    decoder_layers=2,
    vocab_size=53,
    max_source_positions=32,
    max_target_positions=32,
)


def trainer_of(kv_heads: int, dtype: str, folder: Path) -> Trainer:
    own = MODEL.resolve(Variant(kv_heads))
    command = training_command(own, folder, DEVICE, dtype)
    rest = ["--adam-betas", f"(0.9, {BETA})", "--adam-eps", str(EPSILON), "--lr", str(LR)]
    cfg = one_process_config([*command, *rest, "--dropout", "0.0"], {})
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(kv_heads)
    model = task.build_model(cfg.model)
    with torch.no_grad():  # norms and biases that matter
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    trainer.begin_epoch(1)
    return trainer


def batch_of(pad: int, eos: int, words: int) -> dict:
    """Sentences of very uneven lengths: sources padded on the left, targets on the right."""
    generator = torch.Generator().manual_seed(7)
    lengths = [(9, 3), (1, 8), (5, 5), (2, 1)]
    source = torch.full((len(lengths), 9), pad)
    target = torch.full((len(lengths), 8), pad)
    for row, (n, m) in enumerate(lengths):
        source[row, -n:] = torch.randint(4, words, (n,), generator=generator)
        target[row, :m] = torch.randint(4, words, (m,), generator=generator)
        source[row, -1] = target[row, m - 1] = eos
    before = target.roll(1, 1)
    before[:, 0] = eos
    for row, (_, m) in enumerate(lengths):
        before[row, m:] = pad
    return {
        "id": torch.arange(len(lengths)),
        "nsentences": len(lengths),
        "ntokens": sum(m for _, m in lengths),
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.tensor([n for n, _ in lengths]),
            "prev_output_tokens": before,
        },
        "target": target,
    }


def expected_change(weights: dict[str, Tensor], trainer: Trainer, batch: dict) -> dict[str, Tensor]:
    """Adam's first step in float64 for each parameter, and the loss in nats per token."""
    exact = trainer.task.build_model(trainer.cfg.model).double().train()
    exact.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    logits, _ = exact(**batch["net_input"])
    lprobs = logits.log_softmax(-1).flatten(0, 1)
    target = batch["target"].flatten()
    pad = trainer.task.target_dictionary.pad()
    loss, _ = label_smoothed_nll_loss(lprobs, target, SMOOTHING, ignore_index=pad)
    (loss / batch["ntokens"]).backward()
    root = math.sqrt(1 - BETA)
    changes = {
        name: -LR * root * p.grad / (root * p.grad.abs() + EPSILON)
        for name, p in exact.named_parameters()
    }
    return changes | {"loss": loss.detach() / batch["ntokens"] / math.log(2)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_an_update_is_that_of_float64(kv_heads: int, dtype: str, tmp_path: Path) -> None:
    trainer = trainer_of(kv_heads, dtype, tmp_path)
    dictionary = trainer.task.target_dictionary
    batch = batch_of(dictionary.pad(), dictionary.eos(), len(dictionary))
    weights = {name: p.detach().cpu().clone() for name, p in trainer.model.state_dict().items()}
    expected = expected_change(weights, trainer, batch)
    logged = trainer.train_step([batch])
    assert logged is not None
    assert next(trainer.model.parameters()).device.type == DEVICE
    loss = float(expected.pop("loss"))
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert logged["loss"] == pytest.approx(loss, abs=6e-4 + 4 * eps * loss)  # it has 3 digits
    after = trainer.model.state_dict()
    for name, change in expected.items():
        found = after[name].cpu().double() - weights[name].double()
        error = (found - change).norm() / (64 * change.norm() + weights[name].double().norm())
        assert float(error) <= eps, (name, float(error))
