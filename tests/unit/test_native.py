"""The native operators against float64, on the instruction sets that this processor has."""

from __future__ import annotations

import functools
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gqa_fairseq.attention import attend_cached
from gqa_fairseq.decoding.cpu import native
from gqa_fairseq.decoding.cpu.native import INSTRUCTION_SETS, MAX_BEAM, Operators, build
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from tests.plugin_models import build as build_model
from tests.plugin_models import dictionary, random_lines, randomize, source_batch

CAPABILITY = torch.backends.cpu.get_cpu_capability()
KNOWN = list(INSTRUCTION_SETS)  # best first; a processor has its own and all after it
HERE = KNOWN[KNOWN.index(CAPABILITY) :] if CAPABILITY in KNOWN else []
EPS = torch.finfo(torch.float32).eps

pytestmark = [
    pytest.mark.skipif(not HERE, reason=f"the native operators need AVX2, this is {CAPABILITY}"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]
everywhere = pytest.mark.parametrize("name", HERE)


operators_for = functools.cache(Operators)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


# Products


@everywhere
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 300),
    outputs=st.integers(1, 150),
    inputs=st.one_of(st.integers(1, 60), st.integers(500, 1100)),
    has_bias=st.booleans(),
    has_plus=st.booleans(),
    is_relu=st.booleans(),
    seed=st.integers(0, 999),
)
def test_products_of_any_shape(
    name: str,
    rows: int,
    outputs: int,
    inputs: int,
    has_bias: bool,
    has_plus: bool,
    is_relu: bool,
    seed: int,
) -> None:
    """Within the error that any order of float32 sums has at most."""
    ops, draw = operators_for(name), torch.Generator().manual_seed(seed)
    x = uniform(rows, inputs, generator=draw)
    weight = uniform(outputs, inputs, generator=draw)
    bias = uniform(outputs, generator=draw) if has_bias else None
    plus = uniform(rows, outputs, generator=draw) if has_plus else None
    y = ops.product(weight, bias, is_relu)(x, plus)

    terms = [x.double() @ weight.double().T]
    sizes = [x.double().abs() @ weight.double().abs().T]
    terms += [t.double().expand(rows, outputs) for t in (bias, plus) if t is not None]
    exact, size = sum(terms), sum([*sizes, *(t.abs() for t in terms[1:])])
    exact = exact.clamp(min=0) if is_relu else exact
    assert bool(((y - exact).abs() <= (inputs + 2) * EPS / 2 * size).all())


@everywhere
def test_a_row_of_a_product_is_the_same_in_any_batch(name: str, threads: int) -> None:
    ops, draw = operators_for(name), torch.Generator().manual_seed(0)
    product = ops.product(uniform(100, 700, generator=draw), None, False)
    x = uniform(257, 700, generator=draw)
    together = product(x)
    for rows in (slice(0, 1), slice(3, 17), slice(100, 250)):
        assert torch.equal(product(x[rows]), together[rows])


@everywhere
def test_rows_of_several_dimensions_and_with_gaps(name: str) -> None:
    ops, draw = operators_for(name), torch.Generator().manual_seed(0)
    weight = uniform(9, 16, generator=draw)
    x, plus = (
        uniform(4, 3, 32, generator=draw)[..., ::2],
        uniform(9, 3, 4, generator=draw).permute(2, 1, 0),
    )
    y = ops.product(weight, None, False)(x, plus)
    assert y.shape == (4, 3, 9)
    torch.testing.assert_close(y, x @ weight.T + plus)


@everywhere
def test_relu_keeps_what_is_not_a_number(name: str) -> None:
    ops = operators_for(name)
    y = ops.product(-torch.ones(1, 1), None, True)(torch.tensor([[math.nan], [1.0]]))
    assert y.isnan().tolist() == [[True], [False]]
    assert y[1] == 0


# Layer norm


@everywhere
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 90),
    width=st.integers(2, 700),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_layer_norm(name: str, rows: int, width: int, offset: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm = nn.LayerNorm(width)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=draw)
    x = torch.randn(rows, width, generator=draw) + offset
    y = operators_for(name).norm(norm)(x)
    with torch.no_grad():
        exact = norm.double()(x.double())
        centred = x.double() - x.double().mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        # What is subtracted is off by some units in the last place of x; then all is scaled.
        relative = EPS * (1 + x.double().abs().amax(-1, keepdim=True) / deviation)
        bound = relative * norm.weight.abs() * (1 + (centred / deviation).abs())
    assert bool(((y - exact).abs() <= 8 * (bound + EPS * exact.abs())).all())


# Attention

shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 5),
        "beam": st.integers(1, 6),
        "heads": st.sampled_from([(8, 8), (8, 4), (8, 2), (8, 1), (6, 2), (1, 1)]),
        "head_dim": st.sampled_from([4, 8, 12, 16, 24, 64, 128, 144]),
        "steps": st.integers(1, 90),
        "seed": st.integers(0, 999),
    }
)


def poisoned(*shape: int) -> Tensor:
    return torch.full(shape, math.nan)


@everywhere
@settings(deadline=None, max_examples=80)
@given(shape=shapes)
def test_self_attention_reads_what_the_beams_see(name: str, shape: dict[str, Any]) -> None:
    """Slots that no beam sees hold NaNs, as memory that was never written may."""
    ops, draw = operators_for(name), torch.Generator().manual_seed(shape["seed"])
    B, W, D = shape["batch"], shape["beam"], shape["head_dim"]
    H, G = shape["heads"]
    slots, capacity = shape["steps"] * W, (shape["steps"] + 2) * W
    newest = int(torch.randint(shape["steps"], (), generator=draw))  # a ring's may be anywhere
    new_slot = newest * W
    mask = torch.full((B, W, slots), -math.inf)
    ancestors = torch.randint(W, (B, W, shape["steps"]), generator=draw)
    ancestors[..., newest] = torch.arange(W)
    mask.scatter_(2, ancestors + W * torch.arange(shape["steps"]), 0)
    is_seen = (mask == 0).any(1)[:, None, :, None]
    keys, values = poisoned(2, B + 1, G, capacity, D)
    for cache in (keys, values):
        old = uniform(B, G, slots, D, generator=draw)
        cache[:B, :, :slots] = old.where(is_seen, math.nan)
        cache[:B, :, new_slot : new_slot + W] = math.nan
    fused = uniform(B, W, H + 2 * G, D, generator=draw)
    query, *new = fused.split((H, G, G), 2)
    expected = []
    for cache, step in zip((keys, values), new, strict=True):
        whole = cache[:B].clone()
        whole[:, :, new_slot : new_slot + W] = step.transpose(1, 2)
        expected.append(whole)

    ancestry = mask if W > 1 else None
    work = ops.attention(keys, values, slots, ancestry, (B, W, H), new_slot)
    out = ops.attend(work, query, (new[0], new[1]))

    for cache, whole in zip((keys, values), expected, strict=True):
        torch.testing.assert_close(cache[:B], whole, rtol=0, atol=0, equal_nan=True)
        assert bool(cache[B:].isnan().all())
    exact = [whole[:, :, :slots].double().nan_to_num() for whole in expected]
    reference = attend_cached(query.double(), exact[0], exact[1], mask.double())[0]
    torch.testing.assert_close(out.double(), reference, rtol=0, atol=1e-6)


@everywhere
@settings(deadline=None, max_examples=60)
@given(shape=shapes, has_padding=st.booleans())
def test_cross_attention_skips_the_padding(
    name: str, shape: dict[str, Any], has_padding: bool
) -> None:
    ops, draw = operators_for(name), torch.Generator().manual_seed(shape["seed"])
    B, W, D, S = shape["batch"], shape["beam"], shape["head_dim"], shape["steps"]
    H, G = shape["heads"]
    query = uniform(B, W, H, D, generator=draw)
    keys, values = uniform(2, B, G, S, D, generator=draw)
    first = torch.randint(S, (B,), generator=draw) * has_padding
    is_padding = torch.arange(S) < first[:, None]
    mask = torch.zeros(B, 1, S).masked_fill(is_padding[:, None], -math.inf)
    reference = attend_cached(query.double(), keys.double(), values.double(), mask.double())[0]
    for cache in (keys, values):
        cache.masked_fill_(is_padding[:, None, :, None], math.nan)
    work = ops.attention(keys, values, S, mask if has_padding else None, (B, W, H))
    out = ops.attend(work, query)
    torch.testing.assert_close(out.double(), reference, rtol=0, atol=1e-6)


@everywhere
def test_scores_far_apart(name: str) -> None:
    """The largest score takes all, whatever its size; nothing overflows."""
    ops = operators_for(name)
    query = torch.full((1, 1, 1, 16), 1e4)
    keys = torch.tensor([-1.0, 1.0, 0.999]).repeat_interleave(16).view(1, 1, 3, 16)
    values = torch.arange(48.0).view(1, 1, 3, 16)
    work = ops.attention(keys, values, 3, None, (1, 1, 1))
    assert torch.equal(ops.attend(work, query)[0, 0], values[0, 0, 1])


def test_which_heads_and_beams_have_code() -> None:
    assert Operators.can_attend(MAX_BEAM, 24)
    assert not Operators.can_attend(MAX_BEAM + 1, 24)
    assert not Operators.can_attend(4, 6)


# The vocabulary

