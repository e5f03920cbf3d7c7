"""What a card is asked: the parts in a dry run.

Tiny shapes on the CPU, through the code that a GPU runs; `test_dry_run.py` carries out all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from suite_configs import compose_config
from torch import Tensor

from experiments.card import decoding, kernels, memory, profile, seeds, training
from experiments.card.models import Asked, flops_of_an_update, predicted_peak_bytes
from experiments.card.parts import BY_NAME
from experiments.intensity.models import PRESETS, architecture_of
from experiments.intensity.updates import training_command
from experiments.measure.decoding import random_model
from experiments.measure.request import Request, RequestedContender, check_request
from experiments.measure.session import run_request
from experiments.measure.training import Products
from experiments.measure.workloads import random_sources
from experiments.records.card import (
    Profiles,
    read_card_record,
)
from experiments.records.measurement import (
    FixedLengths,
    Measurement,
    Timing,
    TrainingUpdates,
    read_measurement,
)
from gqa_fairseq.architecture import Variant
from gqa_fairseq.decoding.gpu import search as gpu_search
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.parity import Baseline

ROOT = Path(__file__).resolve().parents[2]


def measured_here(request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
    """As measure_in_process, in this process."""
    check_request(request)
    return run_request(request, on_measured)


def names_of(timing: Timing) -> list[tuple[int, str]]:
    return [(s.contender.architecture.num_kv_heads, s.contender.engine) for s in timing.samples]


def test_decoding_is_measured_beside_stock(asked: Asked) -> None:
    decoding.run(asked, measured_here)
    measured = read_measurement(asked.folder / "decoding.json")
    assert [timing.workload.beam for timing in measured.timings] == [4, 1]
    for timing in measured.timings:
        names = [
            (s.contender.architecture.num_kv_heads, s.contender.engine) for s in timing.samples
        ]
        assert names == [(8, "gqa"), (1, "gqa"), (8, "stock")]
        assert timing.samples[2].differing == 0
    found = BY_NAME["decoding"].found(asked.folder / "decoding.json")
    assert found.count("x stock (5)") == found.count("of predicted (0.9)") == 2


def test_an_update_is_measured_beside_stock_and_its_products(asked: Asked) -> None:
    training.run(asked, measured_here)
    (timing,) = read_measurement(asked.folder / "training.json").timings
    multi_head = [(8, "fairseq"), (8, "stock"), (8, "products")]
    assert names_of(timing) == [*multi_head, (1, "fairseq"), (1, "products")]
    assert "x stock (1.5)" in BY_NAME["training"].found(asked.folder / "training.json")


def test_a_search_is_profiled(asked: Asked) -> None:
    profile.run(asked)
    record = read_card_record(asked.folder / "profile.json", Profiles)
    assert isinstance(record, Profiles)
    assert [(one.beam, one.num_kv_heads) for one in record.searches] == [
        (4, 8),
        (4, 1),
        (1, 8),
        (1, 1),
    ]
    for one in record.searches:
        assert any("mm" in kernel.name or "linear" in kernel.name for kernel in one.kernels)
        assert sum(kernel.device_s for kernel in one.kernels) <= one.device_s * (1 + 1e-9)


@pytest.mark.parametrize("size", kernels.DRY_SIZES, ids=lambda size: f"{size.kind}-{size.beam}")
def test_libraries_attend_as_float64_does(size: kernels.Size, asked: Asked) -> None:
    """The own kernel needs Triton's interpreter, which this process may lack: not asserted."""
    case = kernels.compared(size, asked, time.monotonic() + 60)
    ways = {way.name: way for way in case.ways}
    assert set(ways) == {"own", "sdpa", "sdpa rows", "flex", "flex blocks"}
    for name in set(ways) - {"own"}:
        assert ways[name].refused == ""
        assert ways[name].error is not None
        assert ways[name].error < 1e-5


