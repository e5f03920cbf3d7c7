"""What a card is asked: the parts in a dry run, their figures, and the command around them.

Tiny shapes on the CPU, through the code that a GPU runs; `test_dry_run.py` carries out all of it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from card_records import case_of, measurement_of, samples_of, stamp, timing_of_decoding, two_models
from suite_configs import compose_config
from torch import Tensor

from experiments import gpu
from experiments.card import command, decoding, kernels, memory, profile, seeds, training
from experiments.card.command import Call
from experiments.card.correctness import _RESULT
from experiments.card.models import Asked, flops_of_an_update, predicted_peak_bytes
from experiments.card.parts import BY_NAME, PARTS, Part
from experiments.errors import ExperimentError
from experiments.intensity.models import PRESETS, architecture_of
from experiments.intensity.updates import training_command
from experiments.measure.decoding import random_model
from experiments.measure.request import Request, RequestedContender, check_request
from experiments.measure.session import run_request
from experiments.measure.training import Products
from experiments.measure.workloads import random_sources
from experiments.records import provenance
from experiments.records.card import (
    AtATime,
    AttentionCases,
    Check,
    Checks,
    Profiles,
    SideBySide,
    read_card_record,
    read_summary,
)
from experiments.records.measurement import (
    FixedLengths,
    Measurement,
    Timing,
    TrainingUpdates,
    read_measurement,
    write_measurement,
)
from experiments.records.parts import Hardware
from gqa_fairseq.architecture import Variant
from gqa_fairseq.decoding.gpu import search as gpu_search
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.parity import Baseline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked("cpu", tmp_path / "records", 100.0, 1)


def measured_here(request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
    """As measure_in_process, in this process."""
    check_request(request)
    return run_request(request, on_measured)


def names_of(timing: Timing) -> list[tuple[int, str]]:
    return [(s.contender.architecture.num_kv_heads, s.contender.engine) for s in timing.samples]


# The parts, in a dry run.


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


# Figures.


def test_the_figures_of_decoding(asked: Asked) -> None:
    timing = timing_of_decoding()
    assert isinstance(timing.workload, FixedLengths)
    path = asked.folder / "decoding.json"
    write_measurement(path, measurement_of(asked, timing))
    # 4 / 2 over 3 / 1; 2 s over the 1 s that 100 bytes take.
    assert BY_NAME["decoding"].found(path) == (
        "beam 4 batch 2: 4.0 x stock (5), MQA/MHA 0.67 of predicted (0.9), 2.00 x roofline (1.2)"
    )
    predicted = predicted_peak_bytes(two_models()[0], timing.workload, "float32")
    assert f"beam 4 G = 8 {1000 / predicted:.2f}," in BY_NAME["memory"].found(path)


def test_the_figures_of_training(asked: Asked) -> None:
    multi_head, _ = two_models()
    workload = TrainingUpdates(batch=2, source_tokens=6, target_tokens=5)
    timing = Timing(
        workload=workload,
        warmup_runs=1,
        samples=[samples_of(multi_head, "fairseq", 2.0), samples_of(multi_head, "stock", 5.0)],
        read_bytes_per_s=[1.0],
        matrix_flops_per_s=[flops_of_an_update(multi_head, workload) / 1.0],
    )
    path = asked.folder / "training.json"
    write_measurement(path, measurement_of(asked, timing))
    assert BY_NAME["training"].found(path) == "50% of the measured rate (40 %), 2.50 x stock (1.5)"


def test_the_own_kernel_wins_where_it_is_faster_by_more_than_a_tenth(asked: Asked) -> None:
    cases = [case_of(own=1.0, sdpa=1.1, flex=3.0), case_of(own=1.0, flex=1.2), case_of(own=1.0)]
    assert [case.times_as_fast for case in cases] == [1.1, 1.2, None]
    record = AttentionCases(**stamp(asked), read_bytes_per_s=[1.0], cases=cases)
    assert "more than 1.1 in 1 of 2 cases (1.10 to 1.20)" in record.found


def test_what_was_not_compared_has_no_figure(asked: Asked) -> None:
    with pytest.raises(ExperimentError, match="no cell was measured within the time"):
        BY_NAME["predicted"].found(asked.folder / "predicted")
    cases = AttentionCases(**stamp(asked), read_bytes_per_s=[1.0], cases=[case_of(own=1.0)])
    assert cases.found == "in no case did both the own kernel and a library run"


def test_other_figures(asked: Asked) -> None:
    checks = [Check(name=f"t{i}", outcome="passed") for i in range(3)]
    assert Checks(**stamp(asked), checks=checks).are_green
    bad = Checks(**stamp(asked), checks=[*checks, Check(name="x", outcome="unfinished")])
    assert not bad.are_green
    assert bad.found == "3 of 4 tests passed, 1 unfinished (to reach: all)"
    rates = [AtATime(trainings=1, updates_per_s=[2.0]), AtATime(trainings=4, updates_per_s=[5.0])]
    found = SideBySide(**stamp(asked), parameters=1, tokens_per_update=1, rates=rates).found
    assert found == "updates/s over one after the other: 4 at a time 2.50 (alone 2.0)"


def test_the_outcome_of_each_test_is_read_from_the_log() -> None:
    log = (
        "tests/a.py::test_x[1-self beam] PASSED   [ 50%]\n"
        "tests/a.py::test_y FAILED [ 75%]\ntests/b.py::test_z SKIPPED (no GPU) [100%]\n"
        "tests/b.py::test_half\nFAILED tests/a.py::test_y - assert\n"
    )
    assert _RESULT.findall(log) == [
        ("tests/a.py::test_x[1-self beam]", "PASSED"),
        ("tests/a.py::test_y", "FAILED"),
        ("tests/b.py::test_z", "SKIPPED"),
    ]


# The command.

SCRIPTS = {
    "good": "import pathlib; pathlib.Path(r'{record}').write_text('7'); print('fine')",
    "bad": "import sys; print('it began'); print('error: it broke', file=sys.stderr); sys.exit(2)",
    # A process of its own, as a part has, that would go on.
    "slow": "import pathlib, subprocess; child = subprocess.Popen(['sleep', '60']); "
    "pathlib.Path(r'{folder}/pid').write_text(str(child.pid)); print('working', flush=True); "
    "child.wait()",
}


def has_ended(pid: int) -> bool:
    """Also where nobody has asked yet how it ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def fake(name: str, limit_s: float = 30.0) -> Part:
    return Part(name, f"is it {name}?", limit_s, name, lambda path: f"figure {path.read_text()}")


