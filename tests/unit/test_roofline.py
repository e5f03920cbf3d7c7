"""The papers' argument and the roofline: by hand, against costs.py, and as limits."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.intensity.models import PRESETS as MODELS
from experiments.intensity.models import architecture_of
from gqa_fairseq.architecture import Architecture, Heads
from gqa_fairseq.costs import (
    cache_bytes,
    decoding_work,
    encoder_parts,
    step_matrix_elements,
    step_work,
)
from gqa_fairseq.intensity import (
    Layer,
    incremental_counts,
    incremental_ratio,
    training_counts,
    training_ratio,
)
from gqa_fairseq.parity import regrouped
from gqa_fairseq.roofline import (
    Load,
    Machine,
    decoder_seconds,
    decoding_per_sentence,
    decoding_per_square,
    encoder_seconds,
    equal_batch,
    equal_target,
    kv_bytes,
    largest_batch,
    memory_of_weights,
    memory_per_sentence,
    step_seconds,
    step_weight_bytes,
    sum_of_longer,
    total_seconds,
    training_seconds,
)

PAPER = architecture_of(MODELS["paper"])
examples = settings(deadline=None, max_examples=60)  # a loaded machine is no failure
SMALL = replace(
    PAPER, d_model=16, encoder_heads=Heads(4, 4, 4), decoder_heads=Heads(4, 4, 4), vocab_size=30,
    encoder_d_ff=32, decoder_d_ff=32, max_source_positions=0, max_target_positions=0,
)  # fmt: skip


# Arithmetic and memory both bind on it, in some parts and at some lengths.
EVEN = Machine("even", 1e6, {"float32": 4e6, "float16": 1e7}, 10**7, "a test")


LAYERS = st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 16)).flatmap(
    lambda hk: st.builds(
        Layer,
        b=st.integers(1, 512),
        n=st.integers(1, 4096),
        d=st.just(hk[0] * hk[1]),
        h=st.just(hk[0]),
        G=st.sampled_from([g for g in (1, 2, 4, 8) if hk[0] % g == 0]),
    )
)


MODELS_AT_RANDOM = st.builds(
    lambda own, G, window, d_ff: replace(
        regrouped(own, G, "all", "kept"), window=window, decoder_d_ff=d_ff
    ),
    st.just(SMALL),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 1, 5, 1000]),
    st.integers(1, 200),
)


LOADS = st.builds(
    Load,
    batch=st.integers(1, 300),
    source_tokens=st.integers(1, 60),
    target_tokens=st.integers(1, 60),
    beam=st.integers(1, 5),
    weights=st.sampled_from(["float32", "float16", "int8"]),
    cache=st.sampled_from(["float32", "float16"]),
)


MACHINES_AT_RANDOM = st.builds(
    lambda memory, flops: Machine("any", memory, {"float32": flops, "float16": 3 * flops}, 0, "-"),
    st.floats(1e3, 1e9),
    st.floats(1e3, 1e9),
)


# The papers' argument.


def test_a_layer_by_hand() -> None:
    """b = 2, n = 3, d = 8, h = 4, G = 2: heads of 2, keys 4 wide."""
    layer = Layer(2, 3, 8, 4, 2)
    assert (layer.k, layer.kv, layer.matrices) == (2, 4, 8 * 8 * 2 + 8 * 4 * 2)
    steps = incremental_counts(layer)
    assert steps.weights == 3 * 192
    assert steps.keys_and_values == 2 * 2 * 4 * (1 + 2 + 3) + 2 * 2 * 4 * 3
    assert steps.activations == 2 * 3 * 4 * 8
    assert (steps.projections, steps.attention) == (2 * 3 * 192, 2 * 2 * 8 * (1 + 2 + 3))
    at_once = training_counts(layer)
    assert at_once.weights == 192
    assert at_once.keys_and_values == 2 * 2 * 3 * 4
    assert at_once.scores == 2 * 2 * 4 * 3 * 3
    assert (at_once.projections, at_once.attention) == (2 * 3 * 192, 2 * 2 * 3 * 3 * 8)
    assert at_once.ratio == Fraction(at_once.elements, 2 * 3 * 192 + 288)


@examples
@given(LAYERS)
def test_a_layers_counts_are_those_of_the_costs(layer: Layer) -> None:
    """A decoder of this one layer, less the same with no cache: what is left is self-attention."""
    n = min(layer.n, 20)
    layer = replace(layer, n=n)
    own = replace(SMALL, d_model=layer.d, decoder_layers=1, vocab_size=0)
    own = replace(own, decoder_heads=Heads(layer.h, layer.k, layer.G))
    steps = [
        step_work(own, batch=layer.b, beam=1, source_tokens=1, length=t, element_bytes=1)
        for t in range(1, n + 1)
    ]
    counts = incremental_counts(layer)
    assert sum(w.bytes_by_part["self_kv"] for w in steps) == counts.keys_and_values
    # Beside them a step has cross-attention's two matrices and one position, and d_ff.
    rest = 2 * layer.d**2 + 2 * layer.d * own.decoder_d_ff + 2 * layer.d
    flops = 2 * (counts.projections + counts.attention + layer.b * n * rest)
    assert sum(w.flops for w in steps) == flops


@examples
@given(LAYERS)
def test_slopes_are_those_of_the_formulas(layer: Layer) -> None:
    """In 1/b the same; in n the formula's times a constant that G/h alone sets, 1/4 to 1/2."""
    counts, share = incremental_counts(layer), Fraction(layer.G, layer.h)
    assert Fraction(counts.weights, counts.projections) == Fraction(1, layer.b)
    longer = incremental_counts(replace(layer, n=layer.n + 7))
    slope = (longer.ratio_of_projections - counts.ratio_of_projections) / 7
    constant = slope / Fraction(layer.G, layer.d * layer.h)
    assert constant == 1 / (2 * (1 + share))
    assert Fraction(1, 4) <= constant <= Fraction(1, 2)


