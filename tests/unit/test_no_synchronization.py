"""A step of the GPU's driver never waits: it runs on tensors that have shapes but no values.

On the meta device whatever needs a value fails, as it would wait on a GPU. What passes there all
the same is caught as it is called: tensors of the host, and indexing by a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gqa_fairseq.decoding.beams import BeamSearch, Chooser
from gqa_fairseq.decoding.gpu.search import GpuSearch
from gqa_fairseq.decoding.memory import BatchShape
from gqa_fairseq.decoding.rules import OWN_OPTIONS, Temperature, rules_of
from gqa_fairseq.decoding.top_k import top_k
from tests.plugin_models import build, dictionary

META = torch.device("meta")
VOCABULARY = dictionary()
WIDE = {"encoder_embed_dim": 128, "decoder_embed_dim": 128, "mha_ffn_embed_dim": 128}


_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)


class _OnlyTheDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if any(x.device != META for x in tensors):
            raise AssertionError(f"{func} meets a tensor of the host")
        if func in _INDEXING and any(x.dtype == torch.bool for x in tensors[1:]):
            raise AssertionError(f"{func} counts the ones of a mask")
        return out


class _NoUploads(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy):
            raise AssertionError(f"{func} sends values of the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host() -> Iterator[None]:
    with torch.no_grad(), _NoUploads(), _OnlyTheDevice():
        yield


def search_of(beam: int, dtype: torch.dtype = torch.float16, **options: Any) -> GpuSearch:
    """A search whose weights and memory have no values."""
    model = build(VOCABULARY, num_kv_heads=2, **options).to(dtype).to(META)
    chosen = SimpleNamespace(
        pad=VOCABULARY.pad(),
        unk=VOCABULARY.unk(),
        eos=VOCABULARY.eos(),
        unk_penalty=0.5,
        min_len=1,
        token_indices_to_suppress=torch.tensor([7]),
        repeat_ngram_blocker=None,  # it looks at values, so this driver refuses it
        **{option.name: option.default for option in OWN_OPTIONS},
    )
    rules = rules_of(chosen, torch.zeros(8, 12, device=META), prefix=None)
    assert len(rules) == 5  # one for each option
    chooser = Chooser(beam, VOCABULARY.eos(), Temperature(1.3), rules, BeamSearch())
    shape = BatchShape(rows=8, steps=64, source=16)
    weights = model.decoder.decoding_weights()
    search = GpuSearch(model.decoder, weights, chooser, shape.capacity)
    edges = torch.zeros(2, 7, dtype=torch.int64, device=META)
    search.cache.start(shape, *edges, source_tokens=12)
    search.beams.start(shape.rows, shape.steps, 7, first=VOCABULARY.eos(), max_len=40)
    return search


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_needs_no_value(beam: int, dtype: torch.dtype) -> None:
    search = search_of(beam, dtype)
    for rows, steps in ((8, 1), (8, 33), (4, 34)):
        search.cache.batch = rows
        search.cache.show(steps)
        with no_host():
            search.step()


@pytest.mark.parametrize("beam", [1, 4])
def test_a_step_whose_slots_are_filled_again(beam: int) -> None:
    search = search_of(beam, decoder_window=16)
    assert search.cache.layout == (8, 16, 64, 16)  # 64 steps in the slots of 16
    search.cache.show(33)
    with no_host():
        search.step()


def test_a_step_with_positions_that_are_computed() -> None:
    options = {"decoder_learned_pos": False, "decoder_normalize_before": False, "use_bias": True}
    search = search_of(2, **options)
    search.cache.show(1)
    with no_host():
        search.step()


def test_the_best_of_a_large_vocabulary_need_no_value() -> None:
    with no_host():
        values, words = top_k(torch.empty(8, 32_000, device=META), 8)
    assert values.shape == words.shape == (8, 8)


@pytest.mark.parametrize("beam", [1, 4])
def test_the_kernel_is_launched_without_a_value(beam: int, monkeypatch) -> None:
    """Everything up to the launch, which is counted and does nothing."""
    triton = pytest.importorskip("triton")
    launches = []

    class Program:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            launches.append(grid)
            return lambda *args, **options: None

    from gqa_fairseq.decoding.gpu import triton_kernels

    for name in ("attend_part", "combine_parts"):
        monkeypatch.setattr(triton_kernels, name, Program())
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    search = search_of(beam, **WIDE)
    search.cache.show(1)
    with no_host():
        search.step()
    assert len(launches) >= 2 * len(search.weights.layers)


WAITS: dict[str, Callable[[GpuSearch], Any]] = {
    "a number": lambda s: s.beams.count.sum().item(),
    "a list": lambda s: s.beams.count.tolist(),
    "a branch": lambda s: bool((s.beams.count > 0).all()),
    "positions of ones": lambda s: (s.beams.count > 0).nonzero(),
    "reading by a mask": lambda s: s.beams.newest[s.beams.count > 0],
    "writing by a mask": lambda s: s.beams.newest.__setitem__(s.beams.count > 0, 3),
    "a length": lambda s: s.beams.newest[:, : s.cache.position],
    "a comparison": lambda s: torch.equal(s.beams.count, s.beams.count),
    "a download": lambda s: s.beams.count.cpu(),
    "an upload": lambda s: torch.tensor([1, 2], device=META),
    "a tensor of the host": lambda s: s.beams.newest.fill_(torch.zeros((), dtype=torch.int64)),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_step_that_waits_is_caught(wait: Callable[[GpuSearch], Any], monkeypatch) -> None:
    search = search_of(2)
    search.cache.show(1)
    finish = search.beams.finish

    def finish_and_wait(*arguments: Any) -> None:
        wait(search)
        finish(*arguments)

    monkeypatch.setattr(search.beams, "finish", finish_and_wait)
    # Without a value PyTorch refuses in several ways; NotImplementedError is that of a copy.
    with no_host(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        search.step()
