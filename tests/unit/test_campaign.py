"""A plan carried out: the order of its cells, the budget, what is kept, and what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grid_bench import MACHINE, Bench, settings, small_grid

from experiments.errors import ExperimentError
from experiments.intensity import plans
from experiments.intensity.campaign import (
    OVERHEADS,
    REST_NAME,
    STAND_IN_ROUNDS,
    START_S,
    Campaign,
    predict_again,
    read_cells,
    read_rest,
)
from experiments.intensity.cells import Cell, needed_bytes, overhead_s, parts_of, stand_in_cell
from experiments.intensity.page import read_found
from experiments.measure.request import Request
from experiments.records.measurement import Measurement
from gqa_fairseq.roofline import Load, total_seconds


def key(cell: Cell) -> tuple[int, ...]:
    load = cell.load
    own = (load.batch, load.source_tokens, load.target_tokens, load.beam)
    return *own, load.weights == "int8"


# The order, the budget, and what is left.


def test_all_are_measured_the_cheapest_first(tmp_path: Path) -> None:
    bench, plan = Bench(), small_grid()
    campaign = bench.campaign(plan, settings(tmp_path))
    campaign.run()
    assert sorted(bench.asked()) == sorted(map(key, plan.cells))
    for weights in ("float32", "int8"):
        costs = {
            key(cell): campaign.cost_s(cell) for cell in plan.cells if cell.load.weights == weights
        }
        order = [costs[one] for one in bench.asked() if one in costs]
        assert order == sorted(order)
    assert set(read_cells(tmp_path)) == {cell.name for cell in plan.cells}
    rest = read_rest(tmp_path)
    assert rest is not None
    assert rest.cells == []


def test_models_take_turns_in_one_process(tmp_path: Path) -> None:
    bench = Bench()
    bench.campaign(small_grid(weights=("float32",)), settings(tmp_path)).run()
    (asked,) = (r for r in bench.requests if len(r.contenders) > 1)
    assert [c.architecture.num_kv_heads for c in asked.contenders] == [4, 1]
    assert len(asked.searches) == 8


def test_a_budget_is_kept_and_the_rest_predicted(tmp_path: Path) -> None:
    plan = small_grid(lengths=(3, 64), positions=64, weights=("float32",))
    bench = Bench()
    bench.campaign(plan, settings(tmp_path)).run()
    whole = bench.now
    folder = tmp_path / "short"
    bench = Bench()
    budget = 0.6 * whole
    campaign = bench.campaign(plan, settings(folder, budget_s=budget))
    campaign.run()
    assert bench.now <= budget
    done, rest = read_cells(folder), read_rest(folder)
    assert rest is not None
    assert 0 < len(done) < len(plan.cells)
    left = {cell.name: cell for cell in rest.cells}
    assert set(done) | set(left) == {cell.name for cell in plan.cells}
    assert not set(done) & set(left)
    assert {cell.why for cell in rest.cells} == {"time"}
    costs = {cell.name: campaign.cost_s(cell) for cell in plan.cells}
    assert max(costs[name] for name in done) <= min(costs[name] for name in left)
    # Rates and overhead of those that were measured.
    name, cell = next(iter(left.items()))
    (own,) = (c for c in plan.cells if c.name == name)
    overhead = overhead_s(read_cells(folder / OVERHEADS)[stand_in_cell(own).name])
    assert overhead > 0
    machine = replace(MACHINE, step_overhead_s=overhead)
    parts = parts_of(own.architectures[0], own.load, machine, False)
    assert cell.predictions[0].predicted_s == pytest.approx(total_seconds(parts))
    assert cell.predictions[0].measured_s is None


def test_no_time_at_all_predicts_everything(tmp_path: Path) -> None:
    bench, plan = Bench(), small_grid()
    bench.campaign(plan, settings(tmp_path, budget_s=0.0)).run()
    rest = read_rest(tmp_path)
    assert rest is not None
    assert (bench.requests, len(rest.cells)) == ([], len(plan.cells))
    assert {tuple(cell.rates.flops_per_s.items()) for cell in rest.cells} == {
        tuple(MACHINE.flops_per_s.items())
    }


def test_what_does_not_fit_is_predicted_and_never_tried(tmp_path: Path) -> None:
    plan = small_grid()
    sizes = {key(cell): needed_bytes(cell) for cell in plan.cells}
    limit = sorted(sizes.values())[len(sizes) // 2]
    bench = Bench()
    bench.campaign(plan, settings(tmp_path, memory_bytes=limit)).run()
    assert max(sizes[one] for one in bench.asked()) <= limit
    rest = read_rest(tmp_path)
    assert rest is not None
    marked = {cell.name for cell in rest.cells if cell.why == "memory"}
    assert marked == {cell.name for cell in plan.cells if needed_bytes(cell) > limit}
    assert marked
    assert all(one.predicted_s > 0 for cell in rest.cells for one in cell.predictions)


def test_an_interrupted_plan_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = small_grid(weights=("float32",))
    stand_ins = 4
    bench = Bench(break_at=stand_ins + 3, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bench.campaign(plan, settings(tmp_path)).run()
    rest = read_rest(tmp_path)
    assert rest is not None
    assert len(rest.cells) == len(plan.cells) - 3
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.json") if path.name != REST_NAME}
    assert len(read_cells(tmp_path)) == 3
    assert len(read_cells(tmp_path / OVERHEADS)) == stand_ins
    again = Bench()
    again.campaign(plan, settings(tmp_path)).run()
    assert again.cells == len(plan.cells) - 3
    assert all(path.read_bytes() == content for path, content in kept.items())
    idle = Bench()
    idle.campaign(plan, settings(tmp_path)).run()
    assert idle.requests == []


def test_a_process_that_fails_costs_its_cell(tmp_path: Path) -> None:
    plan = small_grid(weights=("float32",))
    bench = Bench(break_at=4 + 2, error=ExperimentError("out of memory"))
    lines: list[str] = []

    def fail_once(request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
        try:
            return bench.measure(request, on_measured)
        except ExperimentError:
            bench.break_at = -1
            raise

    campaign = Campaign(plan, settings(tmp_path), fail_once, bench.clock, lines.append)
    campaign.run()
    assert len(campaign.done) == len(plan.cells) - 1
    rest = read_rest(tmp_path)
    assert rest is not None
    (lost,) = rest.cells
    assert lost.why == "failed"
    assert f"{lost.name}: failed: out of memory" in lines


def without_stand_in(bench: Bench, search: tuple[int, ...], fails: int) -> Any:
    """The bench's measurement, whose stand-in for `search` fails so many times."""
    left = fails

    def measure(request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
        nonlocal left
        is_stand_in = request.contenders[0].architecture.name == "tiny"
        if is_stand_in and search in request.searches and left:
            left -= 1
            bench.break_at = bench.cells + request.searches.index(search)
            bench.error = ExperimentError("out of memory")
        try:
            return bench.measure(request, on_measured)
        finally:
            bench.break_at = -1

    return measure


def test_a_stand_in_that_fails_costs_its_cells_alone_and_is_tried_again(tmp_path: Path) -> None:
    # 32 tokens: a cell has the name of its stand-in.
    plan = small_grid(weights=("float32",), lengths=(3, 32), positions=32)
    bench, lines = Bench(), list[str]()
    measure = without_stand_in(bench, (4, 32, 32, 1), fails=2)
    Campaign(plan, settings(tmp_path), measure, bench.clock, lines.append).run()
    lost = {"greedy-float32-4x3x3", "greedy-float32-4x32x32"}
    done, rest = read_cells(tmp_path), read_rest(tmp_path)
    assert set(done) == {cell.name for cell in plan.cells} - lost
    assert all(record.step_overhead_s > 0 for record in done.values())
    assert rest is not None
    assert {cell.name: (cell.why, cell.step_overhead_s) for cell in rest.cells} == dict.fromkeys(
        lost, ("failed", None)
    )
    line = "the overhead of greedy-float32-4x32x32: failed: out of memory"
    assert lines.count(line) == 2
    Bench().campaign(plan, settings(tmp_path)).run()
    done = read_cells(tmp_path)
    assert set(done) == {cell.name for cell in plan.cells}
    assert all(record.step_overhead_s > 0 for record in done.values())


def test_a_stand_in_that_fails_once_costs_nothing(tmp_path: Path) -> None:
    plan, bench = small_grid(weights=("float32",)), Bench()
    measure = without_stand_in(bench, (4, 32, 32, 1), fails=1)
    Campaign(plan, settings(tmp_path), measure, bench.clock, lambda line: None).run()
    assert set(read_cells(tmp_path)) == {cell.name for cell in plan.cells}


def test_a_small_budget_takes_the_cheapest_of_all_kinds(tmp_path: Path) -> None:
    """The 8-bit ones are cheaper, and one process could fill the time with them."""
    plan = small_grid(lengths=(3, 6, 12, 24, 48), positions=48, kv_heads=(1,))
    bench = Bench()
    campaign = bench.campaign(plan, settings(tmp_path, budget_s=12 * START_S))
    cheapest = [cell.name for cell in campaign.to_do()]
    campaign.run()
    done = set(read_cells(tmp_path))
    assert 2 < len(done) < len(plan.cells)
    assert {cell.load.weights for cell in plan.cells if cell.name in done} == {"float32", "int8"}
    # What is learnt of a kind while it is measured may move its costlier cells back a little.
    assert done & set(cheapest[: len(done) // 2]) == set(cheapest[: len(done) // 2])


def one_cell(**changes: Any) -> plans.Plan:
    alone: dict[str, Any] = {
        "batches": (1,), "lengths": (3,), "beams": (1,), "weights": ("float32",)
    }  # fmt: skip
    return small_grid(**(alone | changes))


def test_a_type_that_was_not_measured_has_the_rate_of_the_machine(tmp_path: Path) -> None:
    Bench().campaign(one_cell(), settings(tmp_path)).run()
    plan = one_cell(weights=("float32", "int8"))
    Bench().campaign(plan, settings(tmp_path, budget_s=0.0)).run()
    rest = read_rest(tmp_path)
    assert rest is not None
    assert {cell.load.weights for cell in rest.cells} == {"int8"}
    assert all(cell.rates.flops_per_s == MACHINE.flops_per_s for cell in rest.cells)
    predict_again(tmp_path)
    assert read_rest(tmp_path) == rest


def test_a_cell_measured_since_is_no_longer_predicted_alone(tmp_path: Path) -> None:
    plan = small_grid(weights=("float32",))
    Bench().campaign(plan, settings(tmp_path / "grid", budget_s=0.0)).run()
    rest = read_rest(tmp_path / "grid")
    assert rest is not None
    bench = Bench(break_at=4 + 3, error=KeyboardInterrupt())
    campaign = bench.campaign(plan, settings(tmp_path / "grid"))
    campaign.write_rest = lambda: None  # type: ignore[method-assign]  # as after a kill
    with pytest.raises(KeyboardInterrupt):
        campaign.run()
    assert read_rest(tmp_path / "grid") == rest
    found = read_found(tmp_path)["grid"]
    assert len(found.cells) == 3
    names = {cell.name for cell in found.unmeasured}
    assert names == {cell.name for cell in plan.cells} - set(found.cells)


@pytest.mark.parametrize(
    ("plan", "changes", "problem"),
    [
        (one_cell(positions=9), {}, "is of other models"),
        (one_cell(), {"device": "cuda"}, "has device cpu, not cuda"),
        (one_cell(), {"dtype": "bfloat16"}, "has dtype float32, not bfloat16"),
        (one_cell(), {"threads": 2}, "has threads 1, not 2"),
        (replace(one_cell(), name="table2"), {}, "has plan grid, not table2"),
    ],
)
def test_records_of_something_else_are_refused(
    tmp_path: Path, plan: plans.Plan, changes: dict[str, Any], problem: str
) -> None:
    Bench().campaign(one_cell(), settings(tmp_path)).run()
    (cell,) = read_cells(tmp_path)
    problem = rf"{problem} \(choose another --out\)"
    with pytest.raises(ExperimentError, match=problem):
        Bench().campaign(plan, settings(tmp_path, **changes))
    (tmp_path / f"{cell}.json").unlink()
    with pytest.raises(ExperimentError, match=problem):  # the stand-in alone
        Bench().campaign(plan, settings(tmp_path, **changes))


def test_one_round_of_a_cell_is_not_one_of_its_overhead(tmp_path: Path) -> None:
    bench = Bench()
    bench.campaign(one_cell(), settings(tmp_path, repeats=1)).run()
    assert [request.repeats for request in bench.requests] == [STAND_IN_ROUNDS, 1]


def test_only_cells_of_the_plan_are_counted(tmp_path: Path) -> None:
    Bench().campaign(one_cell(batches=(1, 4)), settings(tmp_path)).run()
    plan = one_cell(batches=(4,))
    campaign = Bench().campaign(plan, settings(tmp_path))
    assert set(campaign.done) == {cell.name for cell in plan.cells}


# One whole run.


def test_a_plan_carried_out_by_the_one_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from hydra import version

    from experiments.measure import machine as probes
    from experiments.measure.session import run_request

    version.setbase("1.1")  # fairseq composes as Hydra 1.0 did
    monkeypatch.setattr(probes, "_READ_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(probes, "_MATRIX_ROWS", {"cpu": 32})
    monkeypatch.setattr(probes, "_STREAM_BYTES", {"cpu": 2**14})
    threads = torch.get_num_threads()
    decoding = small_grid(lengths=(3,), batches=(2,), beams=(2,)).cells
    models = decoding[0].architectures
    training = Cell(models, Load(2, 3, 4), is_training=True)
    plan = plans.Plan("grid", (*decoding, training))
    campaign = Campaign(
        plan,
        settings(tmp_path),
        lambda request, on_measured: run_request(request, on_timing=on_measured),
        say=lambda line: None,
    )
    campaign.run()
    torch.set_num_threads(threads)
    found = read_cells(tmp_path)
    assert set(found) == {"beam2-float32-2x3x3", "beam2-int8-2x3x3", "training-float32-2x3x4"}
    assert set(found["beam2-int8-2x3x3"].rates.flops_per_s) == {"float32", "int8"}
    assert set(found["beam2-float32-2x3x3"].rates.flops_per_s) == {"float32"}
    assert found["beam2-float32-2x3x3"].step_overhead_s > 0
    assert found["beam2-int8-2x3x3"].rates.step_flops_per_s
    assert found["training-float32-2x3x4"].rates.step_flops_per_s is None
    for record in found.values():
        assert [one.num_kv_heads for one in record.predictions] == [4, 1]
        assert record.timing.rounds == 2
        assert all(one.measured_s and one.predicted_s for one in record.predictions)
    assert [p.name for p in found["training-float32-2x3x4"].predictions[0].parts] == [
        "layers", "attention", "output", "optimizer",
    ]  # fmt: skip
    assert (tmp_path / REST_NAME).exists()