@examples
@given(LAYERS)
def test_attentions_own_operations_are_few_up_to_n_equal_to_d(layer: Layer) -> None:
    layer = replace(layer, n=min(layer.n, layer.d))
    counts = incremental_counts(layer)
    left_out = counts.ratio / counts.ratio_of_projections
    assert left_out >= Fraction(1, 2)
    if layer.h == layer.G:
        assert left_out >= Fraction(4, 5) - Fraction(1, 4 * layer.d)


@examples
@given(LAYERS)
def test_beyond_d_the_exact_ratio_stops_where_the_formula_does_not(layer: Layer) -> None:
    long = replace(layer, n=layer.n * 10**9)
    share = Fraction(layer.G, layer.h)
    assert float(incremental_counts(long).ratio) == pytest.approx(float(share), rel=1e-3)
    assert incremental_ratio(long) > 10 * incremental_counts(long).ratio


@examples
@given(LAYERS)
def test_training_reads_its_weights_once_and_its_scores_for_each_pair(layer: Layer) -> None:
    counts = training_counts(layer)
    assert Fraction(counts.weights, counts.projections) == Fraction(1, layer.b * layer.n)
    scores = Fraction(counts.scores, counts.projections)
    share = Fraction(layer.G, layer.h)
    assert scores == Fraction(layer.n, layer.d) / layer.k / (1 + share)
    within = replace(layer, n=min(layer.n, layer.d))
    assert training_counts(within).ratio <= 8 * training_ratio(within)


def test_formulas_by_hand() -> None:
    assert training_ratio(Layer(2, 64, 1024, 8, 8)) == 1 / 128 + 1 / 128
    assert incremental_ratio(Layer(4, 512, 1024, 8, 8)) == 0.5 + 0.25
    assert incremental_ratio(Layer(4, 512, 1024, 8, 1)) == 1 / 1024 + 0.0625 + 0.25
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        Layer(1, 1, 8, 3, 1)


# The roofline.


@examples
@given(*[st.tuples(st.floats(0, 1e3), st.floats(0, 1e3))] * 2, st.integers(1, 60))
def test_sums_of_the_longer_line(
    a: tuple[float, float], b: tuple[float, float], count: int
) -> None:
    plain = sum(max(a[0] + a[1] * i, b[0] + b[1] * i) for i in range(count))
    assert sum_of_longer(a, b, count) == pytest.approx(plain, rel=1e-9, abs=1e-9)


