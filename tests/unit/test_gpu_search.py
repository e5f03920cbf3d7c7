"""The GPU's driver, run on the CPU, against the CPU's: the same hypotheses and scores.

The code is what a GPU runs, apart from the capture of its step as a graph; test_search.py compares
the CPU's driver with fairseq's SequenceGenerator.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import weakref
from typing import Any

import pytest
import torch
from fairseq import search
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from gqa_fairseq.costs import cache_bytes
from gqa_fairseq.decoding.gpu.search import GpuSearch, bucket, source_edges
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from tests.kernel_runs import needs_gpu, needs_triton, run_tests
from tests.plugin_models import build, dictionary, random_lines, randomize, source_batch

VOCABULARY = dictionary()
Hypotheses = list[list[dict[str, Any]]]


def model_of(seed: int = 0, **options: Any) -> Any:
    model = build(VOCABULARY, seed=seed, **options)
    randomize(model, scale=1.5, seed=seed)
    return model.double()


def gpu_generator(model: Any, **options: Any) -> GroupedQueryGenerator:
    return GroupedQueryGenerator([model], VOCABULARY, driver="gpu", **options)


def assert_same(ours: Hypotheses, expected: Hypotheses, tolerance: float = 1e-6) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert [h["tokens"].tolist() for h in a] == [h["tokens"].tolist() for h in b]
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x["score"], y["score"], atol=tolerance, rtol=0)
            torch.testing.assert_close(
                x["positional_scores"], y["positional_scores"], atol=tolerance, rtol=0
            )


def check(model: Any, *samples: dict, **options: Any) -> GroupedQueryGenerator:
    """The GPU's driver finds, batch after batch, what the CPU's finds; returns its generator."""
    call = {k: options.pop(k) for k in ("bos_token",) if k in options}
    expected = GroupedQueryGenerator([model], VOCABULARY, driver="cpu", **options)
    ours = gpu_generator(model, **options)
    for sample in samples:
        assert_same(
            ours.generate([model], sample, **call), expected.generate([model], sample, **call)
        )
    assert ours.gpu_search is not None
    assert expected.gpu_search is None
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
        decoder_window=draw.choice((None, 1, 3, 40)),
        decoder_head_dim=draw.choice((None, 2, 7)),
        mha_ffn_embed_dim=160,  # enough to pay for wider heads
    )
    options: dict[str, Any] = {
        "beam_size": draw.choice((1, 2, 4, 5)),
        "max_len_a": draw.choice((0, 1.5)),
        "max_len_b": draw.randint(3, 24) + (12 if seed % 8 == 0 else 0),
        "min_len": draw.randint(1, 3),
        "len_penalty": draw.choice((0.6, 1.0)),
        "unk_penalty": draw.choice((0.0, 1.0)),
    }
    longest = draw.randint(1, 25)
    samples = [
        source_batch(random_lines(draw.randint(1, 9), VOCABULARY, longest, seed + i), VOCABULARY)
        for i in range(2 if seed % 8 == 0 else 1)  # a second batch may use the first one's memory
    ]
    check(model, *samples, **options)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_same_hypotheses_for_random_models(first: int) -> None:
    for seed in range(first, first + 25):
        check_random_model(seed)


@needs_triton
def test_through_the_kernel_in_the_interpreter() -> None:
    run_tests("kernel_search.py", TRITON_INTERPRET="1", KERNEL_DEVICE="cpu")


@needs_triton
@needs_gpu
def test_through_the_kernel_on_the_gpu() -> None:
    run_tests("kernel_search.py", TRITON_INTERPRET="0", KERNEL_DEVICE="cuda")


def eager_to_end(seed: int, scale: float) -> Any:
    """A model whose sentences end at very different steps."""
    model = model_of(seed, num_kv_heads=2, share_all_embeddings=False)
    with torch.no_grad():
        model.decoder.output_projection.weight[VOCABULARY.eos()] *= scale
    return model


@pytest.mark.parametrize(("beam", "sizes"), [(1, [10, 5]), (4, [10, 5, 2])])
def test_sentences_that_finish_leave_the_batch(beam: int, sizes: list[int], monkeypatch) -> None:
    seen: list[tuple[int, int]] = []
    shrink = GpuSearch._shrink

    def shrink_and_note(self: GpuSearch, is_left: Tensor, size: int) -> None:
        seen.append((size, self.cache.length))
        shrink(self, is_left, size)

    monkeypatch.setattr(GpuSearch, "_shrink", shrink_and_note)
    sample = source_batch(random_lines(20, VOCABULARY, seed=0), VOCABULARY)
    ours = check(eager_to_end(0, 3.0), sample, beam_size=beam, max_len_b=60)
    assert [size for size, _ in seen] == sizes
    assert (seen[0][1], seen[-1][1]) == (32, 64)  # the last ones have more slots in view
    assert ours.gpu_search is not None
    assert ours.gpu_search.cache.batch == sizes[-1]


def test_what_lies_in_memory_does_not_matter() -> None:
    """NaN wherever the batches before have left keys and values."""
    model = eager_to_end(0, 3.0)
    options: dict[str, Any] = {"beam_size": 3, "max_len_b": 40}
    ours = gpu_generator(model, **options)
    expected = GroupedQueryGenerator([model], VOCABULARY, driver="cpu", **options)
    largest = None
    for count, longest in ((17, 25), (17, 9), (3, 30), (1, 1)):
        lines = random_lines(count, VOCABULARY, longest)
        sample = source_batch(lines, VOCABULARY)
        assert_same(ours.generate([model], sample), expected.generate([model], sample))
        assert largest in (
            None,
            ours.gpu_search,
        )  # the memory of the first batch holds the others
        largest = ours.gpu_search
        assert largest is not None
        for pairs in largest.cache._memory:
            for keys, values in pairs:
                keys.fill_(math.nan)
                values.fill_(math.nan)


def test_memory_grows_to_what_all_batches_need() -> None:
    model = model_of(num_kv_heads=2)
    samples = [
        source_batch(random_lines(count, VOCABULARY, longest), VOCABULARY)
        for count, longest in ((20, 3), (2, 60), (20, 3))
    ]
    ours = check(model, *samples, beam_size=2, max_len_a=1.0, max_len_b=3)
    assert ours.gpu_search is not None
    assert ours.gpu_search.capacity.rows == 20
    assert ours.gpu_search.capacity.sources == max(20 * 16, 2 * 64)
    assert ours.gpu_search.capacity.targets == max(20 * 32, 2 * 64)


def test_sources_padded_on_the_right_or_between() -> None:
    pad = VOCABULARY.pad()
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(5, VOCABULARY), VOCABULARY)
    left = sample["net_input"]["src_tokens"]
    right = torch.stack([row.roll(-int(row.eq(pad).sum())) for row in left])
    between = left.clone()
    between[0, -3] = pad
    for tokens, is_taken in ((right, True), (between, False)):
        sample["net_input"]["src_tokens"] = tokens
        assert (source_edges(tokens.eq(pad)) is not None) == is_taken
        options: dict[str, Any] = {"beam_size": 2, "max_len_b": 12}
        ours = gpu_generator(model, **options)
        expected = GroupedQueryGenerator([model], VOCABULARY, driver="cpu", **options)
        assert_same(ours.generate([model], sample), expected.generate([model], sample))
        assert (ours.gpu_search is not None) == is_taken


def test_what_is_refused_runs_in_the_other_driver() -> None:
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(3, VOCABULARY), VOCABULARY)
    prefix = torch.tensor([[7], [8], [9]])
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"beam_size": 3}, {"prefix_tokens": prefix}),
        ({"beam_size": 2, "search_strategy": search.Sampling(VOCABULARY)}, {}),
        ({"beam_size": 22}, {}),  # 2 * 22 words are not in the vocabulary
    ]
    for options, call in cases:
        found = []
        for driver in ("gpu", "cpu"):
            generator = GroupedQueryGenerator(
                [model], VOCABULARY, driver=driver, max_len_b=8, **options
            )
            torch.manual_seed(5)
            found.append(generator.generate([model], sample, **call))
            assert generator.gpu_search is None
        assert_same(*found)


def test_new_weights_are_used() -> None:
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(4, VOCABULARY), VOCABULARY)
    options: dict[str, Any] = {"beam_size": 3, "max_len_b": 12}
    ours = gpu_generator(model, **options)
    for seed in (1, 2):
        randomize(model, scale=1.5, seed=seed)
        expected = GroupedQueryGenerator([model], VOCABULARY, driver="cpu", **options)
        assert_same(ours.generate([model], sample), expected.generate([model], sample))


def test_training_gets_the_memory_back() -> None:
    """As in validation with --eval-bleu, in the middle of training."""
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(4, VOCABULARY), VOCABULARY)
    ours = gpu_generator(model, beam_size=2, max_len_b=5)
    expected = ours.generate([model], sample)
    assert ours.gpu_search is not None
    memory = weakref.ref(ours.gpu_search)
    gc.disable()
    model.train()
    gc.enable()
    assert memory() is None
    assert_same(ours.generate([model.eval()], sample), expected)
    memory = weakref.ref(ours.gpu_search)
    gc.disable()
    del ours
    gc.enable()
    assert memory() is None


def test_a_batch_too_large_for_the_memory_is_split(monkeypatch, caplog) -> None:
    """Where the prediction says so, and where memory runs out all the same."""
    model = model_of(num_kv_heads=2)
    sample = source_batch(random_lines(7, VOCABULARY), VOCABULARY)
    options: dict[str, Any] = {"beam_size": 4, "max_len_a": 1.0, "max_len_b": 5}
    expected = gpu_generator(model, **options).generate([model], sample)
    assert_same(
        gpu_generator(model, memory_limit_bytes=1, **options).generate([model], sample), expected
    )
    run, batches = GpuSearch.run, []

    def run_small_ones(self: GpuSearch, source, edges, *rest):
        batches.append(len(edges[0]))
        if batches[-1] > 3:
            raise torch.OutOfMemoryError
        return run(self, source, edges, *rest)

    monkeypatch.setattr(GpuSearch, "run", run_small_ones)
    assert_same(gpu_generator(model, **options).generate([model], sample), expected)
    assert batches == [7, 3, 4, 2, 2]
    assert "7 sentences do not fit in memory" in caplog.text


@pytest.mark.parametrize(("g", "window"), [(1, None), (2, None), (8, None), (2, 5), (2, 50)])
def test_the_bytes_in_use_are_those_predicted(g: int, window: int | None) -> None:
    model = model_of(num_kv_heads=g, decoder_window=window)
    lines = [torch.tensor([9, 8, 7, VOCABULARY.eos()])] * 17  # 18 rows
    ours = gpu_generator(model, beam_size=3, max_len_b=35, min_len=35)
    ours.generate([model], source_batch(lines, VOCABULARY))
    assert ours.gpu_search is not None
    assert ours.gpu_search.cache.nbytes == cache_bytes(
        batch=17,
        beam=3,
        source_tokens=4,
        target_tokens=36,
        window=window,
        layers=2,
        num_kv_heads=g,
        head_dim=4,
        bytes_per_element=8,
    )


@pytest.mark.parametrize("window", [3, 32])
def test_memory_holds_the_window_and_no_more(window: int) -> None:
    """Whatever the length, and with a second batch of another shape in the same memory."""
    model = model_of(num_kv_heads=2, decoder_window=window)
    for max_len in (35, 60):
        samples = [
            source_batch(random_lines(count, VOCABULARY, longest), VOCABULARY)
            for count, longest in ((8, 9), (3, 5))
        ]
        ours = check(model, *samples, beam_size=3, max_len_b=max_len, min_len=max_len - 2)
        assert ours.gpu_search is not None
        cache = ours.gpu_search.cache
        own, _ = cache._memory
        slots = 8 * window * 3  # rows, places and beams
        assert sum(t.nbytes for pair in own for t in pair) == slots * 2 * 2 * 2 * 4 * 8
        assert cache._all_readers is not None
        assert cache._all_readers.numel() == slots


def test_sizes_are_few_and_near() -> None:
    for least in (1, 16, 32):
        sizes = [bucket(n, least) for n in range(1, 3000)]
        assert all(
            n <= size <= max(n + n // 8 + 1, n + least - 1) for n, size in enumerate(sizes, 1)
        )
        assert [bucket(size, least) for size in sizes] == sizes
        assert len(set(sizes)) < 90


@pytest.mark.parametrize("beam", [1, 4])
def test_a_large_vocabulary_in_single_precision(beam: int) -> None:
    """Against fairseq's own search: the best words of many chunks, and packed weights."""
    words = dictionary(words=4000)
    model = build(words, num_kv_heads=4)
    randomize(model, scale=1.5, seed=4)
    sample = source_batch(random_lines(7, words), words)
    options: dict[str, Any] = {"beam_size": beam, "max_len_b": 15, "unk_penalty": 0.5}
    ours = GroupedQueryGenerator([model], words, driver="gpu", **options)
    stock = SequenceGenerator([model], words, **options)
    found, expected = ours.generate([model], sample), stock.generate([model], sample)
    assert_same(found, expected, tolerance=1e-5)
    assert ours.gpu_search is not None
