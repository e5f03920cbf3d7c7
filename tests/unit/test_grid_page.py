"""Records of cells, their predictions and errors, and the page that is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from grid_bench import MACHINE, PAPER, Bench, settings, small_grid

from experiments import grid
from experiments.errors import ExperimentError
from experiments.intensity import plans
from experiments.intensity.campaign import predict_again, read_cells
from experiments.intensity.cells import (
    Cell,
    CellRecord,
    closeness,
    compared,
    needed_bytes,
    parts_of,
    read_cell,
    stand_in,
    stand_in_cell,
)
from experiments.intensity.page import (
    DOCUMENT,
    ERRORS,
    MARKS,
    SAMPLES,
    SPEED_UPS,
    Found,
    block,
    read_found,
    scaled_s,
    write_page,
)
from gqa_fairseq.roofline import Load, decoding_per_sentence, total_seconds

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results/measurements/intensity"


# A record.


def a_record(folder: Path) -> CellRecord:
    Bench(times=2.0).campaign(small_grid(), settings(folder)).run()
    return read_cells(folder)["beam2-int8-4x6x6"]


def test_a_record_has_the_prediction_its_parts_and_its_error(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    assert record.rates.flops_per_s == MACHINE.flops_per_s
    # A stand-in that takes twice what is predicted has as much overhead as what is counted.
    tiny = stand_in_cell(record.cell)
    counted = total_seconds(parts_of(tiny.architectures[0], tiny.load, MACHINE, False))
    assert record.step_overhead_s == pytest.approx(counted / tiny.load.target_tokens)
    machine = replace(MACHINE, step_overhead_s=record.step_overhead_s)
    for own, one in zip(record.cell.architectures, record.predictions, strict=True):
        assert one.num_kv_heads == own.num_kv_heads
        assert one.parts == parts_of(own, record.load, machine, False)
        measured = 2 * total_seconds(parts_of(own, record.load, MACHINE, False))
        assert one.measured_s == pytest.approx(measured)
        assert one.error == pytest.approx(one.predicted_s / measured - 1)
    assert compared(record.plan, record.load, record.step_overhead_s, record.measurement) == record


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("predictions", 0, "error"), "error is 7, but the other fields give"),
        (("predictions", 0, "predicted_s"), "predicted_s is 7, but the other fields give"),
        (("schema_version",), "schema_version: 7, but this code reads 1"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Sequence[Any], problem: str
) -> None:
    a_record(tmp_path)
    path = tmp_path / "beam2-int8-4x6x6.json"
    content = json.loads(path.read_bytes())
    *places, last = change
    inner = content
    for place in places:
        inner = inner[place]
    inner[last] = 7
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(ExperimentError, match=problem):
        read_cell(path)


def test_a_stand_in_has_the_layers_and_the_words() -> None:
    tiny = stand_in(PAPER)
    assert (tiny.decoder_layers, tiny.vocab_size) == (6, PAPER.vocab_size)
    assert tiny.parameters < PAPER.parameters / 100


def test_predictions_are_made_anew_of_the_samples(tmp_path: Path) -> None:
    limit = max(map(needed_bytes, small_grid().cells)) - 1
    Bench().campaign(small_grid(), settings(tmp_path, memory_bytes=limit)).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert len(before) > 10
    predict_again(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    path = tmp_path / "greedy-float32-1x3x3.json"
    stale = json.loads(before[path])
    stale["step_overhead_s"] = 7.0
    path.write_bytes(msgspec.json.encode(stale))
    predict_again(tmp_path)
    assert path.read_bytes() == before[path]


def test_records_hold_what_the_model_predicts_today() -> None:
    """Where the model was mended, making the page makes the records' predictions anew."""
    for one in read_found(COMMITTED).values():
        for record in one.records:
            again = compared(
                record.plan, record.load, record.step_overhead_s, record.measurement
            ).predictions
            for old, new in zip(record.predictions, again, strict=True):
                assert old.predicted_s == pytest.approx(new.predicted_s, rel=1e-9)


# The page.


def all_plans(folder: Path) -> dict[str, Found]:
    """Records of every plan, measured at twice the predicted time; one grid cell is not."""
    cells = small_grid().cells
    limit = max(map(needed_bytes, cells)) - 1
    Bench().campaign(small_grid(), settings(folder / "grid", memory_bytes=limit)).run()
    models = cells[0].architectures
    loads = [Load(2, 6, 6, beam) for beam in (1, 4)]
    table_2 = plans.Plan("table2", tuple(Cell(models, load) for load in loads))
    figure_6 = plans.Plan("figure6-small", (Cell(models, loads[0]),), scale=3)
    for plan in (table_2, figure_6):
        Bench().campaign(plan, settings(folder / plan.name)).run()
    return read_found(folder)


def test_the_tables_are_the_records(tmp_path: Path) -> None:
    found = all_plans(tmp_path)
    text = block(found)
    grid_of = found["grid"]
    record = grid_of.cells["greedy-int8-4x6x6"]
    raw = [
        [total - encoder for total, encoder in zip(s.total_s, s.encoder_s or [], strict=True)]
        for s in record.timing.samples
    ]
    factor = raw[0][0] / raw[1][0]
    predicted = record.predictions[0].predicted_s / record.predictions[1].predicted_s
    row = next(line for line in text.split("\n") if line.startswith("| int8 | greedy | 4 |"))
    assert row.endswith(f"| {factor:.2f} ({predicted:.2f}) |")
    (unfit,) = {cell.name for cell in grid_of.unmeasured}
    assert "does not fit" in text
    assert text.count(" † |") == 1, unfit
    limits = [line.split(" | ") for line in text.split("\n") if "| limit |" in line]
    kinds = [(kind, search) for kind in ("float32", "int8") for search in ("beam 2", "greedy")]
    assert [(line[0], line[1]) for line in limits] == [(f"| {kind}", s) for kind, s in kinds]
    most, fewest = (
        decoding_per_sentence(own, Load(1, 6, 6, 2, "int8", "float32"), MACHINE)
        for own in record.cell.architectures
    )
    assert limits[2][-1] == f"*{most / fewest:.2f}* |"
    close = [
        abs(one.predicted_s / (one.measured_s or 1) - 1) <= 0.25 for one in grid_of.predictions
    ]
    assert f"| all |  | {len(close)} | {sum(close) / len(close):.0%} |" in text
    assert closeness(grid_of.records) == (sum(close), len(close))
    assert "| greedy | 2 | " in text
    assert text.split("| greedy | 2 | ")[1].split("\n")[0].endswith("| 12.11 |")  # 46 / 3.8