@examples
@given(MODELS_AT_RANDOM, LOADS, MACHINES_AT_RANDOM)
def test_a_decoding_is_its_steps(own: Architecture, load: Load, machine: Machine) -> None:
    parts = decoder_seconds(own, load, machine)
    steps = sum(
        step_seconds(own, replace(load, target_tokens=t), machine)
        for t in range(1, load.target_tokens + 1)
    )
    source = next(part.seconds for part in parts if part.name == "source")
    assert total_seconds(parts) == pytest.approx(source + steps, rel=1e-9)
    work = decoding_work(
        own,
        beam=load.beam,
        source_tokens=load.source_tokens,
        steps=[load.target_tokens] * load.batch,
        element_bytes=load.element_bytes,
        weight_bytes=load.weight_bytes,
    )
    assert sum(part.bytes_moved for part in parts) == work.bytes_moved
    assert sum(part.flops for part in parts) == work.flops
    for part in parts:
        assert part.seconds >= max(part.memory_s, part.arithmetic_s) * (1 - 1e-9)
        assert part.seconds <= (part.memory_s + part.arithmetic_s) * (1 + 1e-9)


def test_an_encoder_waits_for_memory_or_arithmetic_by_hand() -> None:
    load = Load(2, 3, 1)
    works = encoder_parts(SMALL, batch=2, source_tokens=3, element_bytes=4, weight_bytes=4)
    for part in encoder_seconds(SMALL, load, EVEN):
        work = works[part.name]
        assert part.memory_s == pytest.approx(work.bytes_moved / 1e6)
        assert part.arithmetic_s == pytest.approx(work.flops / 4e6)
        assert part.seconds == pytest.approx(max(part.memory_s, part.arithmetic_s))
    one_slow = replace(EVEN, flops_per_s={"float32": 1.0})
    assert {p.bound for p in encoder_seconds(SMALL, load, one_slow)} == {"arithmetic"}
    many = replace(EVEN, flops_per_s={"float32": 1e30})
    assert {p.bound for p in encoder_seconds(SMALL, load, many)} == {"memory"}


def test_a_measured_overhead_is_added_to_every_step() -> None:
    load, slower = Load(2, 3, 7), replace(EVEN, step_overhead_s=0.5)
    more = total_seconds(decoder_seconds(SMALL, load, slower))
    assert more == pytest.approx(total_seconds(decoder_seconds(SMALL, load, EVEN)) + 7 * 0.5)


def test_a_measured_rate_of_steps_has_the_weights_in_it() -> None:
    """Only a step's products take it; they wait for nothing but that, or for other bytes."""
    load, known = Load(2, 3, 7), replace(EVEN, step_flops_per_s=1e5)
    plain = {part.name: part for part in decoder_seconds(SMALL, load, EVEN)}
    parts = {part.name: part for part in decoder_seconds(SMALL, load, known)}
    for name in ("source", "self_attention", "cross_attention"):
        assert parts[name] == plain[name]
    vectors = SMALL.decoder_layers * 6 * 16 + 2 * 16
    matrices = 7 * (step_matrix_elements(SMALL) - 30 * 16)
    for name, elements, others in (
        ("layers", matrices, 7 * 2 * 16),
        ("output", 7 * 30 * 16, 7 * 2 * 2 * 30),
    ):
        assert parts[name].arithmetic_s == pytest.approx(2 * 2 * elements / 1e5)
        assert parts[name].memory_s == pytest.approx(4 * others / 1e6)
        assert parts[name].bytes_moved == plain[name].bytes_moved
        assert parts[name].seconds == pytest.approx(parts[name].arithmetic_s)
    assert plain["layers"].memory_s == pytest.approx(4 * (matrices + 7 * (vectors + 32)) / 1e6)
    one_step = step_seconds(SMALL, replace(load, target_tokens=1), known)
    assert one_step > step_seconds(SMALL, replace(load, target_tokens=1), EVEN)


def test_types_set_bytes_and_rates() -> None:
    """8-bit weights that have no rate of their own multiply in the cache's type."""
    machine = Machine("m", 1.0, {"float16": 7.0, "float32": 3.0}, 1, "-")
    parts = {
        (weights, cache): {
            part.name: part
            for part in decoder_seconds(SMALL, Load(1, 1, 1, 1, weights, cache), machine)
        }
        for weights, cache in (("int8", "float16"), ("float16", "float16"), ("float32", "float16"))
    }
    one, two, four = parts.values()
    assert one["layers"].arithmetic_s == two["layers"].arithmetic_s == two["layers"].flops / 7
    assert four["layers"].arithmetic_s == four["layers"].flops / 3
    assert four["self_attention"] == two["self_attention"]
    with pytest.raises(ValueError, match="m has no rate for bfloat16: choose one of float16"):
        decoder_seconds(SMALL, Load(1, 1, 1, 1, "bfloat16", "float16"), machine)


