"""Plans of cells: their order, their budget, what is kept, and what is predicted of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments import grid
from experiments.errors import ExperimentError
from experiments.intensity import plans
from experiments.intensity.campaign import (
    OVERHEADS,
    REST_NAME,
    STAND_IN_ROUNDS,
    START_S,
    Campaign,
    Settings,
    predict_again,
    read_cells,
    read_rest,
)
from experiments.intensity.cells import (
    Cell,
    CellRecord,
    closeness,
    compared,
    needed_bytes,
    overhead_s,
    parts_of,
    read_cell,
    stand_in,
    stand_in_cell,
)
from experiments.intensity.models import PRESETS, architecture_of
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
from experiments.measure.request import Request, decoding_workloads
from experiments.records.measurement import Contender, Measurement, Samples, Timing
from experiments.records.parts import CodeInfo, Hardware, Provenance
from gqa_fairseq.architecture import Heads
from gqa_fairseq.roofline import (
    Load,
    Machine,
    decoding_per_sentence,
    encoder_seconds,
    kv_bytes,
    total_seconds,
)

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results/measurements/intensity"
PAPER = architecture_of(PRESETS["paper"])
TINY = replace(
    PAPER, d_model=32, encoder_heads=Heads(4, 8, 4), decoder_heads=Heads(4, 8, 4), encoder_layers=1,
    decoder_layers=2, encoder_d_ff=48, decoder_d_ff=48, vocab_size=44,
)  # fmt: skip
MACHINE = Machine("a test", 1e6, {"float32": 1e7, "int8": 4e7}, 2**34, "a test")
MADE_BY = Provenance(
    code=CodeInfo(commit="0" * 40, dirty=False, digest="0" * 64),
    versions={"torch": "0"},
    hardware=Hardware(cpu_model="a test", cores_usable=1, memory_bytes=2**34, gpus=[]),
    threads=1,
)


def small_grid(**changes: Any) -> plans.Plan:
    values: dict[str, Any] = {
        "kv_heads": (4, 1),
        "batches": (1, 4),
        "lengths": (3, 6),
        "beams": (1, 2),
        "weights": ("float32", "int8"),
        "cache": "float32",
        "positions": 8,
    }
    return plans.grid(TINY, **(values | changes))


def settings(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "folder": folder,
        "machine": MACHINE,
        "memory_bytes": 2**34,
        "budget_s": 1e6,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "repeats": 2,
    }
    return Settings(**(values | changes))


class Bench:
    """Stands for the measurement: a clock, and seconds that are `times` what is predicted.

    `break_at` is the number of cells after which it raises `error`.
    """

    def __init__(self, times: float = 2.0, break_at: int = -1, error: Any = None) -> None:
        self.now, self.times = 0.0, times
        self.break_at, self.error = break_at, error
        self.requests: list[Request] = []
        self.cells = 0

    def clock(self) -> float:
        return self.now

    def measure(self, request: Request, on_measured: Callable[[Measurement], None]) -> Measurement:
        self.requests.append(request)
        self.now += START_S
        timings: list[Timing] = []
        for workload in decoding_workloads(request):
            if self.cells == self.break_at:
                raise self.error
            samples = []
            for contender in request.contenders:
                is_int8 = contender.engine == "gqa+int8"
                load = Load(
                    workload.batch, workload.source_tokens, workload.target_tokens, workload.beam,
                    "int8" if is_int8 else "float32", "float32",
                )  # fmt: skip
                own = contender.architecture
                decoder = self.times * total_seconds(parts_of(own, load, MACHINE, False))
                encoder = total_seconds(encoder_seconds(own, load, MACHINE))
                self.now += (1 + request.repeats) * (decoder + encoder)
                samples.append(
                    Samples(
                        contender=Contender(
                            architecture=own, engine=contender.engine, weights="random"
                        ),
                        tokens_produced=workload.batch * workload.target_tokens,
                        total_s=[decoder + encoder] * request.repeats,
                        encoder_s=[encoder] * request.repeats,
                    )
                )
            timings.append(
                Timing(
                    workload=workload,
                    warmup_runs=1,
                    samples=samples,
                    read_bytes_per_s=[MACHINE.bytes_per_s] * request.repeats,
                    matrix_flops_per_s=[MACHINE.flops_per_s["float32"]] * request.repeats,
                    int8_flops_per_s=[MACHINE.flops_per_s["int8"]] * request.repeats
                    if is_int8
                    else [],
                )
            )
            self.cells += 1
            measured = Measurement(
                created_utc=datetime(2026, 1, 2, tzinfo=UTC),
                provenance=MADE_BY,
                device="cpu",
                dtype="float32",
                operators="none",
                timings=list(timings),
            )
            on_measured(measured)
        return measured

    def campaign(self, plan: plans.Plan, asked: Settings) -> Campaign:
        return Campaign(plan, asked, self.measure, self.clock, lambda line: None)

    def asked(self) -> list[tuple[int, ...]]:
        """All searches that were asked of the models themselves, in order."""
        return [
            (*search, request.contenders[0].engine == "gqa+int8")
            for request in self.requests
            for search in request.searches
            if request.contenders[0].architecture.name != "tiny"
        ]


def key(cell: Cell) -> tuple[int, ...]:
    load = cell.load
    own = (load.batch, load.source_tokens, load.target_tokens, load.beam)
    return *own, load.weights == "int8"


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


def one_cell(**changes: Any) -> plans.Plan:
    alone: dict[str, Any] = {
        "batches": (1,), "lengths": (3,), "beams": (1,), "weights": ("float32",)
    }  # fmt: skip
    return small_grid(**(alone | changes))


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


def test_records_hold_what_the_model_predicts_today() -> None:
    """Where the model was mended, making the page makes the records' predictions anew."""
    for one in read_found(COMMITTED).values():
        for record in one.records:
            again = compared(
                record.plan, record.load, record.step_overhead_s, record.measurement
            ).predictions
            for old, new in zip(record.predictions, again, strict=True):
                assert old.predicted_s == pytest.approx(new.predicted_s, rel=1e-9)


# One whole run, and the command.


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
