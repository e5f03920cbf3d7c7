"""Grouped-query attention against attention spelled out with repeated heads, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gqa_fairseq.attention import GroupedQueryAttention, attend_cached
from gqa_fairseq.decoding.cpu.native import operators_for
from gqa_fairseq.decoding.gpu.cache import attend_visible

torch.set_num_threads(1)

shapes = st.fixed_dictionaries(
    {
        "kv_heads": st.integers(1, 4),
        "queries_per_kv": st.integers(1, 4),
        "head_dim": st.integers(1, 5),
        "narrower": st.sampled_from([0, 0, -3, -1, 1, 7]),  # heads together than the model
        "batch": st.integers(1, 3),
        "target": st.integers(1, 6),
        "source": st.integers(1, 6),
        "bias": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)
windows = st.none() | st.integers(1, 7)
paddings = st.sampled_from(["none", "left", "right"])


def assert_equal(got: Tensor | None, expected: Tensor) -> None:
    """Equal but for the last bits of float64."""
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-12)


def attention(shape: dict, window: int | None = None) -> GroupedQueryAttention:
    torch.manual_seed(shape["seed"])
    heads, head_dim = shape["kv_heads"] * shape["queries_per_kv"], shape["head_dim"]
    narrower = shape.get("narrower", 0)
    module = GroupedQueryAttention(
        max(1, heads * head_dim + narrower),
        heads,
        shape["kv_heads"],
        head_dim=head_dim if narrower else None,
        window=window,
        bias=shape["bias"],
    ).double()
    assert module.head_dim == head_dim
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=module.embed_dim**-0.5)
    return module


def padding_mask(batch: int, length: int, side: str) -> Tensor | None:
    """[B, S] bool with 0, 1, 2 ... padded positions, always fewer than all."""
    if side == "none":
        return None
    pads = torch.tensor([min(i, length - 1) for i in range(batch)])[:, None]
    position = torch.arange(length)[None]
    return position < pads if side == "left" else position >= length - pads


def repeated_heads(
    module: GroupedQueryAttention,
    query: Tensor,
    source: Tensor,
    is_padding: Tensor | None,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """The definition: every query head has its own copy of its group's key and value head.

    With a window a query reads itself and the window - 1 positions before it.

    Forbidden scores are -1e30 and not -inf: exactly 0 after the softmax all the same, and a row
    that may read nothing stays a number.
    """
    T, B, _ = query.shape
    S, H, D = source.shape[0], module.num_heads, module.head_dim

    def heads(linear: torch.nn.Linear, x: Tensor) -> Tensor:
        x = torch.nn.functional.linear(x, linear.weight, linear.bias)
        x = x.reshape(x.shape[0], B, -1, D)
        return x.repeat_interleave(H // x.shape[2], dim=2)

    q, k, v = (heads(module.q_proj, query), *(heads(p, source) for p in _kv(module)))
    scores = torch.einsum("tbhd,sbhd->bhts", q, k) / math.sqrt(D)
    if is_padding is not None:
        scores = scores.masked_fill(is_padding[:, None, None, :], -1e30)
    if is_causal:
        future = torch.ones(T, S, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -1e30)
    if module.window is not None:
        past = torch.arange(T)[:, None] - torch.arange(S)
        scores = scores.masked_fill(past >= module.window, -1e30)
    weights = scores.softmax(-1)
    out = torch.einsum("bhts,sbhd->tbhd", weights, v).reshape(T, B, -1)
    out = torch.nn.functional.linear(out, module.out_proj.weight, module.out_proj.bias)
    return out, weights.mean(1)


def _kv(module: GroupedQueryAttention) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    return module.k_proj, module.v_proj


def assert_same(module: GroupedQueryAttention, inputs: list[Tensor], ours, definition) -> None:
    """Values and every gradient of two functions of the same inputs and parameters."""
    leaves = [*inputs, *module.parameters()]
    probe = torch.randn(ours.shape, dtype=ours.dtype)  # one weighting of the outputs for both
    assert_equal(ours, definition)
    got = torch.autograd.grad((ours * probe).sum(), leaves)
    expected = torch.autograd.grad((definition * probe).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=60)
@given(shapes, paddings)
def test_cross_attention_equals_repeated_heads(shape: dict, side: str) -> None:
    module = attention(shape)
    B, width = shape["batch"], module.embed_dim
    query = torch.randn(shape["target"], B, width, dtype=torch.float64, requires_grad=True)
    source = torch.randn(shape["source"], B, width, dtype=torch.float64, requires_grad=True)
    is_padding = padding_mask(B, shape["source"], side)
    expected, expected_weights = repeated_heads(module, query, source, is_padding, False)
    got, weights = module(query, source, source, is_padding, need_weights=True)
    assert_same(module, [query, source], got, expected)
    assert_equal(weights, expected_weights)
    assert module(query, source, source, is_padding)[1] is None


@settings(deadline=None, max_examples=60)
@given(shapes, paddings, windows)
def test_causal_self_attention_equals_repeated_heads(
    shape: dict, side: str, window: int | None
) -> None:
    module = attention(shape, window)
    B, T = shape["batch"], shape["target"]
    x = torch.randn(T, B, module.embed_dim, dtype=torch.float64, requires_grad=True)
    is_padding = padding_mask(B, T, side)
    expected, expected_weights = repeated_heads(module, x, x, is_padding, True)
    got, weights = module(x, x, x, is_padding, need_weights=True, is_causal=True)
    # Padding on the left reads nothing at all, and a window on the right may hold padding alone:
    # there is no right value, only a finite one.
    reads = torch.ones(T, B, dtype=torch.bool)
    if is_padding is not None and (side == "left" or window is not None):
        reads = ~is_padding.T
    assert torch.isfinite(got).all()
    assert_same(module, [x], got[reads], expected[reads])
    assert_equal(weights[reads.T], expected_weights[reads.T])


def test_mask_and_causality_add_up() -> None:
    """An additive mask does not switch causality off, with padding or without."""
    shape = {"kv_heads": 2, "queries_per_kv": 2, "head_dim": 3, "bias": True, "seed": 1}
    module = attention(shape)
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    extra = torch.zeros(5, 5, dtype=torch.float64)
    extra[4, 1] = -math.inf
    future = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(1)
    for is_padding in (None, padding_mask(2, 5, "right")):
        got = module(x, x, x, is_padding, attn_mask=extra, is_causal=True)[0]
        expected = module(x, x, x, is_padding, attn_mask=extra + future)[0]
        assert_equal(got, expected)
        batched = (extra + future).expand(2, 5, 5)
        assert_equal(module(x, x, x, is_padding, attn_mask=batched)[0], expected)


@pytest.mark.parametrize("window", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("is_causal", [True, False])
def test_local_attention_is_full_attention_under_a_band_mask(window: int, is_causal: bool) -> None:
    shape = {"kv_heads": 2, "queries_per_kv": 2, "head_dim": 3, "bias": True, "seed": 1}
    local, full = attention(shape, window), attention(shape)
    T = 5
    band = torch.zeros(T, T, dtype=torch.float64)
    for t in range(T):
        band[t, : max(0, t - window + 1)] = -math.inf
    x = torch.randn(T, 2, 12, dtype=torch.float64)
    for is_padding in (None, padding_mask(2, T, "right")):
        given = {"need_weights": True, "is_causal": is_causal}
        got, weights = local(x, x, x, is_padding, **given)
        expected, expected_weights = full(x, x, x, is_padding, attn_mask=band, **given)
        reads = torch.ones(T, 2, dtype=torch.bool) if is_padding is None else ~is_padding.T
        assert_equal(got[reads], expected[reads])
        assert_equal(weights[reads.T], expected_weights[reads.T])
        assert torch.isfinite(got).all()
    assert (window >= T) == torch.equal(
        local(x, x, x, is_causal=True)[0], full(x, x, x, is_causal=True)[0]
    )


@pytest.mark.parametrize("window", [None, 5])
def test_a_window_that_holds_all_positions_leaves_the_fast_kernels(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's fused kernels take no mask: causality has to stay a flag."""
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "gqa_fairseq.attention.F.scaled_dot_product_attention",
        lambda *args, **options: calls.append(options) or attend(*args, **options),
    )
    shape = {"kv_heads": 2, "queries_per_kv": 2, "head_dim": 3, "bias": False, "seed": 1}
    module = attention(shape, window)
    for T in (5, 6):
        x = torch.randn(T, 2, 12, dtype=torch.float64)
        module(x, x, x, is_causal=True)
    assert [(c["attn_mask"] is None, c["is_causal"]) for c in calls] == [
        (True, True),
        (window is None, window is None),
    ]