@examples
@given(LOADS, MACHINES_AT_RANDOM, st.sampled_from([None, 3]))
def test_with_d_ff_kept_fewer_heads_never_cost_more(
    load: Load, machine: Machine, window: int | None
) -> None:
    machine = replace(machine, memory_bytes=10**7)
    one, two, four = (replace(regrouped(SMALL, G, "all", "kept"), window=window) for G in (1, 2, 4))
    for passes in (encoder_seconds, decoder_seconds, training_seconds):
        times = [total_seconds(passes(own, load, machine)) for own in (one, two, four)]
        assert times == sorted(times)
    cached = [sum(kv_bytes(own, load).values()) for own in (one, two, four)]
    assert cached == [cached[0], 2 * cached[0], 4 * cached[0]]
    fit = [largest_batch(own, load, machine) for own in (one, two, four)]
    assert fit == sorted(fit, reverse=True)


@examples
@given(MODELS_AT_RANDOM, LOADS, MACHINES_AT_RANDOM)
def test_ceilings_are_limits(own: Architecture, load: Load, machine: Machine) -> None:
    many = replace(load, batch=10**12)
    limit = decoding_per_sentence(own, load, machine)
    assert total_seconds(decoder_seconds(own, many, machine)) / 10**12 == pytest.approx(limit)
    size = 10**12
    long = replace(
        load, target_tokens=size * load.target_tokens, source_tokens=size * load.source_tokens
    )
    took = total_seconds(decoder_seconds(own, long, machine)) / long.target_tokens**2
    assert took == pytest.approx(decoding_per_square(own, load, machine), rel=1e-4)


@examples
@given(MODELS_AT_RANDOM, LOADS)
def test_where_kv_equals_weights(own: Architecture, load: Load) -> None:
    weights = step_weight_bytes(own, load)
    each = sum(kv_bytes(own, replace(load, batch=1)).values())
    assert equal_batch(own, load) * each == weights
    target = equal_target(own, load)
    per_position = 2 * own.decoder_layers * own.decoder_heads.kv_width * load.element_bytes
    kept = target if own.window is None else min(target, own.window)
    source = target * Fraction(load.source_tokens, load.target_tokens)
    assert load.batch * per_position * (load.beam * kept + source) == weights


@examples
@given(MODELS_AT_RANDOM, LOADS)
def test_what_fits(own: Architecture, load: Load) -> None:
    machine = replace(EVEN, memory_bytes=10**6)
    fits = largest_batch(own, load, machine)
    weights, each = memory_of_weights(own, load), memory_per_sentence(own, load)
    assert fits == 0 or weights + fits * each <= 10**6
    assert weights + (fits + 1) * each > 10**6
    if load.weights == load.cache:
        assert weights == own.parameters * load.element_bytes
    assert each > sum(kv_bytes(own, replace(load, batch=1)).values())


def test_the_cache_is_what_costs_count() -> None:
    load = Load(3, 7, 9, 4, "float16", "float16")
    counted = cache_bytes(
        batch=3, beam=4, source_tokens=7, target_tokens=9, layers=6, num_kv_heads=8, head_dim=128,
        bytes_per_element=2,
    )  # fmt: skip
    assert kv_bytes(PAPER, load) == counted


@pytest.mark.parametrize(("G", "measured"), [(1, 1.75), (2, 1.55), (4, 1.36)])
def test_the_papers_model_on_a_cpu_is_predicted_within_15_percent(G: int, measured: float) -> None:
    """Greedy, 16 x 512/512, float32: factors measured side by side, rates by the probes between.

    Those were 13 to 22 GB/s and 235 to 265 GFLOP/s.
    """
    machine = Machine("2 cores", 17e9, {"float32": 250e9}, 2**34, "probes")
    multi_head, fewer = (
        total_seconds(
            decoder_seconds(regrouped(PAPER, g, "all", "matched"), Load(16, 512, 512), machine)
        )
        for g in (8, G)
    )
    assert multi_head / fewer == pytest.approx(measured, rel=0.15)