def call_of(asked: Asked, folder: Path) -> Call:
    def command_of(part: Part, asked: Asked) -> list[str]:
        (asked.folder).mkdir(parents=True, exist_ok=True)
        text = SCRIPTS[part.name].replace("{record}", str(asked.folder / part.record))
        return [sys.executable, "-c", text.replace("{folder}", str(folder))]

    return Call(asked, folder / "logs", folder / "bring", command_of)


def test_a_part_that_fails_or_takes_too_long_stops_no_other(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(command, "LEAST_S", 0.5)
    parts = [fake("bad"), fake("slow", 3.0), fake("good")]
    assert not call_of(asked, tmp_path).carry_out(parts, again=False)
    ends = {end.part: end for end in read_summary(asked.folder).parts}
    assert {name: end.outcome for name, end in ends.items()} == {
        "bad": "failed", "slow": "timed out", "good": "done",
    }  # fmt: skip
    assert ends["bad"].found == "it broke"
    assert ends["slow"].found == "working"
    assert ends["good"].found == "figure 7"
    said = capsys.readouterr().out.strip().split("\n")
    assert [line.split()[0] for line in said[-3:]] == ["bad", "slow", "good"]
    assert has_ended(int((tmp_path / "pid").read_text()))  # what it had started
    assert not list(asked.folder.glob(".*"))  # what they worked in
    with tarfile.open(tmp_path / "bring/gpu.tar.gz") as archive:
        names = archive.getnames()
    assert {Path(name).name for name in names} >= {"summary.json", "good", "bad.log", "slow.log"}
    assert (tmp_path / "bring/summary.txt").read_text().count("\n") == 3


def test_what_is_done_is_not_done_again(asked: Asked, tmp_path: Path, capsys) -> None:
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    first = read_summary(asked.folder).parts[0]
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    assert "good: done before by the same code on this card" in capsys.readouterr().out
    assert read_summary(asked.folder).parts == [first]
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=True)
    assert read_summary(asked.folder).parts[0].created_utc > first.created_utc