def test_a_way_with_a_wrong_mask_is_refused(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def sees_all(step: kernels.Step, keys: Tensor, values: Tensor) -> Tensor:
        rows = step.rows()
        return step.joined(torch.softmax(rows @ keys.mT / rows.shape[-1] ** 0.5, -1) @ values)

    monkeypatch.setattr(kernels, "ways_of", lambda *_, **__: [("all", lambda: sees_all)])
    (way,) = kernels.compared(kernels.DRY_SIZES[0], asked, time.monotonic() + 60).ways
    assert way.refused.startswith("wrong by ")
    step = kernels.Step(kernels.DRY_SIZES[0], 1, torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="wrong by"):
        kernels._error(step, sees_all(step, *step.caches[0]))
    assert kernels._error(step, kernels.sdpa(step, *step.caches[0])) > 0


def test_what_is_read_is_what_some_beam_descends_from() -> None:
    size = kernels.Size("self", 1, 2, 2, 4, 16, 4, 3)
    step = kernels.Step(size, 1, torch.device("cpu"), torch.bfloat16)
    assert step.readers is not None
    slots = int((step.readers != 0).sum())
    assert 3 <= slots <= 6
    assert step.bytes_read == 2 * slots * 2 * 16 * 2
    # Each beam descends from one slot of each step that was taken, and reads its own newest one.
    per_step = step.visible.view(1, 2, 4, 2).sum(-1)
    assert per_step.tolist() == [[[1, 1, 1, 0]] * 2]
    assert step.visible.view(2, 4, 2)[:, 2].int().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_asked_for_can_be_measured(device: Any, tmp_path: Path) -> None:
    """Also on a card: nothing is refused, and everything is of the paper's size."""
    asked = Asked(device, tmp_path, 100.0, 4)
    requests = [decoding.request(asked), memory.request(asked), training.request(asked, tmp_path)]
    for request in requests:
        assert check_request(request) == []
        assert request.device == device
    if device == "cuda":
        assert [request.dtype for request in requests] == ["bfloat16", "bfloat16", "float16"]
        assert "--fp16" in requests[2].contenders[0].training_command
        own = requests[0].contenders[0].architecture
        assert (own.d_model, own.decoder_d_ff, own.decoder_layers) == (1024, 4096, 6)
        assert seeds.plan(asked).own.parameters == seeds.STUDY.multi_head.parameters


def test_the_seeds_train_the_model_of_the_study() -> None:
    study = compose_config("experiment=study_multi30k")
    assert seeds.STUDY.multi_head == study.architecture
    assert study.train.tokens_per_update == seeds.SENTENCES * seeds.TOKENS


def test_the_card_is_asked_about_the_model_of_wmt14(tmp_path: Path) -> None:
    (own,) = Asked("cuda", tmp_path, 100.0, 4).models((8,))
    assert (
        own == compose_config("experiment=wmt14").architecture == architecture_of(PRESETS["paper"])
    )


# Counts that a GPU's figures need.


def test_the_products_of_an_update_are_in_its_dtype(tmp_path: Path) -> None:
    own = Baseline(d_model=16, num_heads=2, mha_d_ff=8, vocab_size=11).resolve(Variant(2))
    workload = TrainingUpdates(batch=1, source_tokens=3, target_tokens=2)
    for dtype, expected in (("float32", torch.float32), ("float16", torch.float16)):
        line = training_command(own, tmp_path, "cpu", dtype)
        contender = RequestedContender(architecture=own, engine="gqa", training_command=line)
        products = Products(contender, workload, None)
        products.run()
        assert {tensor.dtype for tensor in products._memory.values()} == {expected}
        assert {tensor.device.type for tensor in products._memory.values()} == {"cpu"}


def test_the_operations_of_an_update() -> None:
    """Two a weight and token forward, four backward; the source's keys are made of the source."""
    own = Baseline(
        d_model=32, num_heads=2, mha_d_ff=64, encoder_layers=1, decoder_layers=1, vocab_size=50
    ).multi_head
    workload = TrainingUpdates(batch=3, source_tokens=5, target_tokens=7)
    square, ffn = 32 * 32, 2 * 32 * 64
    source, target = 3 * 5 * (4 * square + ffn + 2 * square), 3 * 7 * (6 * square + ffn + 32 * 50)
    attention = 2 * 3 * 32 * (5 * 5 + 7 * 8 // 2 + 7 * 5)  # scores and values; targets look back
    assert flops_of_an_update(own, workload) == 6 * (source + target + attention)


def allocated_at_the_peak(run: Callable[[], object]) -> int:
    """Bytes of tensors that PyTorch's CPU allocator holds at most, by its own trace."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("kv_heads", [8, 1])
@pytest.mark.parametrize(("beam", "batch", "tokens"), [(4, 16, 32), (1, 64, 32)])
def test_the_peak_of_a_search_is_predicted(
    kv_heads: int, beam: int, batch: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's search in bfloat16 on the CPU; attention takes its result alone, as the kernel."""

    def attend(query: Tensor, keys: Tensor, values: Tensor, **_: object) -> Tensor:
        return query.new_zeros(*query.shape[:2], query.shape[2] * query.shape[3])

    monkeypatch.setattr(gpu_search, "attend_visible", attend)
    monkeypatch.setattr(gpu_search, "has_kernel", lambda *_: False)
    own = Baseline(
        d_model=128, mha_d_ff=512, encoder_layers=2, decoder_layers=2, vocab_size=4001,
        max_source_positions=64, max_target_positions=64,
    ).resolve(Variant(kv_heads))  # fmt: skip
    model, dictionary = random_model(own)
    model.bfloat16().eval().make_generation_fast_(need_attn=False)
    options = {"beam_size": beam, "max_len_b": tokens - 1, "min_len": tokens - 1, "driver": "gpu"}
    generator = GroupedQueryGenerator([model], dictionary, **options)
    sample = {"net_input": random_sources(dictionary, batch, tokens)}
    added = allocated_at_the_peak(lambda: generator.generate([model], sample))
    workload = FixedLengths(
        batch=batch, source_tokens=tokens, target_tokens=tokens, beam=beam, max_positions=64
    )
    predicted = predicted_peak_bytes(own, workload, "bfloat16")
    assert (2 * own.parameters + added) / predicted == pytest.approx(1, abs=0.05)
