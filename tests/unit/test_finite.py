"""Weights that are no finite numbers are refused by name, whatever would search with them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import build, dictionary, random_lines, source_batch

from gqa_fairseq.decoding.int8 import quantize_int8
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.finite import require_finite

VOCABULARY = dictionary()
IN_FEED_FORWARD = "decoder.layers.1.fc1.weight"  # ReLU follows: fused operators hide NaN there


def broken(name: str, value: float) -> Any:
    model = build(VOCABULARY, num_kv_heads=2)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    return model


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder.layers.0.self_attn.q_proj.weight", IN_FEED_FORWARD])
def test_the_search_names_the_weight(name: str, value: float, is_native: bool) -> None:
    model = broken(name, value)
    model.decoder.is_native = is_native
    with pytest.raises(ValueError, match=f"^{name} has weights that are no finite numbers"):
        GroupedQueryGenerator([model], VOCABULARY, beam_size=2)
    with pytest.raises(ValueError, match=f"^{name} has weights"):
        quantize_int8(model)
    assert not model.decoder.is_int8


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("kind", [GroupedQueryGenerator, SequenceGenerator])
def test_weights_that_break_later_are_found_when_decoding_weights_are_made(
    kind: Any, is_native: bool
) -> None:
    """Validation in the middle of training has the search that was made before it."""
    model = build(VOCABULARY, num_kv_heads=2)
    model.decoder.is_native = is_native
    generator = kind([model], VOCABULARY, beam_size=2)
    sample = source_batch(random_lines(2, VOCABULARY), VOCABULARY)
    generator.generate([model], sample)
    with torch.no_grad():
        model.get_parameter(IN_FEED_FORWARD)[0, 0] = math.nan
    with pytest.raises(ValueError, match=f"^{IN_FEED_FORWARD} has weights"):
        generator.generate([model], sample)


def test_the_first_one_is_named() -> None:
    model = build(VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    first = next(name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match=f"^{first} has weights"):
        GroupedQueryGenerator([model], VOCABULARY)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_large_weights_are_finite(dtype: torch.dtype) -> None:
    """Their sum is not."""
    largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    require_finite([("large", largest), ("whole", torch.tensor([3]))])
    largest[500] = math.nan
    with pytest.raises(ValueError, match=r"^of large has"):
        require_finite([("large", largest)], "of ")