def test_which_query_head_reads_which_key_head() -> None:
    """Contiguous groups (Ainslie et al. 2023, section 2.2): heads 0, 1, 2 read key head 0.

    Key head g is large at position g alone, where the value is 10 g; so what a query head gives
    says which key head it read. All heads are one wide: query head h is channel h.
    """
    H, G = 6, 2
    golden = [[0.0, 0.0, 0.0, 10.0, 10.0, 10.0]]
    module = GroupedQueryAttention(H, H, G).double()
    x = torch.zeros(2, 1, H, dtype=torch.float64)  # [S, B, C]: position s is channel s
    x[0, 0, 0] = x[1, 0, 1] = 1
    with torch.no_grad():
        module.q_proj.weight.zero_()[:, 2] = 1
        module.k_proj.weight.zero_()[[0, 1], [0, 1]] = 1e3
        module.v_proj.weight.zero_()[:, 1] = 10  # both value heads: 0 at position 0, 10 at 1
        module.out_proj.weight.copy_(torch.eye(H))
        query = torch.zeros(1, 1, H, dtype=torch.float64)
        query[0, 0, 2] = 1
        assert module(query, x, x)[0][0].tolist() == golden
        # Value heads: 1 + g wherever it is read.
        module.v_proj.weight.zero_()[[0, 1], [3, 4]] = 1
        x[:, 0, 3], x[:, 0, 4] = 1, 2
        assert module(query, x, x)[0][0].tolist() == [[1, 1, 1, 2, 2, 2]]


