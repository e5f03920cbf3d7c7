"""Models, machines, the answer and the command of experiments.intensity."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
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
from gqa_fairseq.architecture import FEED_FORWARDS, PLACEMENTS, Variant
from gqa_fairseq.parity import BASELINES, regrouped
from gqa_fairseq.roofline import Load

PAPER = architecture_of(MODELS["paper"])


JOB = "results/runs/quickstart/mqa-seed1-3f57b7c29d5a"


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


def test_a_measurement_may_take_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CPU what is free, not what is there."""
    machine = replace(MACHINES["H100"], memory_bytes=1000)
    monkeypatch.setattr(machines, "available_bytes", lambda: 200)
    assert machines.usable_bytes(machine, "cuda") == 850
    assert machines.usable_bytes(machine, "cpu") == 170


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
        assert found["model"] == "quickstart/mqa-seed1-3f57b7c29d5a"
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
