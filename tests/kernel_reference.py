"""The Triton kernel against attention in float64: run by test_kernels.py, in a process of its own.

Triton decides once, when it is imported, whether it compiles or interprets, so the device comes
from the environment: KERNEL_DEVICE is `cpu` (with TRITON_INTERPRET=1) or `cuda`. Every case draws
fresh inputs and prints its seed; KERNEL_SEED draws those again. What must not be read is NaN, and
so is memory that nobody wrote.
"""

from __future__ import annotations

import itertools
import math
import os
import random

import pytest
import torch
from torch import Tensor

from gqa_fairseq.attention import attend_cached
from gqa_fairseq.decoding.gpu.kernels import grouped_decode_attention
from tests.kernel_runs import readers_of

torch.set_num_threads(1)
DEVICE = os.environ["KERNEL_DEVICE"]
H = 8
BLOCK = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
on_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="a CUDA graph needs a GPU")

# The interpreter takes tens of milliseconds a program: there every 7th case, which still meets
# every pair of values. A GPU runs all.
CASES = list(itertools.product((1, 2, 4, 8), ("self", "cross"), (1, 4), (1, 2, 3, 4), DTYPES))
CASES = CASES if DEVICE == "cuda" else CASES[::7]


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """torch.empty gives NaN, so that what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def rng() -> torch.Generator:
    seed = int(os.environ.get("KERNEL_SEED", random.SystemRandom().randrange(2**31)))
    print(f"KERNEL_SEED={seed}")
    return torch.Generator().manual_seed(seed)


def inputs(rng: torch.Generator, B: int, W: int, G: int, N: int, D: int, dtype: torch.dtype):
    """query [B, W, H, D], keys and values [B, G, N, D] on the CPU: views, as the decoder has."""

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng).to(dtype)

    query = normal(B, W, H + 2 * G, D)[:, :, :H]  # of a fused projection
    keys = normal(B, G, N + 3, D)[:, :, :N]  # of a buffer with room to grow
    values = normal(B, N, G, D).transpose(1, 2)
    return query, keys, values


def ancestry(rng: torch.Generator, B: int, W: int, steps: int, capacity: int) -> Tensor:
    """The cache's mask [B, W, capacity * W] after `steps` steps with random parents."""
    mask = torch.full((B, W, capacity, W), -math.inf)
    for t in range(steps):
        parents = torch.randint(W, (B, W, 1, 1), generator=rng)
        mask = mask.gather(1, parents.expand_as(mask))
        mask[:, :, t].diagonal(dim1=1, dim2=2).zero_()
    return mask.flatten(2)


def reference(query: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor):
    """float64 output [B, W, H * D], and the scale of its rounding errors: the mean of |values|."""
    R = query.shape[2] // keys.shape[1]
    k = keys.double().repeat_interleave(R, dim=1)  # [B, H, N, D]
    v = values.double().repeat_interleave(R, dim=1)
    scores = torch.einsum("bwhd,bhnd->bwhn", query.double(), k) / math.sqrt(query.shape[3])
    scores = scores.masked_fill(~is_visible[:, :, None], -math.inf)
    probs = scores.softmax(-1).nan_to_num(0.0)  # NaN: a query that sees nothing
    return tuple(torch.einsum("bwhn,bhnd->bwhd", probs, x).flatten(2) for x in (v, v.abs()))


def check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    is_visible: Tensor,
    score_rounding: float = 0.0,
    **options,
) -> None:
    """Runs the kernel with NaN in every slot that no beam of the sentence may read.

    A probability is off by as much, relatively, as its score is off absolutely: `score_rounding`
    is that of float32 scores that are large, as those of ordinary size are in the constant.
    """
    expected, size = reference(query, keys, values, is_visible)
    is_dead = ~is_visible.any(1)[:, None, :, None]
    k, v = (x.masked_fill(is_dead, math.nan).to(DEVICE) for x in (keys, values))
    tensors = {n: x.to(DEVICE) if isinstance(x, Tensor) else x for n, x in options.items()}
    out = grouped_decode_attention(query.to(DEVICE), k, v, **tensors)
    assert out.dtype == query.dtype
    # The probabilities and the result are rounded to the dtype, the rest is float32. Rounding to
    # nearest is off by at most half an eps; Triton's interpreter cuts bfloat16 off: a whole one.
    rounding = torch.finfo(query.dtype).eps
    if DEVICE == "cuda" or query.dtype != torch.bfloat16:
        rounding /= 2
    tolerance = rounding * (2 + rounding) + 4e-6 + score_rounding
    error = (out.cpu().double() - expected).abs()
    assert bool((error <= tolerance * size).all()), f"off by {(error / size).max():.1e} of |values|"