rows_of_scores = st.tuples(st.integers(1, 6), st.integers(1, 400), st.integers(0, 999))


@everywhere
@settings(deadline=None, max_examples=60)
@given(shape=rows_of_scores, scale=st.sampled_from([0.01, 1.0, 30.0, 1e4]))
def test_log_softmax(name: str, shape: tuple[int, int, int], scale: float) -> None:
    rows, width, seed = shape
    x = scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    exact = torch.log_softmax(x.double(), -1)
    found = operators_for(name).log_softmax_(x)
    assert found is x
    torch.testing.assert_close(found.double(), exact, rtol=4 * EPS, atol=1e-5)


@everywhere
def test_log_softmax_of_what_is_not_a_number(name: str) -> None:
    """As PyTorch's: a model that has overflowed is not to look sane."""
    for bad in (math.nan, math.inf):
        x = torch.randn(3, 70)
        x[1, 37] = bad
        expected = torch.log_softmax(x, -1)
        assert bool(expected[1].isnan().all())
        found = operators_for(name).log_softmax_(x)
        assert torch.equal(found.isnan(), expected.isnan())


@everywhere
@settings(deadline=None, max_examples=100)
@given(
    shape=rows_of_scores,
    k=st.integers(1, 12),
    levels=st.sampled_from([3, 50, 10**6]),
    spoiled=st.sampled_from([None, -math.inf, math.nan]),
)
def test_the_best_of_a_row(
    name: str, shape: tuple[int, int, int], k: int, levels: int, spoiled: float | None
) -> None:
    """With few levels most values are equal; with NaNs and -inf, few are left to choose from."""
    rows, width, seed = shape
    k, draw = min(k, width), torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (rows, width), generator=draw).float()
    if spoiled is not None:
        x[torch.rand(rows, width, generator=draw) < 0.9] = spoiled
    values, at = operators_for(name).top_k(x, k)
    assert torch.equal(values, x.nan_to_num(nan=-math.inf, neginf=-math.inf).topk(k).values)
    assert torch.equal(x.nan_to_num(nan=-math.inf, neginf=-math.inf).gather(1, at), values)
    assert all(len(set(row)) == k for row in at.tolist())


# Building, and doing without


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.operators.cache_clear()
    yield tmp_path / "gqa_fairseq"
    native.operators.cache_clear()


def test_the_library_is_compiled_once(own_cache: Path) -> None:
    library = build(CAPABILITY)
    made = library.stat()
    assert build(CAPABILITY) == library
    assert library.stat() == made
    assert list(own_cache.iterdir()) == [library]  # and nothing is left of the making


@pytest.mark.parametrize(
    ("compiler", "cause"),
    [
        ("no-such-compiler", "No such file"),
        ("false", "exit status 1"),
        ("g++ --no-such-option", "unrecognized command-line option"),
        ("g++ -D__clang__", "clang's OpenMP"),
    ],
)
def test_without_a_compiler_the_log_says_so(
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler: str,
    cause: str,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING):
        assert native.operators() is None
        assert native.operators() is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "PyTorch's operators, which are slower: the native ones, which need g++ 11" in line
    assert cause in line
    assert "\n" not in line


def test_a_compiler_of_two_words(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as `ccache g++`."""
    monkeypatch.setenv("CXX", "env g++")
    assert native.operators() is not None


def test_an_old_processor_has_pytorchs_operators(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert native.operators() is None


@pytest.mark.parametrize("beam", [1, 4, MAX_BEAM + 1])
@pytest.mark.parametrize("options", [{}, {"encoder_embed_dim": 48, "decoder_embed_dim": 48}])
def test_searches_with_and_without(beam: int, options: dict[str, Any]) -> None:
    """float32 with either operators finds what float64 finds; heads of 6 have no native code."""
    vocabulary = dictionary(90)
    for g in (1, 2, 4, 8):
        model = build_model(vocabulary, seed=g, num_kv_heads=g, **options)
        randomize(model, scale=1.5, seed=g)
        sample = source_batch(random_lines(9, vocabulary, seed=g), vocabulary)
        found = []
        for is_native, dtype in (
            (True, torch.float32),
            (False, torch.float32),
            (True, torch.float64),
        ):
            model.to(dtype).decoder.is_native = is_native
            generator = GroupedQueryGenerator([model], vocabulary, beam_size=beam, max_len_b=15)
            found.append(generator.generate([model], sample))
            assert (model.decoder.decoding_weights().native is None) == (
                not is_native or dtype == torch.float64
            )
        tokens = [
            [[h["tokens"].tolist() for h in s[:4]] for s in hypotheses] for hypotheses in found
        ]
        assert tokens[0] == tokens[1] == tokens[2]
