"""Tables and pictures of a group: what stands in their cells, and what is drawn."""

import math
import statistics
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from synthetic_reports import HEADS, cells, group_of, overview_cells

from experiments.records.measurement import speed_up
from experiments.report.cells import Table
from experiments.report.groups import Row, group_records
from experiments.report.papers.reference import read_papers
from experiments.report.pictures.plots import (
    bleu_latency,
    group_plots,
    raw_latency,
    training_curves,
)
from experiments.report.render import markdown_table, write_report
from experiments.report.tables import decoding, group_tables, overview, quality, training

replace = msgspec.structs.replace


def test_a_row_a_variant_from_most_heads_to_fewest() -> None:
    rows = overview_cells([synthetic.record(heads) for heads in (2, 8, 1, 4)])
    assert list(rows)[:4] == ["mha", "gqa4", "gqa2", "mqa"]
    assert [rows[name]["kv heads"] for name in list(rows)[:4]] == ["8", "4", "2", "1"]


def test_the_overview_says_what_the_record_says() -> None:
    record = synthetic.record(2)
    row = overview_cells([synthetic.record(8), record])["gqa2"]
    evaluation = synthetic.finished(record).evaluation
    assert row["parameters"] == f"{evaluation.parameters:,}" == "3,034,368"
    assert row["residual"] == "0"
    assert row["d_ff enc / dec"] == "984 / 984"
    assert row["dev nats/token"] == f"{evaluation.dev_nll_nats_per_token:.3f}"
    assert row["dev perplexity"] == f"{math.exp(evaluation.dev_nll_nats_per_token):.2f}"
    assert row["test BLEU greedy"] == "11.2"
    assert row["test BLEU beam 4"] == "11.9"


def test_speed_is_the_measurements() -> None:
    """Microseconds are medians of the rounds, a speed-up is the median of their ratios."""
    records = [synthetic.record(heads) for heads in HEADS]
    measurement = synthetic.measurement(records)
    rows = overview_cells(records, measurement)
    mha, *_, mqa = measurement.timings[0].samples
    assert rows["mha"]["decoder µs/token greedy"] == f"{mha.us_per_token('decoder'):.1f}"
    assert rows["mha"]["decoder speed-up over MHA greedy"] == "1.00x"
    assert rows["mqa"]["decoder µs/token greedy"] == f"{mqa.us_per_token('decoder'):.1f}"
    ratio = speed_up(mha, mqa, "decoder")
    assert ratio is not None
    assert (
        rows["mqa"]["decoder speed-up over MHA greedy"]
        == f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
        == "2.16x (2.16-2.17)"
    )


def test_without_mha_there_is_no_speed_up() -> None:
    row = overview_cells([synthetic.record(1)])["mqa"]
    assert row["decoder speed-up over MHA greedy"] == "–"
    assert row["decoder µs/token greedy"] == "24.5"


def test_microseconds_and_ratios_are_of_one_measurement() -> None:
    """The one that has most rows; of several such, the newest. The others' rows are not filled."""
    mha, gqa2, mqa = records = [synthetic.record(heads) for heads in (8, 2, 1)]
    old = synthetic.measurement([mha, mqa])
    newest = synthetic.measurement([gqa2], created=old.created_utc.replace(year=2028))
    newer = synthetic.measurement(
        [mha, mqa], [synthetic.fixed_lengths(1, 64)], old.created_utc.replace(year=2027)
    )
    unrelated = synthetic.measurement(
        [synthetic.record(heads, seed=9) for heads in HEADS], created=newest.created_utc
    )
    measurements = [newest, old, unrelated, newer]
    assert group_of(records, *measurements).measurement == newer
    rows = overview_cells(records, *measurements)
    speeds = {name for name in rows["mha"] if "MHA greedy" in name or "µs/token greedy" in name}
    assert len(speeds) == 2
    assert {rows["gqa2"][name] for name in speeds} == {"not measured"}
    expected = newer.timings[0].samples[1].us_per_token("decoder")
    assert rows["mqa"]["decoder µs/token greedy"] == f"{expected:.1f}"
    whole = synthetic.measurement(records)
    assert group_of(records, *measurements, whole).measurement == whole


