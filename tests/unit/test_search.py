"""The plugin's search returns what fairseq's SequenceGenerator returns, option by option."""

from __future__ import annotations

import itertools
import logging
import random
from typing import Any

import pytest
import torch
from fairseq import search
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.decoding.top_k import _CHUNK, top_k
from tests.plugin_models import (
    PlainRepeatBlock,
    build,
    dictionary,
    random_lines,
    randomize,
    source_batch,
)

VOCABULARY = dictionary()
Hypotheses = list[list[dict[str, Any]]]


def model_of(seed: int = 0, **options: Any) -> Any:
    model = build(VOCABULARY, seed=seed, **options)
    randomize(model, scale=1.5, seed=seed)
    return model.double()


def both(model: Any, sample: dict, strategy=None, **options: Any) -> tuple[Hypotheses, Hypotheses]:
    """Hypotheses of the plugin's search and of fairseq's, with the same options."""
    call = {k: options.pop(k) for k in ("prefix_tokens", "bos_token") if k in options}
    found = []
    for kind in (GroupedQueryGenerator, SequenceGenerator):
        extra = {"search_strategy": strategy(VOCABULARY)} if strategy else {}
        generator = kind([model], VOCABULARY, **options, **extra)
        torch.manual_seed(5)
        found.append(generator.generate([model], sample, **call))
    return found[0], found[1]


def assert_same(ours: Hypotheses, stock: Hypotheses) -> None:
    assert len(ours) == len(stock)
    for a, b in zip(ours, stock, strict=True):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        for x, y in zip(a, b, strict=True):
            assert abs(float(x["score"]) - float(y["score"])) <= 1e-4
            torch.testing.assert_close(
                x["positional_scores"], y["positional_scores"], atol=1e-4, rtol=0
            )


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
    "cut at the limit": {"max_len_b": 2},
    "suppressed tokens": {"max_len_b": 20, "tokens_to_suppress": ("w3", "w7")},
    "another first token": {"max_len_b": 12, "bos_token": 5},
    "the whole table of positions": {"max_len_b": 500, "min_len": 40},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("beam", [1, 4])
def test_same_hypotheses_for_every_option(options: dict[str, Any], beam: int) -> None:
    for g in (1, 2, 4, 8):
        model = model_of(seed=g, num_kv_heads=g)
        sample = source_batch(random_lines(9, VOCABULARY, seed=g), VOCABULARY)
        assert_same(*both(model, sample, beam_size=beam, **options))


def test_same_hypotheses_for_random_models() -> None:
    """Small models of every kind, each with a batch of very uneven lengths."""
    draw = random.Random(1)
    kinds = list(itertools.product((1, 2, 4, 8), ("all", "decoder"), (True, False), (True, False)))
    for seed in range(200):
        g, placement, bias, pre = kinds[seed % len(kinds)]
        model = model_of(
            seed,
            num_kv_heads=g,
            attention_placement=placement,
            use_bias=bias,
            encoder_normalize_before=pre,
            decoder_normalize_before=pre,
        )
        lines = random_lines(draw.randint(1, 6), VOCABULARY, draw.randint(1, 25), seed)
        options = {
            "beam_size": draw.choice((1, 2, 4, 5)),
            "max_len_a": draw.choice((0, 1.5)),
            "max_len_b": draw.randint(3, 25),
            "min_len": draw.randint(1, 3),
            "len_penalty": draw.choice((0.6, 1.0)),
        }
        assert_same(*both(model, source_batch(lines, VOCABULARY), **options))


def test_prefixes_of_different_lengths_are_continued_as_in_fairseq() -> None:
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(4, VOCABULARY), VOCABULARY)
    pad, eos = VOCABULARY.pad(), VOCABULARY.eos()
    prefix = torch.tensor([[7, 8, 9], [5, pad, pad], [6, 6, eos], [pad, pad, pad]])
    for beam in (1, 4):
        ours, stock = both(model, sample, beam_size=beam, max_len_b=15, prefix_tokens=prefix)
        assert_same(ours, stock)
        assert ours[0][0]["tokens"][:3].tolist() == [7, 8, 9]


