"""The GPU kernel: its numbers under Triton's interpreter, its code under the compiler, its errors.

Triton reads TRITON_INTERPRET when it is imported, so each way of running it is a process of its
own over the tests in tests/kernel_reference.py and tests/kernel_compiles.py. The interpreter runs
on any CPU; the same tests run on a GPU where there is one.
"""

from __future__ import annotations

import functools
import logging
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from gqa_fairseq.decoding.gpu import kernels
from gqa_fairseq.decoding.gpu.kernels import choose_splits, grouped_decode_attention
from tests.kernel_runs import needs_gpu, needs_triton, readers_of, run_tests


@needs_triton
def test_numbers_in_the_interpreter() -> None:
    run_tests("kernel_reference.py", TRITON_INTERPRET="1", KERNEL_DEVICE="cpu")


@needs_triton
@needs_gpu
def test_numbers_on_the_gpu() -> None:
    run_tests("kernel_reference.py", TRITON_INTERPRET="0", KERNEL_DEVICE="cuda")


@needs_triton
def test_compiles_without_a_gpu(tmp_path: Path) -> None:
    run_tests("kernel_compiles.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_readers_are_the_masks_bits() -> None:
    inf = math.inf
    mask = torch.tensor([[[0, -inf, 0, -inf], [-inf, 0, 0, -inf], [-inf, -inf, 0, -inf]]])
    readers = readers_of(mask)
    assert readers.dtype == torch.int32
    assert readers.tolist() == [[0b001, 0b010, 0b111, 0]]
    assert readers_of(torch.zeros(1, 31, 1)).tolist() == [[2**31 - 1]]


@needs_triton
def test_a_gpu_without_what_triton_needs_does_without_the_kernel(monkeypatch, caplog) -> None:
    triton = pytest.importorskip("triton")
    capability, starts = (9, 0), []

    class Driver:
        def get_current_target(self) -> None:
            starts.append(1)
            raise RuntimeError("Failed to find C compiler.\nand more")

    def has_kernel(dtype: torch.dtype = torch.bfloat16, D: int = 64) -> bool:
        return kernels.has_kernel(torch.device("cuda", 0), dtype, D)

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(kernels, "_can_launch", functools.cache(kernels._can_launch.__wrapped__))
    with caplog.at_level(logging.WARNING):
        assert not has_kernel()
        assert not has_kernel()
    assert len(starts) == 1
    assert caplog.messages == [
        "decoding is slower without the attention kernel: Triton: Failed to find C compiler."
    ]
    monkeypatch.setattr(kernels, "_can_launch", lambda: True)
    assert has_kernel()
    assert not has_kernel(torch.float64)
    assert not has_kernel(D=80)
    capability = (7, 5)
    assert not has_kernel()


def test_splits_fill_the_multiprocessors_and_no_more() -> None:
    assert choose_splits(8192, 8, 132) == 1  # batch 1024, G = 8: full already
    assert choose_splits(1024, 16, 132) == 1
    assert choose_splits(64, 16, 132) == 5  # 320 programs for 264
    assert choose_splits(1, 3, 132) == 3  # a part has a block at least
    assert choose_splits(1, 0, 132) == 1
    for programs in range(1, 600):
        splits = choose_splits(programs, 10**6, 132)
        assert programs * splits >= 264
        assert splits == 1 or programs * (splits - 1) < 264


def query_and_cache(**changes):
    sizes = {"B": 2, "W": 3, "H": 4, "G": 2, "N": 5, "D": 16, "dtype": torch.float32} | changes
    B, W, H, G, N, D = (sizes[name] for name in "BWHGND")
    query = torch.zeros(B, W, H, D, dtype=sizes["dtype"])
    return query, *(torch.zeros(B, G, N, D, dtype=sizes["dtype"]) for _ in range(2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"D": 24}, "head dim 24"),
        ({"D": 8}, "head dim 8"),
        ({"D": 512}, "head dim 512"),
        ({"H": 3}, "does not fit"),
        ({"G": 0}, "does not fit"),
        ({"dtype": torch.float64}, "expected one of"),
    ],
)
def test_sizes_that_no_kernel_takes(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped_decode_attention(*query_and_cache(**sizes))


def test_tensors_that_do_not_fit_each_other() -> None:
    query, keys, values = query_and_cache()
    for bad in (
        (query[0], keys, values),
        (query, keys, values[:, :, :4]),
        (query[:1], keys, values),
        (query, keys[..., :8], values[..., :8]),
        (query, keys.half(), values),
    ):
        with pytest.raises(ValueError, match=r"expected|fit"):
            grouped_decode_attention(*bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": torch.zeros(3, dtype=torch.int32)}, "end"),
        ({"start": torch.zeros(2)}, "start"),
        ({"readers": torch.zeros(2, 4, dtype=torch.int32)}, "readers"),
        ({"readers": torch.zeros(2, 5, dtype=torch.int64)}, "readers"),
        ({"end": torch.zeros((), dtype=torch.int32, device="meta")}, "device"),
        ({"splits": 0}, "splits 0"),
        ({"block": 8}, "block 8"),
        ({"block": 48}, "block 48"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped_decode_attention(*query_and_cache(), **options)


def test_more_beams_than_bits() -> None:
    query, keys, values = query_and_cache(W=32)
    with pytest.raises(ValueError, match="32 beams"):
        grouped_decode_attention(query, keys, values, readers=torch.zeros(2, 5, dtype=torch.int32))


@needs_triton
def test_a_cpu_tensor_without_the_interpreter_ends_with_one_line(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="use attend_cached"):
        grouped_decode_attention(*query_and_cache())


def test_only_a_launch_needs_triton(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as where it is not installed
    module = runpy.run_path(kernels.__file__)
    with pytest.raises(ModuleNotFoundError, match="triton"):
        module["grouped_decode_attention"](*query_and_cache())