def test_times_are_scaled_by_the_layers_and_not_the_output_or_the_overhead(
    tmp_path: Path,
) -> None:
    found = all_plans(tmp_path)
    (record,) = found["figure6-small"].records
    one = record.predictions[0]
    assert one.measured_s is not None
    output = next(part.seconds for part in one.parts if part.name == "output")
    layers, whole = (stand_in_cell(record.cell, n).architectures[0].decoder_layers for n in (1, 3))
    assert (layers, whole) == (2, 6)
    assert record.whole_step_overhead_s is not None
    assert record.whole_step_overhead_s > record.step_overhead_s > 0
    own, all_of_them = (6 * s for s in (record.step_overhead_s, record.whole_step_overhead_s))
    of_layers = one.measured_s - output - own
    assert of_layers > 0
    assert scaled_s(record, one) == pytest.approx(3 * of_layers + output + all_of_them)
    greedy = found["table2"].records[0]
    unscaled = greedy.predictions[0]
    assert scaled_s(greedy, unscaled) == unscaled.measured_s


def test_one_command_makes_the_page_and_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = all_plans(tmp_path / "records")
    document = tmp_path / "page.md"
    start, end = MARKS
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*")}
    document.write_text(f"before\n{start}old\n{end}\nafter\n", encoding="utf-8")
    written = write_page(tmp_path / "records", document)
    assert document.read_text(encoding="utf-8") == f"before\n{start}{block(found)}{end}\nafter\n"
    assert {path: path.stat().st_mtime_ns for path in records} == records  # are only read
    first = {path: path.read_bytes() for path in written}
    assert [path.name for path in written] == ["page.md", SPEED_UPS, ERRORS, SAMPLES]
    assert all(
        content.startswith(b"\x89PNG") for path, content in first.items() if path != document
    )
    write_page(tmp_path / "records", document)
    assert {path: path.read_bytes() for path in written} == first
    none = tmp_path / "none"
    assert grid.main(["page", "--records", str(none)]) == 2
    assert f"{none}: no records (measure first" in capsys.readouterr().err
    document.write_text("no marks", encoding="utf-8")
    with pytest.raises(ExperimentError, match="no single place between"):
        write_page(tmp_path / "records", document)


def a_page(folder: Path) -> Path:
    document = folder / "page.md"
    document.write_text("old".join(MARKS), encoding="utf-8")
    return document


def test_a_plan_is_known_by_its_records(tmp_path: Path) -> None:
    """Whatever `--out` called their folder."""
    a_record(tmp_path / "records/mine")
    found = read_found(tmp_path / "records")
    assert list(found) == ["grid"]
    document = a_page(tmp_path)
    write_page(tmp_path / "records", document)
    assert document.read_text(encoding="utf-8") == block(found).join(MARKS)
    a_record(tmp_path / "records/other")
    with pytest.raises(ExperimentError, match="two folders have records of grid"):
        write_page(tmp_path / "records", document)


def test_a_folder_with_two_plans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid/beam2-int8-4x6x6.json"
    a_record(path.parent)
    path.write_bytes(path.read_bytes().replace(b'"plan": "grid"', b'"plan": "table2"'))
    with pytest.raises(ExperimentError, match="has records of grid and of table2"):
        read_found(tmp_path)


@pytest.mark.parametrize("plan", ["page", "predict-again"])
@pytest.mark.parametrize("records", ["records/grid", "typo"])
def test_a_folder_without_plans_is_refused(
    plan: str, records: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also one level too deep, where nothing but the stand-ins' records is in a folder."""
    monkeypatch.chdir(tmp_path)  # the project's own page is not written, whatever happens
    a_record(tmp_path / "records/grid")
    assert grid.main([plan, "--records", str(tmp_path / records)]) == 2
    assert f"{tmp_path / records}: no records" in capsys.readouterr().err


def test_a_page_that_would_be_empty_is_not_written(tmp_path: Path) -> None:
    plan = replace(small_grid(), name="other")
    Bench().campaign(plan, settings(tmp_path / "records/other")).run()
    document = a_page(tmp_path)
    with pytest.raises(ExperimentError, match="the page shows none of other"):
        write_page(tmp_path / "records", document)
    assert document.read_text(encoding="utf-8") == "old".join(MARKS)


def test_the_page_shows_what_the_records_hold() -> None:
    """Numbers are generated: `python -m experiments.grid page` writes all between the two marks."""
    found = read_found(COMMITTED)
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    start, end = MARKS
    assert text.split(start)[1].split(end)[0] == block(found)
    shown = {name for name in (SPEED_UPS, ERRORS, SAMPLES) if f"]({name})" in text}
    assert shown == {
        name for name in (SPEED_UPS, ERRORS, SAMPLES) if (ROOT / "docs" / name).exists()
    }