@pytest.mark.parametrize(("G", "kind", "W", "splits", "dtype"), CASES)
def test_matches_float64(rng, G: int, kind: str, W: int, splits: int, dtype: torch.dtype) -> None:
    B = 2
    if kind == "self":  # a buffer filled in part, and what each beam descends from
        steps, capacity = 1 + int(torch.randint(40 // W, (), generator=rng)), 45 // W
        mask = ancestry(rng, B, W, steps, capacity)
        options = {"end": torch.tensor(steps * W)}
        if W > 1:
            options["readers"] = readers_of(mask)
        is_visible = mask > -math.inf
    else:  # left padding: a sentence of one token beside a longer one
        N = 37
        start = torch.tensor([N - 1, int(torch.randint(N, (), generator=rng))])
        options = {"start": start.int()}
        is_visible = (torch.arange(N) >= start[:, None])[:, None].expand(B, W, N)
    N = is_visible.shape[2]
    tensors = inputs(rng, B, W, G, N, 16, dtype)
    check(*tensors, is_visible, splits=splits, block=BLOCK, **options)


@pytest.mark.parametrize("D", [32, 64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_dim_with_the_blocks_and_splits_it_chooses(rng, D: int, dtype) -> None:
    B, W, G, N = 1, 2, 1, 150
    is_visible = torch.ones(B, W, N, dtype=torch.bool)
    check(*inputs(rng, B, W, G, N, D, dtype), is_visible)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_query_rows_than_one_tile(rng, dtype: torch.dtype) -> None:
    B, W, G, steps = 1, 10, 1, 3  # 80 rows
    mask = ancestry(rng, B, W, steps, steps)
    tensors = inputs(rng, B, W, G, steps * W, 16, dtype)
    check(*tensors, mask > -math.inf, readers=readers_of(mask), splits=2, block=BLOCK)


def test_31_beams_have_a_bit_each(rng) -> None:
    B, W, G, steps = 1, 31, 8, 2
    mask = ancestry(rng, B, W, steps, steps)
    tensors = inputs(rng, B, W, G, steps * W, 16, torch.float32)
    check(*tensors, mask > -math.inf, readers=readers_of(mask), block=64)


@pytest.mark.parametrize("splits", [1, 3])
def test_a_query_that_may_read_nothing_gives_zeros(rng, splits: int) -> None:
    B, W, G, N = 4, 2, 2, 33
    tensors = inputs(rng, B, W, G, N, 16, torch.float16)
    is_visible = torch.ones(B, W, N, dtype=torch.bool)
    is_visible[0, 1] = False  # one beam sees nothing
    is_visible[2:] = False  # and these sentences, whose ranges are empty
    options = {
        "readers": readers_of(torch.zeros(B, W, N).masked_fill(~is_visible, -math.inf)),
        "start": torch.tensor([0, -5, 20, 2**40]),
        "end": torch.tensor([N, N + 9, 20, -(2**40)]),
    }
    check(*tensors, is_visible, splits=splits, block=BLOCK, **options)


def test_large_scores_do_not_overflow(rng) -> None:
    B, W, G, N = 1, 1, 1, 40
    query, keys, values = inputs(rng, B, W, G, N, 16, torch.float32)
    is_visible = torch.ones(B, W, N, dtype=torch.bool)
    keys[:, :, 7] = 300 * query[:, 0, :1]  # one slot takes a head's whole weight, late or early
    keys[:, :, 31] = -300 * query[:, 0, :1]
    largest = (query.abs().amax(2) @ keys.abs().amax(2).transpose(1, 2)).max().item() / 4  # sqrt(D)
    rounding = torch.finfo(torch.float32).eps * largest
    check(query, keys, values, is_visible, rounding, splits=2, block=BLOCK)


@pytest.mark.parametrize("W", [1, 4])
def test_agrees_with_the_cpu_path_and_its_mask(rng, W: int) -> None:
    B, G, steps = 2, 2, 6
    query, keys, values = inputs(rng, B, W, G, steps * W, 32, torch.float32)
    mask = ancestry(rng, B, W, steps, steps)
    expected, _ = attend_cached(query, keys, values, mask)
    on_device = (x.to(DEVICE) for x in (query, keys, values))
    out = grouped_decode_attention(*on_device, readers=readers_of(mask.to(DEVICE)))
    torch.testing.assert_close(out.cpu(), expected)


@on_gpu
def test_a_graph_replays_while_the_cache_fills(rng) -> None:
    B, W, G, steps = 3, 4, 2, 16
    N = steps * W
    query, keys, values = inputs(rng, B, W, G, N, 64, torch.bfloat16)
    on_device = [x.to(DEVICE) for x in (query, keys, values)]
    end = torch.zeros((), dtype=torch.int32, device=DEVICE)
    readers = torch.zeros(B, N, dtype=torch.int32, device=DEVICE)

    def attend() -> Tensor:
        return grouped_decode_attention(*on_device, end=end, readers=readers, splits=3, block=BLOCK)

    attend()  # compiles, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for filled in (1, 5, steps):
        mask = ancestry(rng, B, W, filled, steps)
        readers.copy_(readers_of(mask))
        end.fill_(filled * W)
        graph.replay()
        expected, size = reference(query, keys, values, mask > -math.inf)
        error = (out.cpu().double() - expected).abs()
        assert bool((error <= 1.5 * torch.finfo(torch.bfloat16).eps * size).all())
