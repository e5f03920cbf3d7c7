"""Plans of cells: their loads and models, the memory that they need, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from grid_bench import MACHINE, PAPER, Bench, settings, small_grid

from experiments import grid
from experiments.intensity import plans
from experiments.intensity.cells import Cell, needed_bytes
from gqa_fairseq.architecture import Heads
from gqa_fairseq.roofline import Load, kv_bytes

# Plans.


def test_the_grid_has_every_load_once_and_every_model_in_each() -> None:
    plan = plans.grid(PAPER, weights=("float32", "int8"), cache="float32")
    assert len(plan.cells) == len({cell.name for cell in plan.cells}) == 5 * 4 * 2 * 2
    for cell in plan.cells:
        assert [own.num_kv_heads for own in cell.architectures] == [8, 4, 2, 1]
        assert {own.max_target_positions for own in cell.architectures} == {1024}
        assert len({own.parameters for own in cell.architectures}) == 1
    assert {cell.name for cell in plan.cells} >= {
        "greedy-float32-16x512x512", "beam4-int8-256x1024x1024",
    }  # fmt: skip
    assert {cell.engine for cell in plan.cells} == {"gqa", "gqa+int8"}


def test_the_protocols_are_the_papers() -> None:
    greedy, beam, training = plans.table_2("float32").cells
    assert (greedy.load.batch, greedy.load.source_tokens, greedy.load.target_tokens) == (
        128, 128, 128,
    )  # fmt: skip
    assert [greedy.load.beam, beam.load.beam, training.is_training] == [1, 4, True]
    assert [own.decoder_d_ff for own in training.architectures] == [4096, 5440]
    plan = plans.figure_6("t5-xxl", "float32", 2**62)
    own = plan.cells[0].architectures[1]
    assert (own.decoder_layers, own.decoder_heads, plan.scale) == (24, Heads(64, 64, 8), 1)
    assert own.encoder_heads.is_multi_head
    assert own.decoder_d_ff == 3 * 10_240 // 2
    lengths = [(c.load.source_tokens, c.load.target_tokens) for c in plan.cells]
    assert lengths == [(2048, 512), (512, 256)]


def test_layers_are_fewer_where_memory_ends() -> None:
    whole = plans.figure_6("t5-large", "float32", 2**62)
    most = max(map(needed_bytes, whole.cells))
    fewer = plans.figure_6("t5-large", "float32", most - 1)
    assert (fewer.scale, fewer.cells[0].architectures[0].decoder_layers) == (2, 12)
    assert max(map(needed_bytes, fewer.cells)) < most
    least = plans.figure_6("t5-large", "float32", 0)  # is refused when it is carried out
    assert (least.scale, least.cells[0].architectures[0].decoder_layers) == (24, 1)


def test_a_figure_goes_on_with_the_layers_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However much memory is free now."""
    monkeypatch.setattr(grid, "find_machine", lambda *_: MACHINE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begun = plans.figure_6("t5-large", "float32", 2**62, asked_layers=6)
    own = settings(tmp_path, memory_bytes=2**62, machine=replace(MACHINE, bytes_per_s=1e12))
    Bench().campaign(replace(begun, cells=begun.cells[1:]), own).run()
    asked = ["figure6-t5-large", "--dry-run", "--out", str(tmp_path)]
    assert grid.main(asked) == 0
    assert "greedy-float32-4x512x256         measured" in capsys.readouterr().out
    assert grid.main([*asked, "--decoder-layers", "12"]) == 2
    assert "is of other models" in capsys.readouterr().err


def test_a_figure_may_have_fewer_layers_and_heads() -> None:
    plan = plans.figure_6("t5-xxl", "float32", 2**62, (64, 1), 2)
    assert plan.scale == 12
    for cell in plan.cells:
        assert [own.num_kv_heads for own in cell.architectures] == [64, 1]
        assert {own.decoder_layers for own in cell.architectures} == {2}


def test_memory_counts_all_models_and_the_largest_load() -> None:
    one, other = small_grid().cells[0].architectures
    load = Load(4, 6, 6, 2)
    alone = [needed_bytes(Cell((own,), load)) for own in (one, other)]
    both = needed_bytes(Cell((one, other), load))
    assert max(alone) < both < sum(alone)
    kept = kv_bytes(one, load)
    more = needed_bytes(Cell((one,), replace(load, batch=8))) - alone[0]
    scores, encoder = 4 * 4 * 2 * 44, 4 * 6 * (6 * 32 + 2 * 48)
    assert more == kept["self"] + 2 * kept["cross"] + 4 * (scores + encoder)
    assert needed_bytes(Cell((one,), load, is_training=True)) > 16 * one.parameters


# The command.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cube"], "invalid choice: 'cube'"),
        (["grid", "--kv-heads", "3"], "num_kv_heads 3 does not divide 8"),
        (["grid", "--batches", "0"], "'0' is not a whole number above 0"),
        (["grid", "--batches", "1,4,1"], "--batches: 1 is there twice"),
        (["grid", "--weights", "int8,int8"], "--weights: int8 is there twice"),
        (["grid", "--lengths", "1"], "--lengths 1: a target has at least 2 tokens"),
        (["grid", "--positions", "0"], "--positions 0: the models of the grid learn"),
        (["grid", "--positions", "100"], "and lines have 1,024 tokens: give at least as many"),
        (["grid", "--budget-minutes", "nan"], "'nan' is not a number of minutes"),
        (["grid", "--dtype", "float16"], "has no rate for it: choose one of float32"),
        (["grid", "--records", "x"], "--records has no use in grid (leave it out)"),
        (["table2", "--batches", "4"], "--batches has no use in table2 (leave it out)"),
        (["table2", "--model", "base"], "--model has no use in table2 (leave it out)"),
        (["figure6-t5-xxl", "--kv-heads", "64,64"], "--kv-heads: 64 is there twice"),
        (["figure6-t5-xxl", "--kv-heads", "3"], "num_kv_heads 3 does not divide 64"),
        (["figure6-t5-xxl", "--decoder-layers", "5"], "5 does not divide the 24 of t5-xxl"),
        (["page"], "--out has no use in page (leave it out)"),
        (["grid", "--model", "huge"], "huge"),
        (["grid", "--weights", "int4"], "int4"),
        (["grid", "--device", "cuda", "--weights", "int8"], "int8"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(grid, "find_machine", lambda *_: MACHINE)
    assert grid.main([*arguments, "--dry-run", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: ")
    assert words in line


def test_a_dry_run_lists_the_cells_and_measures_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(grid, "find_machine", lambda *_: MACHINE)
    assert grid.main(["grid", "--dry-run", "--out", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out.strip().split("\n")
    assert len(out) == 80
    assert any(line.startswith("beam4-int8-256x1024x1024 ") for line in out)
    ordered = [line.endswith("  beyond the budget") for line in out if " in all " in line]
    assert any(ordered)
    assert ordered == sorted(ordered)  # the budget takes the first of them
    assert not (tmp_path / "none").exists()