def test_a_source_of_one_token_and_an_empty_line() -> None:
    model = model_of(num_kv_heads=1)
    eos = VOCABULARY.eos()
    for line in ([eos], [9, eos]):
        sample = source_batch([torch.tensor(line)], VOCABULARY)
        assert_same(*both(model, sample, beam_size=4, max_len_b=10))


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_heads_that_are_one_wide(kv_heads: int) -> None:
    widths = {"encoder_embed_dim": 8, "decoder_embed_dim": 8}
    model = model_of(num_kv_heads=kv_heads, **widths)
    sample = source_batch(random_lines(4, VOCABULARY), VOCABULARY)
    assert_same(*both(model, sample, beam_size=3, max_len_b=10))


def test_a_vocabulary_smaller_than_the_candidates() -> None:
    tiny = dictionary(words=2)
    model = build(tiny, num_kv_heads=2).double()
    randomize(model)
    sample = source_batch(random_lines(3, tiny), tiny)
    found = [
        kind([model], tiny, beam_size=4, max_len_b=8).generate([model], sample)
        for kind in (GroupedQueryGenerator, SequenceGenerator)
    ]
    assert_same(*found)


@pytest.mark.parametrize(("top_k_words", "top_p"), [(5, -1.0), (-1, 0.8), (-1, -1.0)])
def test_sampling_draws_what_fairseq_draws(top_k_words: int, top_p: float) -> None:
    """The same seed gives the same draws: the distribution is fairseq's, number by number."""

    def strategy(vocabulary):
        return search.Sampling(vocabulary, top_k_words, top_p)

    model = model_of(num_kv_heads=4)
    sample = source_batch(random_lines(6, VOCABULARY), VOCABULARY)
    for beam in (1, 3):
        assert_same(*both(model, sample, strategy, beam_size=beam, max_len_b=12))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_words_follow_each_other_twice(size: int) -> None:
    """What fairseq's search gives if it is told word by word what would repeat."""
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(6, VOCABULARY), VOCABULARY)
    prefix = torch.tensor([[7, 7, 7, 7]] * 2 + [[VOCABULARY.pad()] * 4] * 4)
    options: dict[str, Any] = {"beam_size": 4, "max_len_b": 30, "min_len": 20}
    for words in (None, prefix):
        ours = GroupedQueryGenerator([model], VOCABULARY, no_repeat_ngram_size=size, **options)
        stock = SequenceGenerator([model], VOCABULARY, **options)
        free = stock.generate([model], sample, prefix_tokens=words)
        stock.repeat_ngram_blocker = PlainRepeatBlock(size)
        found = ours.generate([model], sample, prefix_tokens=words)
        assert_same(found, stock.generate([model], sample, prefix_tokens=words))
        assert [h["tokens"].tolist() for h in found[2]] != [h["tokens"].tolist() for h in free[2]]
        said = [h["tokens"].tolist() for h in found[2]]  # without a prefix
        for tokens in said:
            sequences = list(zip(*(tokens[i:] for i in range(size)), strict=False))
            assert len(set(sequences)) == len(sequences)


def diverse(groups: int, strength: float) -> dict[str, Any]:
    strategy = search.DiverseBeamSearch(VOCABULARY, groups, strength)
    return {"beam_size": 4, "max_len_b": 20, "search_strategy": strategy}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_diverse_groups_are_fairseqs(groups: int) -> None:
    """Batch after batch; fairseq's own takes a line's number in the text for its place."""
    model = model_of(num_kv_heads=2)
    ours, alike = (
        GroupedQueryGenerator([model], VOCABULARY, **diverse(groups, strength))
        for strength in (0.7, 0.0)
    )
    assert ours.fallback_reason is None
    for seed, lines in ((1, 9), (2, 5)):
        sample = source_batch(random_lines(lines, VOCABULARY, seed=seed), VOCABULARY)
        stock = SequenceGenerator([model], VOCABULARY, **diverse(groups, 0.7))
        numbered = {**sample, "id": torch.arange(lines) + 100 * seed}
        found = ours.generate([model], numbered)
        assert_same(found, stock.generate([model], sample))
        said, said_alike = (
            [[h["tokens"].tolist() for h in each] for each in hypotheses]
            for hypotheses in (found, alike.generate([model], numbered))
        )
        assert (said == said_alike) == (groups == 1)


