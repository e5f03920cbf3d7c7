"""The argument, the roofline and their command: by hand, against costs.py, and as limits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_configs import ROOT

from experiments.errors import ExperimentError
from experiments.intensity import machines
from experiments.intensity.__main__ import as_json, main
from experiments.intensity.answer import Answer, answer
from experiments.intensity.machines import PRESETS as MACHINES
from experiments.intensity.machines import find_machine
from experiments.intensity.models import PRESETS as MODELS
from experiments.intensity.models import architecture_of
from experiments.intensity.published import implied
from experiments.records.record import read_record
from gqa_fairseq.architecture import FEED_FORWARDS, PLACEMENTS, Architecture, Heads, Variant
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
from gqa_fairseq.parity import BASELINES, regrouped
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

examples = settings(deadline=None, max_examples=60)  # a loaded machine is no failure

PAPER = architecture_of(MODELS["paper"])
SMALL = replace(
    PAPER, d_model=16, encoder_heads=Heads(4, 4, 4), decoder_heads=Heads(4, 4, 4), vocab_size=30,
    encoder_d_ff=32, decoder_d_ff=32, max_source_positions=0, max_target_positions=0,
)  # fmt: skip
# Arithmetic and memory both bind on it, in some parts and at some lengths.
EVEN = Machine("even", 1e6, {"float32": 4e6, "float16": 1e7}, 10**7, "a test")
JOB = "results/runs/quickstart/mqa-seed1-df5b3c57d29a"

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


# Models and machines.


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("d_ff", FEED_FORWARDS)
@pytest.mark.parametrize("size", sorted(BASELINES))
def test_regrouped_is_what_the_baseline_resolves(size: str, d_ff: Any, placement: Any) -> None:
    baseline = BASELINES[size]
    for G in (1, 2, 4, 8):
        expected = replace(baseline.resolve(Variant(G, placement, d_ff=d_ff)), name="")
        found = regrouped(baseline.multi_head, G, placement, d_ff)
        assert replace(found, name="") == expected


def test_a_multi_query_model_gets_its_heads_back() -> None:
    multi_query = regrouped(PAPER, 1, "all", "matched")
    assert multi_query.decoder_d_ff == 5440
    assert regrouped(multi_query, 8, "all", "matched") == PAPER


def test_presets_have_the_published_numbers_of_parameters() -> None:
    assert PAPER.parameters == 209_523_712  # README
    # T5.1.1 Large has 783,150,080: norms of one vector, and 32 buckets of positions a head.
    large = architecture_of(MODELS["t5-large"])
    norms = 1024 * (24 * 2 + 24 * 3 + 2)
    assert large.parameters - norms + 2 * 32 * 16 == 783_150_080
    assert large.ffn_parameters(large.decoder_d_ff) == 3 * 1024 * 2816
    xxl = architecture_of(MODELS["t5-xxl"])
    assert xxl.ffn_parameters(xxl.decoder_d_ff) == 3 * 4096 * 10_240
    # Vaswani et al. 2017, table 3, in millions: positions there are no parameters, here neither.
    assert round(architecture_of(MODELS["base"]).parameters / 1e6) in (63, 65)
    assert round(architecture_of(MODELS["big"]).parameters / 1e6) in (213, 214)


def test_every_machine_says_where_its_numbers_are_from() -> None:
    for machine in MACHINES.values():
        assert len(machine.source) > 20
        assert machine.usual in machine.flops_per_s
        assert find_machine(machine.name.lower()) is machine


def test_this_machine_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = iter([1e9, 2e9])
    monkeypatch.setattr(machines, "MACHINES_FOLDER", tmp_path / "machines")
    monkeypatch.setattr(
        machines, "_probe", lambda *_: machines._Probe(next(speeds), {"float32": 1e10}, None)
    )
    first, kept = find_machine("here"), find_machine("here")
    assert (first.bytes_per_s, kept) == (1e9, first)
    assert "measured on 20" in first.source
    again = find_machine("here", again=True)
    assert (again.bytes_per_s, find_machine("here")) == (2e9, again)
    (path,) = (tmp_path / "machines").iterdir()
    assert find_machine(str(path)) == again


MACHINE_FILE = {
    "schema_version": 1, "name": "mine", "bytes_per_s": 1e10, "flops_per_s": {"float32": 1e11},
    "memory_bytes": 10**10, "source": "a test", "measured": "2026-01-02",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("{", "not JSON"),
        ({"schema_version": 9}, "schema_version: 9, but this code reads 1"),
        ({"bytes_per_s": 0}, "bytes_per_s: "),
        ({"flops_per_s": {"float8": 1.0}}, "flops_per_s has float8, not one of float32"),
        ({"usual": "int8"}, "flops_per_s has no rate for int8"),
        ({"speed": 3}, "unknown field `speed`"),
        ({"measured": "yesterday"}, "measured: "),
    ],
)
def test_a_damaged_machine_file_is_refused(change: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(change if isinstance(change, str) else json.dumps(MACHINE_FILE | change))
    with pytest.raises(ExperimentError, match=problem) as error:
        find_machine(str(path))
    assert str(path) in str(error.value)


# The answer and the command.


def test_shazeers_steps_imply_a_small_share_of_the_bandwidth() -> None:
    """Multi-head: weights, keys and values and scores of a step on a core, over 47 ms."""
    rows = {row.attention: row for row in implied()}
    row = rows["multi-head"]
    weights = 6 * (6 * 1024**2 + 2 * 1024 * 4096) + 32_001 * 1024 + 6 * 6 * 1024 + 2 * 1024
    cache = 128 * 2 * 6 * 1024 * (128 + 1 + 128)
    elements = weights + cache + 2 * 128 * 32_001 + 128 * 1024
    assert row.bytes_moved == 2 * elements
    assert row.step_s == pytest.approx(0.0471, abs=1e-4)
    assert row.bytes_per_s == pytest.approx(2 * elements / (46e-6 * 1024))
    assert row.share_of_peak == pytest.approx(row.bytes_per_s / 350e9)
    assert rows["multi-query"].step_s == pytest.approx(0.0039, abs=1e-4)
    assert row.predicted_s < row.step_s


def test_the_verdict_follows_the_numbers() -> None:
    def verdict(**load: int) -> str:
        sizes = {"batch": 1, "source_tokens": 16, "target_tokens": 16} | load
        return answer("paper", PAPER, Load(**sizes), MACHINES["CPU"]).verdict

    alone = verdict()
    assert alone.startswith("Do not bother: at batch 1 the weights are 99% and keys and values 0%")
    assert verdict(batch=64, source_tokens=128, target_tokens=128).startswith("It pays: ")
    assert "1 key/value head instead of 8 makes it " in alone
    long = {"source_tokens": 4096, "target_tokens": 4096}
    big = replace(MACHINES["CPU"], memory_bytes=16 * 10**9)
    no_positions = replace(PAPER, max_source_positions=0, max_target_positions=0)
    for batch, end in ((5, "fit."), (50, "fit, and so the 50 that"), (500, "fit, but not of 500.")):
        load = Load(batch, **long)
        assert end in answer("paper", no_positions, load, big).verdict
    tiny = replace(MACHINES["CPU"], memory_bytes=10**6)
    assert "not one sentence fits" in answer("paper", PAPER, Load(1, 16, 16), tiny).verdict


def test_rows_are_multi_head_at_one_and_grow_to_their_ceilings() -> None:
    found = answer("paper", PAPER, Load(64, 128, 128, 1, *["float16"] * 2), MACHINES["V100"])
    assert [row.num_kv_heads for row in found.rows] == [1, 2, 4, 8]
    last = found.rows[-1]
    ones = ("speed_up", "training_speed_up", "batch_ceiling", "length_ceiling")
    assert [getattr(last, name) for name in ones] == [1, 1, 1, 1]
    assert [row.length_ceiling for row in found.rows] == pytest.approx([8, 4, 2, 1])
    for row in found.rows[:-1]:
        assert 1 < row.speed_up < row.batch_ceiling < row.length_ceiling
        assert row.training_speed_up == pytest.approx(1, abs=0.1)
    assert {row.architecture.parameters for row in found.rows} == {PAPER.parameters}
    shares = last.share_of_bytes(*(part.name for part in last.decoder))
    assert shares == pytest.approx(1)


def test_placement_and_feed_forward_reach_the_rows() -> None:
    asked: dict[str, Any] = {"placement": "decoder", "feed_forward": "kept", "chosen": 4}
    found = answer("paper", PAPER, Load(8, 16, 16), MACHINES["CPU"], **asked)
    assert found.chosen == 4
    for row in found.rows:
        assert row.architecture.encoder_heads == PAPER.encoder_heads
        assert row.architecture.decoder_d_ff == 4096
        assert row.encoder_s == found.rows[-1].encoder_s


def test_a_job_asks_about_its_own_heads(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--machine", "CPU", "--source", "30", "--target", "30", "--json"]
    for path in (ROOT / JOB, ROOT / JOB / "record.json"):
        assert main(["--job", str(path), *words]) == 0
        found = json.loads(capsys.readouterr().out)
        record = read_record(ROOT / JOB / "record.json")
        assert found["model"] == "quickstart/mqa-seed1-df5b3c57d29a"
        assert found["architecture"] == msgspec.to_builtins(record.architecture)
        assert found["chosen"] == 1
        built = found["rows"][0]["architecture"]
        assert built["decoder_d_ff"] == record.architecture.decoder_d_ff


def test_the_screen_and_the_json_have_the_same_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--machine", "A100", "--batch", "64", "--kv-heads", "2"]
    picture = tmp_path / "picture.png"
    assert main([*words, "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    raw = capsys.readouterr().out
    found = json.loads(raw)
    assert found["verdict"] in text
    assert "2 key/value heads instead of 8 make it" in found["verdict"]
    for row in found["rows"]:
        assert f"{row['speed_up']:.2f}" in text
        assert f"{row['largest_batch']:,}" in text
        assert row["speed_up"] == found["rows"][-1]["decoder_s"] / row["decoder_s"]
    assert "bfloat16" in text
    assert "waits for" in text
    # n = 128 of b = 64: d = 1024, h = 8, k = 128.
    assert found["ratios"] == {
        "training": 1 / 128 + 1 / (64 * 128),
        "multi_head": 1 / 8 + 1 / 64,
        "chosen": 1 / 1024 + 1 / 32 + 1 / 64,
    }
    assert "training 1/k + 1/(bn) = 0.008, decoding n/d + 1/b = 0.141" in text
    assert "is beyond" not in text
    # What is printed can be read as what it is.
    assert json.loads(as_json(msgspec.json.decode(raw, type=Answer))) == found


def test_lines_longer_than_the_model_is_wide_leave_the_formulas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "--machine A100 --d-model 64 --target 128 --positions 0"
    assert main(words.split()) == 0
    assert "they assume n <= d, and here n = 128 is beyond d = 64." in capsys.readouterr().out


def test_options_change_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--layers 3 --decoder-layers 2 --d-model 64 --heads 4 --head-dim 8 --d-ff 100 --gated "
        "--vocab-size 90 --positions 0 --window 5 --bias --source 999 --machine H100 --json"
    )
    assert main(words.split()) == 0
    found = json.loads(capsys.readouterr().out)
    own = found["architecture"]
    assert found["ratios"] is None  # 4 heads of 8 in a width of 64
    assert (own["encoder_layers"], own["decoder_layers"], own["d_model"]) == (3, 2, 64)
    assert own["decoder_heads"] == {"num_heads": 4, "head_dim": 8, "num_kv_heads": 4}
    assert (own["decoder_d_ff"], own["window"], own["bias"]) == (150, 5, True)
    assert (own["vocab_size"], own["max_source_positions"]) == (90, 0)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--machine A10", "choose one of TPUv2, TPUv3, TPUv4, V100, A100, H100, H200, CPU, here"),
        ("--model t5", "choose one of paper, base, big, t5-large, t5-xxl"),
        ("--machine A100 --heads 7", "d_model 1024 is not divisible by 7 heads"),
        ("--machine A100 --kv-heads 3", "choose one of 1, 2, 4, 8"),
        ("--machine A100 --target 257", "a target of 257 tokens is longer than the model's 256"),
        ("--machine A100 --source 300", "a source of 300 tokens is longer than the model's 256"),
        ("--machine V100 --weights bfloat16", "no rate for bfloat16: choose one of float16"),
        ("--machine V100 --cache int8", "choose float32, bfloat16 or float16"),
        ("--machine A100 --batch 0", "'0' is not a whole number above 0"),
        ("--machine A100 --batch 1.5", "'1.5' is not a whole number above 0"),
        ("--machine A100 --positions -1", "--positions -1 must be 0"),
        ("--machine A100 --gated --d-ff 101", "d_ff 101 of a gated layer must be even"),
        ("--machine none.json", "none.json: cannot be read"),
        ("--job none", "none: cannot be read"),
        ("--checkpoint none", "--checkpoint none: no such file"),
        (f"--job {ROOT / JOB} --heads 4", "--heads changes a preset"),
        ("--formulas --heads 7", "not divisible by 7 heads"),
        ("--formulas --json", "not allowed with argument"),
        ("--what", "unrecognized arguments: --what"),
    ],
)
def test_bad_input_is_one_line(
    words: str, problem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert problem in shown.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_needs_neither_torch_nor_matplotlib() -> None:
    script = (
        "import sys; from experiments.intensity.__main__ import main; "
        "codes = [main([*words.split(), '--machine', 'A100']) "
        "for words in ('', '--formulas', '--published', '--json', '--model nobody')]; "
        "print(codes, sorted({'torch', 'fairseq', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.endswith("[0, 0, 0, 0, 2] []\n")
    for shown in ("training: optimizer", "64 d", "GB/s implied"):
        assert shown in done.stdout
