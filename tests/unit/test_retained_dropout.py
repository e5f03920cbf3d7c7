"""--retain-dropout: what drops in fairseq while translating drops here, in both searches."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import (
    build,
    build_stock,
    dictionary,
    random_lines,
    randomize,
    source_batch,
    use_float64_softmax,
)
from torch import Tensor

from gqa_fairseq.decoding.int8 import quantize_int8
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.errors import OptionError

VOCABULARY = dictionary()
SENTENCES = 20
SEARCHES = [GroupedQueryGenerator, SequenceGenerator]
NAMES = [
    "TransformerEncoder",
    "TransformerDecoder",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "MultiheadAttention",
]


def model_of(**options: Any) -> Any:
    dropout = {"dropout": 0.3, "activation_dropout": 0.2, "attention_dropout": 0.1}
    model = build(VOCABULARY, **(dropout | options))
    randomize(model, scale=1.5)
    return model


def search(kind: type[SequenceGenerator], model: Any, seed: int, **options: Any) -> list:
    """Tokens and scores of all hypotheses."""
    sample = source_batch(random_lines(SENTENCES, VOCABULARY), VOCABULARY)
    generator = kind([model], VOCABULARY, beam_size=3, max_len_b=12, **options)
    torch.manual_seed(seed)
    found = generator.generate([model], sample)
    return [[(h["tokens"].tolist(), float(h["score"])) for h in each] for each in found]


def different(a: list, b: list) -> int:
    return sum(x[0] != y[0] for x, y in zip(a, b, strict=True))


def assert_same(a: list, b: list) -> None:
    """All tokens, and scores to float32's accuracy."""
    for x, y in zip(a, b, strict=True):
        assert [tokens for tokens, _ in x] == [tokens for tokens, _ in y]
        scores = [torch.tensor([score for _, score in each]) for each in (x, y)]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [None, ["TransformerDecoderLayer"], ["MultiheadAttention"]])
@pytest.mark.parametrize("kind", SEARCHES)
def test_hypotheses_depend_on_the_seed(
    kind: type[SequenceGenerator], names: list[str] | None
) -> None:
    model = model_of(num_kv_heads=2)
    plain = search(kind, model, 1)
    assert search(kind, model, 2) == plain
    model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=names)
    one, two = search(kind, model, 1), search(kind, model, 2)
    assert different(one, two) > SENTENCES / 2
    assert different(one, plain) > SENTENCES / 2
    assert search(kind, model, 1) == one


def test_a_gpu_would_not_repeat_one_draw() -> None:
    """A captured graph holds what modules did once: the other driver runs instead."""
    model = model_of(num_kv_heads=2)
    model.make_generation_fast_(retain_dropout=True)
    one, two = (search(GroupedQueryGenerator, model, seed, driver="gpu") for seed in (1, 2))
    assert different(one, two) > SENTENCES / 2


def scale_in_place_of_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropout(x: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
        return x * (1 - p) if training else x

    monkeypatch.setattr(F, "dropout", dropout)


@pytest.mark.parametrize("names", [None, *([name] for name in NAMES)], ids=str)
def test_the_same_places_drop_as_in_fairseq(
    names: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a dropout that is no chance, three searches over the same weights are one."""
    use_float64_softmax(monkeypatch)
    scale_in_place_of_dropout(monkeypatch)
    model = model_of(use_bias=True).double()
    stock = build_stock(VOCABULARY, model)
    for ours, theirs in zip(model.encoder.layers, stock.encoder.layers, strict=True):
        ours.self_attn.dropout = theirs.self_attn.dropout_module.p = 0.0  # PyTorch's own drops
    plain = search(GroupedQueryGenerator, model, 1)
    # Of fairseq's classes those with Base in their name are built.
    theirs = names and [*names, *(f"{name}Base" for name in names)]
    model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=names)
    stock.make_generation_fast_(retain_dropout=True, retain_dropout_modules=theirs)
    expected = search(SequenceGenerator, stock, 1)
    assert different(expected, plain) > 0
    for kind in SEARCHES:
        assert_same(search(kind, model, 1), expected)


def test_modules_that_step_give_what_fused_weights_give() -> None:
    """`is_fused = False` makes forward hooks fire, with fairseq's rows and shapes."""
    model = model_of(num_kv_heads=2)
    shapes: list[torch.Size] = []
    layer = model.decoder.layers[1]
    layer.register_forward_hook(lambda module, given, result: shapes.append(result[0].shape))
    layer.self_attn.v_proj.register_forward_hook(lambda *_: shapes.append(torch.Size()))
    fused = search(GroupedQueryGenerator, model, 1)
    assert not shapes
    model.decoder.is_fused = False
    for kind in SEARCHES:
        shapes.clear()
        assert_same(search(kind, model, 1), fused)
        assert shapes[:2] == [torch.Size(), torch.Size((1, SENTENCES * 3, 32))]


@pytest.mark.parametrize(
    "names", [["TransformerDecoderLayer"], '["TransformerModel", "TransformerDecoderLayerBase"]']
)
def test_names_as_fairseqs_command_takes_them(names: Any) -> None:
    model = model_of()
    model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=names)
    assert model.decoder.layers[0].dropout_module.apply_during_inference
    assert not model.decoder.dropout_module.apply_during_inference
    assert not model.encoder.layers[0].dropout_module.apply_during_inference


@pytest.mark.parametrize("names", ["TransformerDecoderLayers", ["LSTMEncoder"], "TransformerModel"])
def test_names_that_nothing_has(names: Any) -> None:
    with pytest.raises(
        ValueError, match=r"--retain-dropout-modules .*choose of TransformerEncoder"
    ):
        model_of().make_generation_fast_(retain_dropout=True, retain_dropout_modules=names)


def test_modules_alone_retain_nothing() -> None:
    generation = Namespace(retain_dropout=False, retain_dropout_modules="TransformerEncoder")
    with pytest.raises(OptionError, match="give --retain-dropout as well"):
        model_of().prepare_for_inference_(Namespace(generation=generation))


def test_8_bits_have_no_dropout() -> None:
    model = model_of()
    model.make_generation_fast_(retain_dropout=True)
    with pytest.raises(ValueError, match=r"--int8 .*leave it out, or --retain-dropout"):
        quantize_int8(model)
    quantized = model_of()
    quantize_int8(quantized)
    quantized.decoder.is_fused = False
    with pytest.raises(ValueError, match=r"--int8 .*is_fused"):
        quantized.decoder.decoding_weights()