def test_both_work_where_fairseqs_search_has_to() -> None:
    models = [model_of(seed, num_kv_heads=2) for seed in (1, 2)]
    sample = source_batch(random_lines(5, VOCABULARY), VOCABULARY)
    ours = GroupedQueryGenerator(models, VOCABULARY, no_repeat_ngram_size=1, **diverse(2, 0.7))
    stock = SequenceGenerator(models, VOCABULARY, **diverse(2, 0.7))
    stock.repeat_ngram_blocker = PlainRepeatBlock(1)
    numbered = {**sample, "id": torch.arange(5) + 100}
    assert_same(ours.generate(models, numbered), stock.generate(models, sample))


def test_a_batch_that_does_not_fit_is_split_and_gives_the_same() -> None:
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(7, VOCABULARY), VOCABULARY)
    options: dict[str, Any] = {"beam_size": 4, "max_len_a": 1.0, "max_len_b": 5}
    whole = GroupedQueryGenerator([model], VOCABULARY, **options)
    split = GroupedQueryGenerator([model], VOCABULARY, memory_limit_bytes=1, **options)
    batches = []
    search_one = split._search
    split._search = lambda net_input, *rest: (  # type: ignore[method-assign]  # counts the batches
        batches.append(len(net_input["src_tokens"])) or search_one(net_input, *rest)
    )
    assert_same(split.generate([model], sample), whole.generate([model], sample))
    assert batches == [1] * 7


@pytest.mark.parametrize("beam", [1, 4])
def test_a_window_bounds_the_memory_that_is_predicted(beam: int) -> None:
    """A limit that holds the window's slots holds a target of any length; all slots need more."""
    sample = source_batch(random_lines(7, VOCABULARY), VOCABULARY)
    batches = {}
    for window in (3, None):
        model = model_of(num_kv_heads=2, decoder_window=window)
        width = sample["net_input"]["src_tokens"].shape[1]
        position = 2 * 2 * 2 * 4 * 8  # layers, keys and values, G, D, float64
        limit = 7 * (beam * 3 + 2 * width) * position  # the source's twice, for a copy
        for spare in (0, -1):
            generator = GroupedQueryGenerator(
                [model], VOCABULARY, beam_size=beam, max_len_b=60, memory_limit_bytes=limit + spare
            )
            sizes: list[int] = []
            generator._search = lambda net_input, *rest, _sizes=sizes: (  # type: ignore[method-assign]  # counts the batches
                _sizes.append(len(net_input["src_tokens"])) or []
            )
            generator.generate([model], sample)
            batches[window, spare] = sizes
    assert batches[3, 0] == [7]
    assert batches[3, -1] == [3, 4]
    assert len(batches[None, 0]) > 2


def test_gnmt_penalty_rescales_the_same_hypotheses() -> None:
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(5, VOCABULARY), VOCABULARY)
    options: dict[str, Any] = {"beam_size": 4, "max_len_b": 15}
    ours = GroupedQueryGenerator([model], VOCABULARY, gnmt_alpha=0.6, **options)
    for hypotheses in ours.generate([model], sample):
        for h in hypotheses:
            length = len(h["tokens"])  # </s> counts (Wu et al. 2016, section 7)
            expected = float(h["positional_scores"].sum()) / ((5 + length) / 6) ** 0.6
            assert float(h["score"]) == pytest.approx(expected, abs=1e-5)
        scores = [float(h["score"]) for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_what_is_not_supported_runs_in_fairseq_with_a_note(
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = [model_of(seed, num_kv_heads=2) for seed in (1, 2)]
    sample = source_batch(random_lines(4, VOCABULARY), VOCABULARY)
    with caplog.at_level(logging.WARNING):
        ours = GroupedQueryGenerator(models, VOCABULARY, beam_size=3, max_len_b=10)
    assert "an ensemble of models" in caplog.text
    stock = SequenceGenerator(models, VOCABULARY, beam_size=3, max_len_b=10)
    assert_same(ours.generate(models, sample), stock.generate(models, sample))
    with pytest.raises(ValueError, match="ensemble"):
        GroupedQueryGenerator(models, VOCABULARY, gnmt_alpha=0.6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    width=st.integers(1, 40 * _CHUNK),
    k=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_top_k_is_torchs(rows: int, width: int, k: int, seed: int) -> None:
    k = min(k, width)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    if seed % 3 == 0:
        x[:, : width // 2] = -torch.inf
    values, indices = top_k(x, k)
    torch.testing.assert_close(values, x.topk(k).values, atol=0, rtol=0)
    torch.testing.assert_close(x.gather(1, indices), values, atol=0, rtol=0)
    assert all(len(set(row)) == k for row in indices.tolist())
