"""Exhibits of the report: the numbers of their tables, and what their pictures draw."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from matplotlib.figure import Figure

from experiments.records.measurement import speed_up
from experiments.records.parts import TrainPoint
from experiments.records.record import Diverged, Record
from experiments.report.cells import Table
from experiments.report.exhibits import group_exhibits
from experiments.report.exhibits.alpha import alpha
from experiments.report.exhibits.conversion import conversion
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.kv_heads import kv_heads
from experiments.report.exhibits.stability import stability
from experiments.report.exhibits.trade_off import trade_offs
from experiments.report.groups import Group, group_records
from experiments.report.papers.reference import read_papers
from experiments.report.pictures.drawing import style
from experiments.report.pictures.plots import group_plots
from experiments.report.render import write_report
from gqa_fairseq.architecture import Variant

replace = msgspec.structs.replace


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Cell texts by row name and column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def group_of(*records: Record) -> Group:
    (group,) = group_records(records)
    return group


def drawn(exhibit: Exhibit) -> Figure:
    figure = Figure(figsize=exhibit.size_inches, layout="constrained")
    exhibit.draw(figure)
    return figure


def noisy_curve(points: int, norm: float, spikes: Sequence[int] = ()) -> list[TrainPoint]:
    """Losses around 3, two nats more at the points with these numbers; norms rise by 0.01."""
    return [
        TrainPoint(
            update=15 * number,
            train_nll_nats_per_token=(2.9, 3.1)[number % 2] + 2 * (number in spikes),
            dev_nll_nats_per_token=None,
            learning_rate=1e-3,
            target_tokens=number,
            wall_s=float(number),
            grad_norm=norm + 0.01 * number,
        )
        for number in range(1, points + 1)
    ]


def trained(heads: int, seed: int, norm: float, spikes: Sequence[int] = ()) -> Record:
    """A record whose curve has 40 points, or 30 where it diverged (a negative norm)."""
    if norm < 0:
        record = synthetic.record(heads, seed, diverged_after=450)
        assert isinstance(record.result, Diverged)
        return replace(record, result=replace(record.result, curve=noisy_curve(30, -norm, spikes)))
    record = synthetic.record(heads, seed)
    result = synthetic.finished(record)
    training = replace(result.training, curve=noisy_curve(40, norm, spikes))
    return replace(record, result=replace(result, training=training))


def unstable() -> Group:
    return group_of(
        *(trained(8, seed, 0.5) for seed in (1, 2, 3)),
        trained(1, 1, 1.0, spikes=(25, 26, 31)),
        trained(1, 2, -2.0, spikes=(29,)),
        trained(1, 3, 3.0),
    )


def test_the_table_of_stability_counts_every_training() -> None:
    exhibit = stability(unstable())
    assert exhibit is not None
    rows = cells(exhibit.table)
    mha, mqa = rows["mha"], rows["mqa"]
    assert (mha["trainings"], mha["diverged"]) == ("3", "0")
    assert mha["loss spikes of each training"] == "0, 0, 0"
    assert mha["largest spike, nats"] == "–"
    assert mha["points judged"] == "60"
    assert (mqa["trainings"], mqa["diverged"]) == ("3", "1: seed 2 after update 450")
    assert mqa["loss spikes of each training"] == "2, 1, 0"
    assert mqa["largest spike, nats"] == "2.10"
    assert mqa["points judged"] == "50"
    # The later halves: points 21 to 40, and 16 to 30 where it diverged.
    medians, largest = [1.305, 2.23, 3.305], [1.4, 2.3, 3.4]
    for column, values in (("median", medians), ("largest", largest)):
        expected = f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
        assert mqa[f"gradient norm: {column} of the later half"] == expected
    assert mha["gradient norm: largest of the later half"] == "0.90 ± 0.00"
    notes = " ".join(exhibit.table.notes)
    assert "Trainings by seed (1, 2, 3)." in notes
    assert "few" not in notes


def test_few_seeds_are_called_few() -> None:
    exhibit = stability(group_of(trained(8, 1, 0.5), trained(1, 1, 0.5)))
    assert exhibit is not None
    assert "One seed is few: a difference may be chance." in " ".join(exhibit.table.notes)


def test_a_variant_with_fewer_seeds_than_the_others_is_called_few() -> None:
    found = [trained(8, seed, 0.5) for seed in (1, 2, 3)] + [trained(1, 1, 0.5)]
    exhibit = stability(group_of(*found))
    assert exhibit is not None
    assert "One seed is few: a difference may be chance." in " ".join(exhibit.table.notes)
    kept = [r for r in uptrained_records() if not r.variant.startswith("mqa") or r.seed == 1]
    of_alpha = alpha(group_of(*kept))
    assert of_alpha is not None
    assert "One seed is few: a difference may be chance." in " ".join(of_alpha.table.notes)


def test_spikes_and_divergence_are_drawn_where_they_are() -> None:
    exhibit = stability(unstable())
    assert exhibit is not None
    loss, *_ = (axes for axes in drawn(exhibit).axes if axes.get_title() == "mqa")
    marks = {
        marker: sorted(
            (float(x), float(y))
            for line in loss.lines
            if line.get_marker() == marker
            for x, y in line.get_xydata()
        )
        for marker in "vx"
    }
    assert marks == {"v": [(375, 5.1), (435, 5.1), (465, 5.1)], "x": [(450, 2.9)]}
    assert len([line for line in loss.lines if line.get_marker() == "None"]) == 3


def test_records_without_gradient_norms_have_no_exhibit_of_stability() -> None:
    group = group_of(synthetic.record(8), synthetic.record(1))
    assert stability(group) is None
    assert group_exhibits(group) == []


def test_a_training_without_gradient_norms_says_so_beside_the_others() -> None:
    exhibit = stability(group_of(synthetic.record(8), trained(1, 1, 0.5)))
    assert exhibit is not None
    row = cells(exhibit.table)["mha"]
    assert row["gradient norm: median of the later half"] == "not recorded"
    assert row["points judged"] == "0"


PARENT_NATS, CONTROL_NATS = 2.0, {0.0: 2.0, 0.05: 1.96, 0.1: 1.94}
# Nats behind the control, by alpha.
BEHIND = {
    ("mean", 1): {0.0: 2.5, 0.05: 0.5, 0.1: 0.25},
    ("svd-product", 1): {0.0: 0.6, 0.05: 0.15, 0.1: 0.12},
    ("mean", 2): {0.0: 2.0, 0.05: 0.4, 0.1: 0.2},
}


def uptrained(heads: int, method: str, alpha: float, seed: int, nats: float) -> Record:
    """BLEU is 40 less 4 a nat, a little more with beam 4; there is none at alpha 0.05."""
    record = synthetic.record(heads, seed, uptrained=(method, alpha))
    scores = [synthetic.model_score(beam, "bleu", 40 - 4 * nats + (beam == 4)) for beam in (1, 4)]
    return synthetic.with_evaluation(
        record,
        dev_nll_nats_per_token=nats,
        dev_perplexity=math.exp(nats),
        scores=[] if alpha == 0.05 else scores,
    )


def uptrained_records(seeds: Sequence[int] = (1, 2, 3)) -> list[Record]:
    """A seed adds 0.01 to every loss, and 0.001 more to what is behind."""
    controls = [
        uptrained(8, "identity", alpha, seed, nats + 0.01 * seed)
        for alpha, nats in CONTROL_NATS.items()
        for seed in seeds
    ]
    return controls + [
        uptrained(heads, method, alpha, seed, CONTROL_NATS[alpha] + nats + 0.011 * seed)
        for (method, heads), behind in BEHIND.items()
        for alpha, nats in behind.items()
        for seed in seeds
    ]


def by(table: Table, *columns: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Cell texts by the cells of these columns."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    found = {tuple(row[name] for name in columns): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_conversion_methods_stand_side_by_side_at_each_alpha() -> None:
    scratch = [synthetic.record(heads) for heads in (8, 1)]
    exhibit = conversion(group_of(*uptrained_records(), *scratch))
    assert exhibit is not None
    rows = by(exhibit.table, "variant", "conversion")
    assert list(rows) == [
        ("mha", "identity"),
        ("gqa2-ff768", "mean"),
        ("mqa-ff768", "mean"),
        ("mqa-ff768", "svd-product"),
    ]
    row = rows["mqa-ff768", "svd-product"]
    assert (row["kv heads"], row["d_ff enc / dec"]) == ("1", "768 / 768")
    kept = synthetic.SMALL.resolve(Variant(1, d_ff="kept")).parameters
    assert row["parameters"] == f"{kept:,}"
    assert kept < synthetic.SMALL.multi_head.parameters
    assert row["dev nats/token, alpha 0"] == "2.622 ± 0.011"
    assert row["dev nats/token, alpha 0.05"] == "2.132 ± 0.011"
    assert row["test BLEU beam 4, alpha 0.1"] == f"{41 - 4 * 2.082:.1f} ± 0.0"
    assert row["test BLEU beam 4, alpha 0.05"] == "not run"
    notes = " ".join(exhibit.table.notes)
    assert f"parameters are gqa2-ff768 2,702,592, mqa-ff768 {kept:,}" in notes
    assert "the model that was converted 3,034,368" in notes
    assert "Trained from 600 updates on" in notes
    assert "BLEU is sacrebleu's with tokenizer 13a" in notes


def test_what_a_longer_training_closes_is_between_runs_of_one_seed() -> None:
    exhibit = alpha(group_of(*uptrained_records()))
    assert exhibit is not None
    rows = by(exhibit.table, "variant", "conversion", "alpha")
    assert len(rows) == 3 + 3 * 3
    row = rows["mqa-ff768", "mean", "0.05"]
    assert (row["updates more"], row["seeds"]) == ("30", "1, 2, 3")
    assert row["dev nats/token"] == "2.482 ± 0.011"
    # 0.5 and 0.001 a seed: the control's own spread is not in it.
    assert row["dev nats/token: minus control"] == "+0.502 ± 0.001"
    assert row["dev loss: closed of what it was behind at alpha 0"] == "80% ± 0%"
    assert row["test BLEU beam 4"] == "not run"
    assert row["test BLEU beam 4: minus control"] == "–"
    last = rows["mqa-ff768", "mean", "0.1"]
    assert last["test BLEU beam 4: minus control"] == f"{-4 * 0.252:.1f} ± 0.0"
    start = rows["mqa-ff768", "mean", "0"]
    assert start["updates more"] == "0"
    assert start["dev loss: closed of what it was behind at alpha 0"] == "–"
    control = rows["mha", "identity", "0.1"]
    assert control["dev nats/token: minus control"] == "–"
    assert control["updates more"] == "60"


def test_an_uptraining_that_diverged_is_named_and_in_no_mean() -> None:
    lost = synthetic.record(1, 2, uptrained=("mean", 0.1), diverged_after=30)
    kept = [r for r in uptrained_records() if (r.variant, r.seed) != (lost.variant, 2)]
    for exhibit in group_exhibits(group_of(*kept, lost)):
        note = "mqa-ff768-mean-0.1: diverged after update 30 (seed 2) is in no mean."
        assert note in exhibit.table.notes
    found = alpha(group_of(*kept, lost))
    assert found is not None
    row = by(found.table, "variant", "conversion", "alpha")["mqa-ff768", "mean", "0.1"]
    assert row["seeds"] == "1, 3"
    # The control's run of seed 2 has nothing to be compared with.
    assert row["dev nats/token: minus control"] == "+0.252 ± 0.001"


def test_without_a_control_nothing_is_compared_with_it() -> None:
    records = [r for r in uptrained_records((1,)) if r.architecture.num_kv_heads < 8]
    exhibit = alpha(group_of(*records))
    assert exhibit is not None
    row = by(exhibit.table, "variant", "conversion", "alpha")["mqa-ff768", "mean", "0.1"]
    assert row["dev nats/token"] == "2.201"
    assert row["dev nats/token: minus control"] == "–"
    assert row["dev loss: closed of what it was behind at alpha 0"] == "–"
    assert "One seed is few" in " ".join(exhibit.table.notes)


def test_uptrained_models_have_no_exhibit_where_there_is_nothing_to_compare() -> None:
    one_way = [r for r in uptrained_records((1,)) if r.variant.endswith(("-mean-0.1", "-0.1"))]
    of_mean = [r for r in one_way if r.uptraining and r.uptraining.method != "svd-product"]
    assert alpha(group_of(*of_mean)) is None
    assert conversion(group_of(*of_mean)) is None
    assert conversion(group_of(*one_way)) is not None
    scratch = group_of(*(synthetic.record(heads) for heads in (8, 2, 1)))
    assert (conversion(scratch), alpha(scratch)) == (None, None)


def test_the_lines_of_alpha_are_the_means_of_the_table() -> None:
    exhibit = alpha(group_of(*uptrained_records()))
    assert exhibit is not None
    figure = drawn(exhibit)
    assert [axes.get_title() for axes in figure.axes] == ["gqa2-ff768", "mqa-ff768"] * 2
    lines = {bars.get_label(): bars.lines[0] for bars in figure.axes[1].containers}
    assert set(lines) == {"control", "mean", "svd-product"}
    for method, line in lines.items():
        behind = BEHIND.get((str(method), 1), dict.fromkeys(CONTROL_NATS, 0.0))
        seed = 0.02 if method == "control" else 0.022
        expected = [(a, CONTROL_NATS[a] + behind[a] + seed) for a in (0.0, 0.05, 0.1)]
        assert line.get_xydata().tolist() == [pytest.approx(point) for point in expected]


def measured(records: Sequence[Record], **changes: object) -> list[Group]:
    return group_records(records, [synthetic.measurement(records, **changes)])


def test_key_value_heads_against_time_are_of_one_measurement() -> None:
    records = [synthetic.record(heads) for heads in (8, 4, 2, 1)]
    records += [synthetic.record(heads, d_ff="kept") for heads in (2, 1)]
    records += [synthetic.record(1, placement="decoder")]
    [group] = measured(records)
    exhibit = kv_heads(group)
    assert exhibit is not None
    rows = cells(exhibit.table)
    # The line of placement decoder would have two points.
    assert list(rows) == ["mha", "gqa4", "gqa2", "gqa2-ff768", "mqa", "mqa-ff768"]
    assert group.measurement is not None
    timing = group.measurement.timings[0]
    base, own = timing.samples[0], timing.samples[3]
    ratio = speed_up(base, own, "total")
    assert ratio is not None
    what = "greedy 64 x 128/128"
    assert rows["mqa"][f"{what}: µs/token"] == f"{own.us_per_token('total'):.1f}"
    expected = f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
    assert rows["mqa"][f"{what}: times as fast as MHA"] == expected
    assert rows["mha"][f"{what}: times as fast as MHA"] == "1.00x"
    figure = drawn(exhibit)
    assert len(figure.axes) == 4
    bars = {each.get_label(): each.lines[0] for each in figure.axes[0].containers}
    assert list(bars) == ["all attentions, d_ff matched", "all attentions, d_ff kept"]
    assert bars["all attentions, d_ff matched"].get_xdata().tolist() == [8, 4, 2, 1]
    assert bars["all attentions, d_ff kept"].get_xdata().tolist() == [8, 2, 1]


@pytest.mark.parametrize("heads", [(8, 1), (4, 2, 1)])
def test_two_numbers_of_heads_or_none_of_mha_are_no_line(heads: Sequence[int]) -> None:
    [group] = measured([synthetic.record(each) for each in heads])
    assert kv_heads(group) is None
    assert kv_heads(group_of(*(synthetic.record(each) for each in (8, 4, 1)))) is None


NARROW = dataclasses.replace(synthetic.SMALL, d_model=96, mha_d_ff=384)


def test_a_smaller_mha_stands_beside_the_others_where_it_was_measured_with_them() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2)]
    small = synthetic.record(8, baseline=NARROW)
    groups = measured([*records, small])
    assert len(groups) == 2
    [exhibit] = trade_offs(groups)
    rows = cells(exhibit.table)
    assert set(rows) == {"mha-d192", "gqa2-d192", "mqa-d192", "mha-d96"}
    assert {row["made"] for row in rows.values()} == {"from scratch"}
    assert rows["mha-d96"]["parameters"] == f"{NARROW.multi_head.parameters:,}"
    assert rows["mha-d192"]["times as fast as the largest MHA greedy"] == "1.00x"
    measurement = groups[0].measurement
    assert measurement is not None
    timing = measurement.timings[1]
    by_job = {record.job.id: timing.of_job(record.job.id) for record in [*records, small]}
    base, own = by_job[records[0].job.id], by_job[records[4].job.id]
    assert base is not None
    assert own is not None
    ratio = speed_up(base, own, "total")
    assert ratio is not None
    row = rows["mqa-d192"]
    assert row["times as fast as the largest MHA beam 4"].startswith(f"{ratio.median:.2f}x")
    assert row["µs/token beam 4"] == f"{own.us_per_token('total'):.1f}"
    bleu = [synthetic.finished(r).evaluation.scores[3].value for r in records[4:]]
    expected = f"{statistics.fmean(bleu):.1f} ± {statistics.stdev(bleu):.1f}"
    assert row["test BLEU beam 4"] == expected
    assert "One seed is few" in " ".join(exhibit.table.notes)
    figure = drawn(exhibit)
    points = {bars.get_label(): bars.lines[0] for bars in figure.axes[1].containers}
    [[us, score]] = points["mqa-d192"].get_xydata().tolist()
    assert (us, score) == (pytest.approx(own.us_per_token("total")), pytest.approx(sum(bleu) / 2))


def test_what_was_measured_apart_or_trained_otherwise_does_not_stand_together() -> None:
    records = [synthetic.record(heads) for heads in (8, 1)]
    small = synthetic.record(8, baseline=NARROW)
    apart = [synthetic.measurement(records), synthetic.measurement([small])]
    assert trade_offs(group_records([*records, small], apart)) == []
    longer = replace(small, config=small.config | {"train": {"max_updates": 700}})
    assert trade_offs(measured([*records, longer])) == []
    assert trade_offs(measured(records)) == []
    assert trade_offs(group_records([*records, small])) == []


def test_uptrained_models_stand_against_time_with_the_largest_alpha() -> None:
    groups = measured([*uptrained_records(), synthetic.record(8), synthetic.record(1)])
    [exhibit] = trade_offs(groups)
    rows = by(exhibit.table, "model", "made")
    assert list(rows) == [
        ("mha", "from scratch"),
        ("mha", "trained on, alpha 0.1"),
        ("gqa2-ff768", "mean, alpha 0.1"),
        ("mqa", "from scratch"),
        ("mqa-ff768", "mean, alpha 0.1"),
        ("mqa-ff768", "svd-product, alpha 0.1"),
    ]


def test_a_method_that_was_trained_on_less_stands_with_its_own_largest_alpha() -> None:
    records = [
        record
        for record in uptrained_records()
        if (how := record.uptraining) is None
        or (how.method, record.architecture.num_kv_heads) != ("mean", 1)
        or how.alpha == 0
    ]
    [exhibit] = trade_offs(measured([*records, synthetic.record(8), synthetic.record(1)]))
    made = [name for _, name in by(exhibit.table, "model", "made")]
    assert sorted(name for name in made if "mean" in name) == [
        "mean, alpha 0",
        "mean, alpha 0.1",
    ]


def test_no_two_rows_of_a_picture_look_alike() -> None:
    """The study has nine variants; ten have colours of their own, which some pictures tell by."""
    assert len({style(index) for index in range(70)}) == 70
    assert len({style(index)[0] for index in range(10)}) == 10


def test_general_plots_show_what_was_trained_from_scratch() -> None:
    [group] = measured([*uptrained_records((1,)), synthetic.record(8), synthetic.record(1)])
    assert [row.name for row in group.from_scratch] == ["mha", "mqa"]
    [alone] = measured(uptrained_records((1,)))
    assert group_plots(alone) == {}


def test_the_report_shows_each_exhibit_with_its_picture(tmp_path: Path) -> None:
    small = synthetic.record(8, baseline=NARROW)
    scratch = [trained(heads, 1, 0.5) for heads in (8, 4, 1)]
    groups = measured([*uptrained_records((1,)), *scratch, small])
    text = write_report(groups, read_papers(), tmp_path).read_text(encoding="utf-8")
    shown = {f"1-{e.name}": e for e in group_exhibits(groups[0])}
    shown |= {e.name: e for e in trade_offs(groups)}
    names = {"conversion", "alpha", "kv-heads", "predicted", "stability"}
    assert set(shown) == {*(f"1-{name}" for name in names), "trade-off-1"}
    for name, exhibit in shown.items():
        _, _, after = text.partition(f"### {exhibit.table.title}\n\n| ")
        assert f"](plots/{name}.png)\n" in after.split("\n### ")[0]
        # The same records give the same bytes.
        content = (tmp_path / f"plots/{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content == exhibit.picture()
    assert "\n## Across models\n" in text
    assert "\n\n\n" not in text