def test_what_is_done_has_its_record(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A summary alone is no answer; and a folder's summary tells of its own records alone."""
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    (asked.folder / "good").unlink()
    assert call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    assert (asked.folder / "good").read_text() == "7"
    assert "done before" not in capsys.readouterr().out
    elsewhere = replace(asked, folder=tmp_path / "elsewhere" / asked.folder.name)
    monkeypatch.setattr(command, "KEPT", {"cpu": asked.folder.parent})
    assert call_of(elsewhere, tmp_path).carry_out([fake("good")], again=False)
    said = capsys.readouterr().out
    assert f"good: done before by the same code on this card: {asked.folder / 'good'}" in said
    assert said.strip().split("\n")[-1].split()[:2] == ["good", "done"]
    assert read_summary(elsewhere.folder).parts == []


def test_an_earlier_record_stays_until_there_is_a_new_one(asked: Asked, tmp_path: Path) -> None:
    """And no figure is made of it: the part has found nothing."""
    asked.folder.mkdir(parents=True)
    for name in ("good", "bad"):
        (asked.folder / name).write_text("earlier")
    assert not call_of(asked, tmp_path).carry_out([fake("good"), fake("bad")], again=False)
    assert (asked.folder / "good").read_text() == "7"
    assert (asked.folder / "bad").read_text() == "earlier"
    assert [end.found for end in read_summary(asked.folder).parts] == ["figure 7", "it broke"]


def test_another_card_or_other_code_is_asked_again(asked: Asked) -> None:
    made_by = asked.provenance()
    end = command.PartEnd(
        **(asked.stamp() | {"device": "cuda"}), part="x", outcome="done", wall_s=1.0
    )

    def on(card: str, cpu: str = "any", digest: str = made_by.code.digest) -> Any:
        hardware = Hardware(cpu_model=cpu, cores_usable=1, memory_bytes=1, gpus=[card])
        code = msgspec.structs.replace(made_by.code, digest=digest)
        return msgspec.structs.replace(made_by, hardware=hardware, code=code)

    end = msgspec.structs.replace(end, provenance=on("H100", "one"))
    assert end.is_of(on("H100", "another"), "cuda")
    assert not end.is_of(on("H200"), "cuda")
    assert not end.is_of(on("H100", digest="0" * 64), "cuda")
    assert not end.is_of(on("H100"), "cpu")


def test_a_part_without_time_is_not_begun(tmp_path: Path) -> None:
    asked = Asked("cpu", tmp_path / "records", 5.0, 1)
    assert not call_of(asked, tmp_path).carry_out([fake("good")], again=False)
    (end,) = read_summary(asked.folder).parts
    assert (end.outcome, end.wall_s) == ("no time", 0)


def test_a_machine_without_a_gpu_says_so_in_one_line(monkeypatch, capsys) -> None:
    none = Hardware(cpu_model="x", cores_usable=1, memory_bytes=1, gpus=[])
    monkeypatch.setattr(provenance, "hardware", lambda: none)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "error: no GPU is there: nvidia-smi names none (--device cpu is a dry run with tiny "
        "shapes)\n"
    )


def test_all_that_is_missing_is_named_at_once(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "MODULES", ("torch", "no_such_a", "json", "no_such_b"))
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        "error: not installed: no_such_a, no_such_b (put their wheels into WHEELS)\n"
    )


@pytest.mark.parametrize("arguments", [["--parts", "correctness,nothing"], ["--seconds", "0"]])
def test_bad_arguments_end_with_one_line(arguments: list[str], capsys) -> None:
    assert gpu.main(["--device", "cpu", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_needs_wandb_while_tracking_is_off(tmp_path: Path) -> None:
    """Every module of the suite is imported, and a job planned, where wandb cannot be."""
    script = f"""
import importlib, pkgutil, sys
sys.modules["wandb"] = None
import experiments, gqa_fairseq, data_prep
for package in (experiments, gqa_fairseq, data_prep):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__") and not found.name.endswith("triton_kernels"):
            importlib.import_module(found.name)
from experiments.run import main
sys.argv = ["run", "experiment=quickstart", "dry_run=true", "paths.runs={tmp_path}"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "# train " in done.stdout


def test_the_parts_fit_their_calls() -> None:
    """The first two in 8 minutes; each has a module with `run`, and a line of its record."""
    assert sum(part.limit_s for part in PARTS[:2]) <= 480
    assert len({part.record for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert (ROOT / (part.module.replace(".", "/") + ".py")).is_file()


def test_make_installs_wheels_beside_python_and_passes_on_what_is_asked() -> None:
    done = subprocess.run(
        ["make", "-n", "gpu", "WHEELS=w", "PARTS=kernels", "OUT=/o", "SECONDS=540", "PYTHON=py"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "py -m pip install -q --no-index --no-deps" in done.stdout
    assert "--target outputs/gpu/site w/*.whl" in done.stdout
    run = done.stdout.replace("\\\n", " ").split("-m experiments.gpu")[1]
    expected = ["--device", "cuda", "--parts", "kernels", "--bring", "/o", "--seconds", "540"]
    assert shlex.split(run) == expected
    assert ".venv" not in done.stdout


def test_a_record_that_says_nothing_is_no_reason_to_stop(asked: Asked, tmp_path: Path) -> None:
    def broken(path: Path) -> str:
        raise ExperimentError(f"{path.name}: damaged")

    part = Part("good", "?", 30.0, "good", broken)
    assert not call_of(asked, tmp_path).carry_out([part, fake("bad")], again=False)
    end, other = read_summary(asked.folder).parts
    assert (end.outcome, end.found) == ("failed", "its record says nothing: good: damaged")
    assert other.part == "bad"
    assert json.loads((asked.folder / "summary.json").read_text())["schema_version"] == 1