def test_the_tables_of_decoding_are_the_measurements_timings() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2)]
    group = group_of(records, synthetic.measurement(records))
    assert group.measurement is not None
    timing = group.measurement.timings[0]
    table = decoding(group, timing)
    assert table.title == "Decoding: greedy, batch 64: 128 source and 128 target tokens"
    row, mqa = cells(table)["mqa"], timing.samples[1]
    assert mqa.kv_cache_bytes is not None
    assert mqa.peak_memory_bytes is not None
    assert row == {
        "variant": "mqa",
        "encoder µs/token": f"{mqa.us_per_token('encoder'):.1f}",
        "decoder µs/token": f"{mqa.us_per_token('decoder'):.1f}",
        "decoder speed-up over MHA": "2.16x (2.16-2.17)",
        "KV cache MiB": f"{mqa.kv_cache_bytes / 2**20:,.1f}",
        "peak memory MiB": f"{mqa.peak_memory_bytes / 2**20:,.1f}",
    }
    assert "Memory is process rss." in table.notes
    updates = cells(training(group))["mqa"]
    measured = group.measurement.timings[-1].samples[1].us_per_token("total")
    assert updates["training µs/target token (fixed shape)"] == f"{measured:.1f}"
    untold = replace(timing, samples=[replace(s, kv_cache_bytes=None) for s in timing.samples])
    assert cells(decoding(group, untold))["mqa"]["KV cache MiB"] == "–"


def test_seeds_become_mean_and_deviation() -> None:
    records = [synthetic.record(4, seed) for seed in (1, 2, 4)]
    row = overview_cells(records)["gqa4"]
    nll = [synthetic.finished(r).evaluation.dev_nll_nats_per_token for r in records]
    assert row["dev nats/token"] == f"{statistics.fmean(nll):.3f} ± {statistics.stdev(nll):.3f}"
    assert row["seeds"] == "1, 2, 4"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_an_estimate_is_the_statistics_of_its_runs(values: list[float]) -> None:
    row = Row(tuple(synthetic.record(8, seed) for seed in range(len(values))))
    by_result = dict(zip(map(id, row.results), values, strict=True))
    estimate = row.estimate(lambda result: by_result[id(result)])
    assert estimate is not None
    assert estimate.mean == statistics.fmean(values)
    assert estimate.runs == len(values)
    if len(values) == 1:
        assert estimate.deviation is None
    else:
        assert estimate.deviation == statistics.stdev(values)


def test_what_was_not_measured_says_so() -> None:
    records = [synthetic.record(8), synthetic.record(1)]
    rows = overview_cells(records, synthetic.measurement(records[:1]))
    for search in ("greedy", "beam 4"):
        assert rows["mqa"][f"decoder µs/token {search}"] == "not measured"
        assert rows["mqa"][f"decoder speed-up over MHA {search}"] == "not measured"
    assert rows["mqa"]["parameters"] == "3,034,368"
    assert not {"not run", "not measured"} & set(rows["mha"].values())
    (group,) = group_records(records)
    assert group.measurement is None
    assert cells(overview(group))["mha"]["decoder µs/token greedy"] == "not measured"


def test_a_diverged_training_is_a_row_and_in_no_mean(tmp_path: Path) -> None:
    records = [synthetic.record(8), synthetic.record(1), synthetic.record(1, 2, diverged_after=150)]
    rows = overview_cells(records)
    evaluation = synthetic.finished(records[1]).evaluation
    assert rows["mqa"]["dev nats/token"] == f"{evaluation.dev_nll_nats_per_token:.3f}"
    assert rows["mqa"]["seeds"] == "1"
    diverged = rows["mqa: diverged after update 150"]
    assert diverged["seeds"] == "2"
    assert diverged["parameters"] == "3,034,368"
    assert {diverged[name] for name in diverged if "nats" in name or "BLEU" in name} == {"–"}
    text = write_report([group_of(records)], read_papers(), tmp_path).read_text(encoding="utf-8")
    assert "- mqa: diverged after update 150 (seed 2): the loss is NaN; it is in no mean" in text


def test_a_group_may_have_nothing_but_diverged_trainings(tmp_path: Path) -> None:
    (group,) = group_records([synthetic.record(1, diverged_after=150)])
    assert group.rows == ()
    assert group_plots(group) == {}
    assert list(cells(overview(group))) == ["mqa: diverged after update 150"]
    assert write_report([group], read_papers(), tmp_path).is_file()


def test_baselines_stand_beside_the_variants() -> None:
    rows = overview_cells([synthetic.record(heads) for heads in HEADS])
    assert rows["baseline: copied source"]["test BLEU beam 4"] == "3.1"
    assert rows["baseline: nearest training line"]["test BLEU greedy"] == "5.2"
    assert rows["baseline: copied source"]["parameters"] == "–"
    assert len(rows) == 6


def test_another_beam_has_columns_of_its_own() -> None:
    record = synthetic.record(8)
    scores = synthetic.finished(record).evaluation.scores
    record = synthetic.with_evaluation(
        record, scores=[replace(s, beam=5) if s.beam > 1 else s for s in scores]
    )
    workloads = [synthetic.fixed_lengths(beam) for beam in (1, 5)]
    row = overview_cells([record], synthetic.measurement([record], workloads))["mha"]
    assert row["test BLEU beam 5"] == "12.6"
    assert not {"not run", "not measured"} & set(row.values())
    assert not any("beam 4" in column for column in row)