def steps() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """One step's attention of a query [1, 1, H, D] in every path of the engine on a CPU."""
    native = operators_for(torch.zeros(1))

    def natively(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        assert native is not None
        work = native.attention(keys, values, keys.shape[2], None, (1, 1, query.shape[2]))
        return native.attend(work, query)

    found = {
        "PyTorch": lambda *tensors: attend_cached(*tensors, None)[0],
        "gpu/cache.py": attend_visible,
    }
    return found if native is None else found | {"native": natively}


@pytest.mark.parametrize("step", steps().values(), ids=steps().keys())
def test_which_query_head_reads_which_key_head_in_a_step(step) -> None:
    H, G, D = 6, 2, 4
    query = torch.ones(1, 1, H, D)
    keys, values = torch.zeros(2, 1, G, 2, D)
    keys[0, 0, 0], keys[0, 1, 1] = 1e3, 1e3
    values[0, :, 1] = 10  # at position 1, which key head 1 alone finds
    out = step(query, keys, values).view(H, D)
    assert out.tolist() == [[0.0] * D] * 3 + [[10.0] * D] * 3
    values[0, 0], values[0, 1] = 1, 2
    assert step(query, keys, values).view(H, D).tolist() == [[1.0] * D] * 3 + [[2.0] * D] * 3


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 4), st.booleans(), st.booleans())
def test_one_step_over_a_cache_equals_repeated_heads(
    shape: dict, beam: int, is_masked: bool, shared: bool
) -> None:
    torch.manual_seed(shape["seed"])
    B, G, R, D = (shape[k] for k in ("batch", "kv_heads", "queries_per_kv", "head_dim"))
    N = shape["source"]
    query = torch.randn(B, beam, G * R, D, dtype=torch.float64)
    # A view into a longer buffer, as the cache hands it out.
    keys, values = torch.randn(2, B, G, N + 3, D, dtype=torch.float64)[:, :, :, :N]
    mask = None
    if is_masked:
        rows = 1 if shared else beam
        is_forbidden = torch.rand(B, rows, N) < 0.5
        is_forbidden[:, :, 0] = False
        mask = torch.zeros(B, rows, N, dtype=torch.float64).masked_fill(is_forbidden, -math.inf)
    got, weights = attend_cached(query, keys, values, mask, need_weights=True)
    k, v = (x.repeat_interleave(R, dim=1) for x in (keys, values))
    scores = torch.einsum("bwhd,bhnd->bwhn", query, k) / math.sqrt(D)
    if mask is not None:
        scores = scores + mask[:, :, None]
    probabilities = scores.softmax(-1)
    expected = torch.einsum("bwhn,bhnd->bwhd", probabilities, v).reshape(B, beam, -1)
    assert_equal(got, expected)
    assert_equal(weights, probabilities.mean(2))
    assert attend_cached(query, keys, values, mask)[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalized_in_float32(dtype: torch.dtype) -> None:
    """2,048 equal scores: summed in half precision the weights would not add up to 1."""
    query = torch.zeros(1, 1, 2, 4, dtype=dtype)
    keys = torch.zeros(1, 1, 2048, 4, dtype=dtype)
    weights = attend_cached(query, keys, keys, None, need_weights=True)[1]
    assert weights is not None
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 2048), rtol=0, atol=0)


