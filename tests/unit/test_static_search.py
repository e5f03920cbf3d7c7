"""Search in steps of fixed shapes, on the CPU, against search.py: the same hypotheses and scores.

The code is what a GPU runs, apart from the capture of its step as a graph; test_search.py compares
search.py with fairseq's SequenceGenerator.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from gqa_fairseq.decoding.search import GroupedQueryGenerator
from tests.plugin_models import build, dictionary, random_lines, randomize, source_batch

VOCABULARY = dictionary()
Hypotheses = list[list[dict[str, Any]]]


def model_of(seed: int = 0, **options: Any) -> Any:
    model = build(VOCABULARY, seed=seed, **options)
    randomize(model, scale=1.5, seed=seed)
    return model.double()


def static_generator(model: Any, **options: Any) -> GroupedQueryGenerator:
    return GroupedQueryGenerator([model], VOCABULARY, is_static=True, **options)


def assert_same(ours: Hypotheses, expected: Hypotheses) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x["score"], y["score"], atol=1e-6, rtol=0)
            torch.testing.assert_close(
                x["positional_scores"], y["positional_scores"], atol=1e-6, rtol=0
            )


def check(model: Any, *samples: dict, **options: Any) -> GroupedQueryGenerator:
    """The static search finds, batch after batch, what search.py finds; returns its generator."""
    call = {k: options.pop(k) for k in ("bos_token",) if k in options}
    expected = GroupedQueryGenerator([model], VOCABULARY, is_static=False, **options)
    ours = static_generator(model, **options)
    for sample in samples:
        assert_same(
            ours.generate([model], sample, **call), expected.generate([model], sample, **call)
        )
    assert ours._static is not None
    assert expected._static is None
    return ours


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"max_len_b": 20},
    "length limit from the padded source": {"max_len_a": 1.2, "max_len_b": 3},
    "minimum length and penalties": {
        "max_len_b": 20,
        "min_len": 6,
        "len_penalty": 0.3,
        "unk_penalty": 0.7,
    },
    "temperature, not normalized": {"max_len_b": 20, "temperature": 2.0, "normalize_scores": False},
    "gnmt": {"max_len_b": 15, "gnmt_alpha": 0.6},
    "cut at the limit": {"max_len_b": 2},
    "nothing but the end": {"max_len_b": 0, "min_len": 0},
    "suppressed tokens": {"max_len_b": 20, "tokens_to_suppress": ("w3", "w7")},
    "another first token": {"max_len_b": 12, "bos_token": 5},
    "more slots than are first in view": {"max_len_b": 500, "min_len": 40},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("beam", [1, 4])
def test_same_hypotheses_for_every_option(options: dict[str, Any], beam: int) -> None:
    for g in (1, 2, 4, 8):
        model = model_of(seed=g, num_kv_heads=g)
        sample = source_batch(random_lines(9, VOCABULARY, seed=g), VOCABULARY)
        check(model, sample, beam_size=beam, **options)


KINDS = list(itertools.product((1, 2, 4, 8), ("all", "decoder"), (True, False), (True, False)))


def check_random_model(seed: int) -> None:
    """A small model of some kind, with a batch of very uneven lengths."""
    draw = random.Random(seed)
    g, placement, bias, is_pre_norm = KINDS[seed % len(KINDS)]
    model = model_of(
        seed,
        num_kv_heads=g,
        attention_placement=placement,
        use_bias=bias,
        encoder_normalize_before=is_pre_norm,
        decoder_normalize_before=is_pre_norm,
        decoder_learned_pos=draw.choice((True, False)),
    )
    options: dict[str, Any] = {
        "beam_size": draw.choice((1, 2, 4, 5)),
        "max_len_a": draw.choice((0, 1.5)),
        "max_len_b": draw.randint(3, 45),
        "min_len": draw.randint(1, 3),
        "len_penalty": draw.choice((0.6, 1.0)),
        "unk_penalty": draw.choice((0.0, 1.0)),
    }
    longest = draw.randint(1, 25)
    samples = [
        source_batch(random_lines(draw.randint(1, 12), VOCABULARY, longest, seed + i), VOCABULARY)
        for i in range(2 if seed % 4 == 0 else 1)  # a second batch may use the first one's memory
    ]
    check(model, *samples, **options)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_same_hypotheses_for_random_models(first: int) -> None:
    for seed in range(first, first + 25):
        check_random_model(seed)
