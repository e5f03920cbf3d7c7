"""Linear layers in 8 bits: as far from float32 as rounding allows, and no further."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_models import build, build_stock, dictionary, random_lines, randomize, source_batch
from torch import Tensor, nn

from gqa_fairseq.decoding.int8 import Int8Linear, int8_multiply, quantize_int8
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.decoding.step import Projection
from gqa_fairseq.tasks.gqa_translation import (
    GroupedQueryTranslationConfig,
    GroupedQueryTranslationTask,
)

# torch rounds inputs to 7 bits (reduced range): a step is their whole range, zero included, in 127.
INPUT_STEPS = WEIGHT_STEPS = 127


def rounding_bound(x: Tensor, weight: Tensor) -> Tensor:
    """The largest error [rows, out] that rounding x [rows, in] and W [out, in] can make."""
    x, weight = x.double(), weight.double()
    # A whole step, not half of one: the zero point is rounded as well.
    x_error = (x.max().clamp(min=0) - x.min().clamp(max=0)) / INPUT_STEPS
    w_error = weight.abs().amax(1, keepdim=True) / WEIGHT_STEPS / 2
    ones = torch.ones_like(x)
    return (
        x_error * ones @ weight.abs().T
        + x.abs() @ (w_error.expand_as(weight)).T
        + x_error * ones @ w_error.expand_as(weight).T
    )


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 70),
    has_bias=st.booleans(),
    is_relu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_error_is_the_roundings(
    rows: int, inputs: int, outputs: int, has_bias: bool, is_relu: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * 3 + 1
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= torch.logspace(-3, 2, outputs)[:, None]  # a scale for each output: small rows too
    bias = torch.randn(outputs, generator=generator) if has_bias else None
    exact = nn.functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    exact = exact.relu() if is_relu else exact
    found = int8_multiply(weight, bias, is_relu)(x, None)
    assert found.dtype == torch.float32
    excess = (found.double() - exact).abs() - rounding_bound(x, weight)
    assert excess.max() <= 1e-5 * exact.abs().max()


def test_weights_are_rounded_to_8_bits() -> None:
    """An input of one 1 reads a column of W: multiples of 1/127 of each row's largest weight."""
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    columns = int8_multiply(weight, None, False)(torch.eye(16), None).T
    steps = columns / (weight.abs().amax(1, keepdim=True) / WEIGHT_STEPS)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert not torch.equal(columns, weight)


def test_rows_of_zeros_stay_zero() -> None:
    assert not int8_multiply(torch.zeros(4, 8), None, False)(torch.ones(2, 8), None).any()


def test_the_residual_is_added() -> None:
    linear = nn.Linear(8, 5)
    x, residual = torch.randn(3, 8), torch.randn(3, 5)
    for is_int8 in (False, True):
        multiply = Projection(linear, is_int8=is_int8)
        torch.testing.assert_close(multiply(x, residual), multiply(x) + residual)


@pytest.mark.parametrize("num_kv_heads", [8, 2, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": True, "activation_fn": "gelu"},
        {"decoder_head_dim": 6, "encoder_head_dim": 2, "mha_ffn_embed_dim": 99},
    ],
)
def test_a_whole_model_in_8_bits(num_kv_heads: int, options: dict[str, Any]) -> None:
    vocabulary = dictionary()
    model = build(vocabulary, num_kv_heads=num_kv_heads, **options)
    randomize(model)
    batch = source_batch(random_lines(6, vocabulary), vocabulary)
    source = batch["net_input"]["src_tokens"]
    start = torch.full((6, 1, 1), vocabulary.eos())

    def logits() -> Tensor:
        encoder_out = model.encoder(source)
        return model.decoder.next_logits(start, model.decoder.start_cache(encoder_out, 1))

    with torch.no_grad():
        exact = logits()
        quantize_int8(model)
        quantize_int8(model)  # the second time changes nothing
        rounded = logits()
    assert not any(isinstance(module, nn.Linear) for module in model.encoder.modules())
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.15  # rounded, and still the same model
    generator = GroupedQueryGenerator([model], vocabulary, beam_size=4)
    hypotheses = generator.generate([model], batch)
    assert [len(beams) for beams in hypotheses] == [4] * 6


def test_8_bits_within_a_window() -> None:
    """Rounded as without a window, and the newest positions alone are read."""
    vocabulary = dictionary()
    batch = source_batch(random_lines(6, vocabulary), vocabulary)
    source = batch["net_input"]["src_tokens"]
    words = torch.randint(vocabulary.nspecial, len(vocabulary), (6, 9))
    words[:, 0] = vocabulary.eos()

    @torch.no_grad()
    def logits(window: int | None, is_int8: bool) -> Tensor:
        """Of 9 steps over the cache in 8 bits, or of a full forward pass: [6, 9, V]."""
        model = build(vocabulary, num_kv_heads=2, decoder_window=window)
        randomize(model)
        if not is_int8:
            return model.decoder(words, model.encoder(source))[0]
        quantize_int8(model)
        cache = model.decoder.start_cache(model.encoder(source), 1)
        steps = [model.decoder.next_logits(words[:, None, : t + 1], cache) for t in range(9)]
        return torch.stack(steps, 1)

    exact, rounded, unlimited = logits(3, False), logits(3, True), logits(None, True)
    assert torch.equal(rounded[:, :3], unlimited[:, :3])
    assert torch.equal(logits(9, True), unlimited)
    error, other = ((x - exact)[:, 3:].norm() / exact[:, 3:].norm() for x in (rounded, unlimited))
    assert error < 0.15 < other


def test_only_the_plugins_float32_models_on_a_cpu() -> None:
    vocabulary = dictionary()
    model = build(vocabulary)
    stock = build_stock(vocabulary, model)
    with pytest.raises(ValueError, match="float32 weights on a CPU"):
        quantize_int8(model.double())
    with pytest.raises(ValueError, match="a model of the plugin"):
        quantize_int8(stock)
    with pytest.raises(ValueError, match="float32 weights on a CPU"):
        Projection(nn.Linear(4, 4).double(), is_int8=True)
    assert all(not isinstance(module, Int8Linear) for module in model.modules())


def test_the_tasks_option() -> None:
    vocabulary = dictionary()
    model = build(vocabulary)
    config = GroupedQueryTranslationConfig(int8=True)
    task = GroupedQueryTranslationTask(config, vocabulary, vocabulary)
    task.build_generator([model], GenerationConfig())
    assert model.decoder.is_int8
    with pytest.raises(SystemExit, match="error: int8 needs a model of the plugin"):
        task.build_generator([build_stock(vocabulary, build(vocabulary))], GenerationConfig())