def test_other_penalties_are_columns_of_their_own() -> None:
    record = synthetic.record(8)
    scores = synthetic.finished(record).evaluation.scores
    beam4 = scores[3]
    gnmt = replace(beam4, length_penalty="gnmt", length_alpha=0.6, value=30.0)
    (group,) = group_records([synthetic.with_evaluation(record, scores=[*scores, gnmt])])
    row = cells(quality(group, "test"))["mha"]
    assert row["BLEU, beam 4 (fairseq alpha 1)"] == f"{beam4.value:.1f}"
    assert row["BLEU, beam 4 (gnmt alpha 0.6)"] == "30.0"
    assert cells(overview(group))["mha"]["test BLEU beam 4"] == f"{beam4.value:.1f}"


def test_every_table_states_its_provenance() -> None:
    group = group_of([synthetic.record(heads, seed=7) for heads in HEADS])
    for table in group_tables(group):
        below = " ".join(table.notes)
        for stated in ("Synthetic CPU (2 cores, 24 GiB)", "commit c0ffee0", "seed 7"):
            assert stated in below
        assert all(len(row) == len(table.columns) for row in table.rows)
        if "speed-up" in " ".join(table.columns):
            assert "Measured 2026-01-02 on cpu in float32 with native AVX512 operators" in below
            assert "medians of 5 rounds" in below
            assert "engine gqa, trained weights" in below
    assert any("tok:13a" in note for note in quality(group, "test").notes)
    assert any("tok:intl" in note for note in quality(group, "test").notes)
    assert "BLEU is sacrebleu's with tokenizer 13a" in " ".join(overview(group).notes)
    titles = " ".join(table.title for table in group_tables(group))
    assert "beam 4, batch 64: 512 source and 128 target tokens" in titles


def test_pipes_do_not_break_a_table() -> None:
    table = Table("t", ["a", "b"], [["x|y", "1"]], [])
    assert markdown_table(table).split("\n")[2] == r"| x\|y | 1 |"


# Pictures.


def test_plots_are_images_and_the_same_for_the_same_records() -> None:
    group = group_of([synthetic.record(heads) for heads in HEADS])
    plots = group_plots(group)
    assert set(plots) == {"bleu-latency", "training-curves", "raw-latency"}
    assert all(content.startswith(b"\x89PNG\r\n\x1a\n") for content in plots.values())
    assert group_plots(group) == plots


def test_a_plot_without_data_is_left_out() -> None:
    (group,) = group_records([synthetic.record(8)])
    assert set(group_plots(group)) == {"training-curves"}


def test_every_run_stands_at_the_speed_of_its_variant() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2)]
    group = group_of(records)
    assert group.measurement is not None
    figure = bleu_latency(group)
    assert figure is not None
    (runs, mean, *_) = figure.axes[0].collections
    us = group.measurement.timings[0].samples[0].us_per_token("decoder")
    bleu = [synthetic.finished(record).evaluation.scores[0].value for record in records[:2]]
    assert runs.get_offsets().tolist() == [[us, value] for value in bleu]
    assert mean.get_offsets().tolist() == [[us, statistics.fmean(bleu)]]


def test_the_later_half_of_a_curve_is_drawn_where_there_is_an_earlier_one() -> None:
    record = synthetic.record(8)
    result = synthetic.finished(record)
    (group,) = group_records([record])
    figure = training_curves(group)
    assert figure is not None
    drawn = [list(axes.lines[0].get_xdata()) for axes in figure.axes]
    assert drawn == [[100, 200, 300, 400, 500, 600], [300, 400, 500, 600]]
    late = replace(result.training, curve=result.training.curve[6:])
    (group,) = group_records([replace(record, result=replace(result, training=late))])
    figure = training_curves(group)
    assert figure is not None
    assert [list(axes.lines[0].get_xdata()) for axes in figure.axes] == [[400, 500, 600]]


def test_every_raw_sample_is_drawn() -> None:
    records = [synthetic.record(heads, seed) for heads in HEADS for seed in (1, 2)]
    group = group_of(records)
    assert group.measurement is not None
    figure = raw_latency(group)
    assert figure is not None
    drawn = sorted(
        float(y)
        for axes in figure.axes
        for points in axes.collections
        for _, y in points.get_offsets()
        if len(points.get_offsets()) > 1
    )
    raw_us = sorted(
        1e6 * raw_s / samples.tokens_produced
        for timing in group.measurement.timings[:-1]  # the last is of training
        for samples in timing.samples
        for raw_s in samples.raw_s("decoder") or []
    )
    assert len(drawn) == 4 * len(HEADS) * 5
    assert drawn == pytest.approx(raw_us)