def test_parameters_have_g_heads_and_start_in_the_range_of_multi_head() -> None:
    """Narrow K and V draw from the bound of the full matrix, not from a wider one."""
    torch.manual_seed(0)
    multi, single = (GroupedQueryAttention(64, 8, g) for g in (8, 1))
    assert [tuple(p.weight.shape) for p in _kv(single)] == [(8, 64), (8, 64)]
    assert [tuple(p.weight.shape) for p in _kv(multi)] == [(64, 64), (64, 64)]
    bound = math.sqrt(6 / 128) / math.sqrt(2)
    for projection in (*_kv(multi), *_kv(single), multi.q_proj):
        largest = projection.weight.abs().max().item()
        assert 0.95 * bound < largest <= bound
    assert all(name.endswith("weight") for name, _ in single.named_parameters())


def test_other_heads_start_in_the_range_of_multi_head() -> None:
    torch.manual_seed(0)
    narrow = GroupedQueryAttention(64, 4, 2, head_dim=6)
    shapes = [tuple(p.weight.shape) for p in (narrow.q_proj, *_kv(narrow), narrow.out_proj)]
    assert shapes == [(24, 64), (12, 64), (12, 64), (64, 24)]
    bound = math.sqrt(6 / 128)
    for projection, most in (
        (narrow.q_proj, bound / math.sqrt(2)),
        (narrow.k_proj, bound / math.sqrt(2)),
        (narrow.out_proj, bound),
    ):
        assert 0.95 * most < projection.weight.abs().max().item() <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 0}, "head_dim 0 must be at least 1"),
        ({"window": 0}, "window 0 must be at least 1, the current position"),
    ],
)
def test_a_head_and_a_window_hold_something(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupedQueryAttention(64, 8, 8, **options)


@pytest.mark.parametrize(
    ("width", "heads", "kv_heads", "message"),
    [
        (64, 8, 3, "num_kv_heads 3 does not divide 8 attention heads: choose one of 1, 2, 4, 8"),
        (64, 8, 0, "num_kv_heads 0 does not divide"),
        (64, 8, 16, "num_kv_heads 16 does not divide"),
        (60, 8, 8, "embed_dim 60 is not divisible by 8 heads"),
    ],
)
def test_heads_that_do_not_divide(width: int, heads: int, kv_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupedQueryAttention(width, heads, kv_heads)
