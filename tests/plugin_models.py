"""Small models of the plugin and their stock fairseq counterparts, for tests."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary, data_utils
from fairseq.models.transformer import TransformerModelBase
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel

torch.set_num_threads(1)

HEADS = 8
TINY: dict[str, Any] = {
    "encoder_embed_dim": 32,
    "decoder_embed_dim": 32,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "share_all_embeddings": True,
    "mha_ffn_embed_dim": 48,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "dropout": 0.0,
}


def dictionary(words: int = 40) -> Dictionary:
    """fairseq's four specials and `words` symbols."""
    result = Dictionary()
    for i in range(words):
        result.add_symbol(f"w{i}")
    return result


def task(vocabulary: Dictionary) -> TranslationTask:
    return TranslationTask(TranslationConfig(), vocabulary, vocabulary)


def build(vocabulary: Dictionary, seed: int = 0, **options: Any) -> GroupedQueryTransformerModel:
    """A tiny model in evaluation mode; `options` replace those of TINY."""
    torch.manual_seed(seed)
    cfg = GroupedQueryTransformerConfig(**(TINY | options))
    return GroupedQueryTransformerModel.build_model(cfg, task(vocabulary)).eval()


def randomize(model: torch.nn.Module, scale: float = 1.0, seed: int = 1) -> None:
    """Biases and norms too get values that matter: at their initial 0 and 1 they prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            elif "embed" not in name:
                parameter.copy_(scale * noise / parameter.shape[1] ** 0.5)


def band_masked(model: GroupedQueryTransformerModel) -> GroupedQueryTransformerModel:
    """A copy whose decoder sees its window by a mask that is added: the oracle for windows.

    The copy's own window is off. It reads whole sequences alone; a cache would not see the mask.
    """
    twin = copy.deepcopy(model)
    window = model.decoder.layers[0].self_attn.window

    def add_band(_: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple:
        at = torch.arange(args[0].shape[0])  # query [T, B, C]
        hidden = torch.zeros(len(at), len(at), dtype=args[0].dtype)
        hidden.masked_fill_(at[:, None] - at >= window, -math.inf)
        return args, {**kwargs, "attn_mask": hidden}

    for layer in twin.decoder.layers:
        layer.self_attn.window = None
        layer.self_attn.register_forward_pre_hook(add_band, with_kwargs=True)
    return twin


def build_stock(
    vocabulary: Dictionary, model: GroupedQueryTransformerModel
) -> TransformerModelBase:
    """fairseq's own Transformer with the weights of a multi-head model of the plugin."""
    stock = TransformerModelBase.build_model(copy.deepcopy(model.cfg), task(vocabulary)).eval()
    stock.to(next(model.parameters()).dtype)
    copy_to_stock(model, stock)
    return stock


def copy_to_stock(model: GroupedQueryTransformerModel, stock: TransformerModelBase) -> None:
    """Strict copy; biases that a bias-free model lacks are zeros (stock cannot do without)."""
    weights = dict(model.state_dict())
    for name, parameter in stock.state_dict().items():
        if name.endswith(".bias") and name not in weights:
            weights[name] = torch.zeros_like(parameter)
    stock.load_state_dict(weights, strict=True)


def use_float64_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets stock fairseq compute in float64.

    Its `utils.softmax` and `utils.log_softmax` name float32 as their dtype whatever they are
    given, so a float64 model of fairseq's is only as good as float32 and could not be an oracle to
    1e-10. Tests replace the two functions; the plugin never does.
    """

    def softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
        return F.softmax(x, dim=dim)

    def log_softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
        return F.log_softmax(x, dim=dim)

    monkeypatch.setattr("fairseq.utils.softmax", softmax)
    monkeypatch.setattr("fairseq.utils.log_softmax", log_softmax)


class PlainRepeatBlock(torch.nn.Module):
    """--no-repeat-ngram-size, word by word, for fairseq's search.

    What fairseq has for a CPU finds no repetition. A word stays where no other is left.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, tokens: Tensor, lprobs: Tensor, batch: int, beam: int, step: int) -> Tensor:
        for words, row in zip(tokens[:, 1 : step + 1].tolist(), lprobs, strict=True):
            before = [tuple(words[i : i + self.size]) for i in range(step - self.size + 1)]
            newest = tuple(words[max(0, step - self.size + 1) :])
            forbidden = [word for word in set(words) if (*newest, word) in before]
            kept = row.clone()
            kept[forbidden] = -torch.inf
            if bool((kept > -torch.inf).any()):
                row.copy_(kept)
        return lprobs


def source_batch(lines: Iterable[Tensor], vocabulary: Dictionary) -> dict[str, Any]:
    """What SequenceGenerator takes: sources padded on the left, as fairseq's loader makes them."""
    rows = list(lines)
    tokens = data_utils.collate_tokens(
        rows, vocabulary.pad(), vocabulary.eos(), left_pad=True, move_eos_to_beginning=False
    )
    lengths = torch.tensor([row.numel() for row in rows])
    return {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}


def random_lines(
    count: int, vocabulary: Dictionary, longest: int = 12, seed: int = 3
) -> list[Tensor]:
    """`count` sentences of 1 to `longest` words, each with its </s>."""
    draw = random.Random(seed)
    first = vocabulary.nspecial
    return [
        torch.tensor(
            [draw.randrange(first, len(vocabulary)) for _ in range(draw.randint(1, longest))]
            + [vocabulary.eos()]
        )
        for _ in range(count)
    ]
