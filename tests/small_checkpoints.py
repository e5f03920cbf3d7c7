"""Checkpoints of small models, the plugin's and fairseq's own, in float64."""

from __future__ import annotations

import copy
from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch
from fairseq.data import Dictionary, data_utils
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer import TransformerModel, TransformerModelBase
from plugin_models import TINY, random_lines, randomize, source_batch, task
from torch import Tensor, nn

from gqa_fairseq.attention import GroupedQueryAttention
from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel

SIDES = ("encoder", "decoder")


def state_of(model: nn.Module, options: Any, **changes: Any) -> dict[str, Any]:
    """What fairseq saves of a training that made 7 updates, with the parts that matter here."""
    moments = {
        i: {"step": 7, "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)}
        for i, p in enumerate(model.parameters())
    }
    group = {"lr": 0.003, "betas": (0.9, 0.98), "eps": 1e-8, "params": list(moments), "step": 7}
    return {
        "args": None,
        "cfg": {
            "_name": None,
            "common": {"fp16": False},
            "model": options,
            "task": {"_name": "translation", "data": "there"},
            "optimizer": {"_name": "adam", "lr": [0.003], "adam_betas": "(0.9, 0.98)",
                          "adam_eps": 1e-8, "weight_decay": 0.01, "tpu": False},
        },
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [{"num_updates": 7, "optimizer_name": "FairseqAdam",
                               "criterion_name": "Loss", "lr_scheduler_state": {"best": 3.5}}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}, "best": 3.25},
        "last_optimizer_state": {"state": moments, "param_groups": [group], "loss_scale": 8.0},
    } | changes  # fmt: skip


def ours(vocabulary: Dictionary, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model of the plugin in float64 and its checkpoint."""
    torch.manual_seed(0)
    cfg = GroupedQueryTransformerConfig(**(TINY | options))
    model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary)).eval().double()
    randomize(model)
    return model, state_of(model, asdict(cfg) | {"_name": "gqa_transformer"})


STOCK = {
    **{name: value for name, value in TINY.items() if name != "mha_ffn_embed_dim"},
    "encoder_ffn_embed_dim": 48,
    "decoder_ffn_embed_dim": 40,
    "arch": "transformer",
}


def stock(
    vocabulary: Dictionary, arch: str = "transformer", **options: Any
) -> tuple[TransformerModelBase, dict[str, Any]]:
    """A model of fairseq's own in float64 and its checkpoint."""
    torch.manual_seed(0)
    args = Namespace(**(STOCK | {"arch": arch} | options))
    ARCH_CONFIG_REGISTRY[arch](args)
    model = TransformerModel.build_model(copy.copy(args), task(vocabulary)).eval().double()
    randomize(model)
    return model, state_of(model, args)


def loaded(state: dict[str, Any], vocabulary: Dictionary) -> GroupedQueryTransformerModel:
    """The model of a converted checkpoint, by its own config."""
    cfg = GroupedQueryTransformerConfig(**state["cfg"]["model"])
    model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary)).eval().double()
    model.load_state_dict(state["model"], strict=True)
    return model


def logits(model: nn.Module, vocabulary: Dictionary) -> Tensor:
    """Of six random sentences, at positions that are no padding."""
    batch = source_batch(random_lines(6, vocabulary), vocabulary)["net_input"]
    targets = data_utils.collate_tokens(
        random_lines(6, vocabulary, longest=9, seed=11), vocabulary.pad(), vocabulary.eos(), True
    )
    with torch.no_grad():
        return model(**batch, prev_output_tokens=targets)[0][targets.ne(vocabulary.pad())]


def difference(one: nn.Module, other: nn.Module, vocabulary: Dictionary) -> float:
    return (logits(one, vocabulary) - logits(other, vocabulary)).abs().max().item()


def attentions(model: nn.Module) -> dict[str, GroupedQueryAttention]:
    return {n: m for n, m in model.named_modules() if isinstance(m, GroupedQueryAttention)}
