"""The report: what stands in it, what stands together, and what it refuses."""

import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st

from experiments.records.measurement import (
    MEASUREMENT_NAME,
    Measurement,
    speed_up,
    write_measurement,
)
from experiments.records.parts import Hardware
from experiments.records.record import Record, write_record
from experiments.report.__main__ import main
from experiments.report.cells import Table
from experiments.report.document import group_heading
from experiments.report.groups import Group, Row, group_records
from experiments.report.made_by import made_by
from experiments.report.papers.reference import NOT_COMPARABLE, read_papers
from experiments.report.pictures.plots import (
    bleu_latency,
    group_plots,
    raw_latency,
    training_curves,
)
from experiments.report.render import markdown_table, write_report
from experiments.report.tables import decoding, group_tables, overview, quality, training

ROOT = Path(__file__).resolve().parents[2]
HEADS = (8, 4, 2, 1)
replace = msgspec.structs.replace


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Cell texts by row name and column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def group_of(records: list[Record], *measurements: Measurement) -> Group:
    """The one group of the records; without measurements, all of them are measured together."""
    (group,) = group_records(records, measurements or [synthetic.measurement(records)])
    return group


def overview_cells(records: list[Record], *measurements: Measurement) -> dict[str, dict[str, str]]:
    return cells(overview(group_of(records, *measurements)))


def save(folder: Path, records: list[Record]) -> Path:
    for index, record in enumerate(records):
        write_record(folder / f"job{index}" / "record.json", record)
    return folder


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


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


def test_trainings_that_do_not_name_their_implementation_are_fairseqs() -> None:
    old = synthetic.record(8)
    assert "implementation" not in old.config["train"]

    def named(implementation: str) -> Record:
        config = old.config | {"train": {**old.config["train"], "implementation": implementation}}
        return msgspec.structs.replace(synthetic.record(1), config=config)

    assert len(group_records([old, named("fairseq")])) == 1
    assert len(group_records([old, named("gqa")])) == 2


def test_baselines_stand_beside_the_variants() -> None:
    rows = overview_cells([synthetic.record(heads) for heads in HEADS])
    assert rows["baseline: copied source"]["test BLEU beam 4"] == "3.1"
    assert rows["baseline: nearest training line"]["test BLEU greedy"] == "5.2"
    assert rows["baseline: copied source"]["parameters"] == "–"
    assert len(rows) == 6


def other_data(record: Record) -> Record:
    return replace(record, data=replace(record.data, checksum=synthetic.sha256("other")))


def other_config(name: str, **values: object) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        return replace(record, config=record.config | {name: record.config[name] | values})

    return change


@pytest.mark.parametrize(
    "change",
    [
        other_data,
        other_config("train", max_updates=601),
        other_config("model", mha_d_ff=1024),
        other_config("decode", engine="stock"),
        other_config("hardware", precision="bf16"),
        other_config("hardware", devices=8),
        other_config("hardware", max_tokens_per_device=100),
    ],
)
def test_what_cannot_be_compared_stands_apart(change: Callable[[Record], Record]) -> None:
    records = [synthetic.record(8), change(synthetic.record(1))]
    groups = group_records(records)
    assert [[row.name for row in group.rows] for group in groups] == [["mha"], ["mqa"]]


def test_a_heading_names_the_options_of_a_search() -> None:
    options = {"no_repeat_ngram_size": 3}
    records = [synthetic.record(8), other_config("decode", options=options)(synthetic.record(8))]
    plain, told = (group_heading(group) for group in group_records(records))
    assert told == f"{plain}, no_repeat_ngram_size 3"


MADE = synthetic.provenance()
OTHER_MACHINE = Hardware(cpu_model="Other CPU", cores_usable=4, memory_bytes=2**30, gpus=["X"])
OTHERS = {
    "code": (
        replace(MADE, code=replace(MADE.code, commit="b" * 40, digest=synthetic.sha256("other"))),
        "commit c0ffee0 for {}; commit bbbbbbb for {}",
    ),
    "versions": (
        replace(MADE, versions=MADE.versions | {"torch": "2.11.0"}),
        "python 3.11.7, torch 2.13.0, ve-fairseq 0.12.3 for {}; "
        "python 3.11.7, torch 2.11.0, ve-fairseq 0.12.3 for {}",
    ),
    "machines": (
        replace(MADE, hardware=OTHER_MACHINE),
        "Synthetic CPU (2 cores, 24 GiB), no GPU for {}; Other CPU (4 cores, 1 GiB), 1 × X for {}",
    ),
    "numbers of threads": (replace(MADE, threads=3), "2 threads for {}; 3 threads for {}"),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_what_made_a_result_parts_no_group_and_is_named(what: str) -> None:
    made, expected = OTHERS[what]
    records = [synthetic.record(8), synthetic.made_by(synthetic.record(1), made)]
    group = group_of(records)
    assert [row.name for row in group.rows] == ["mha", "mqa"]
    by_mha, by_mqa = (
        " and ".join(f"{stage} of {name}" for stage in ("prepare", "train", "evaluate"))
        for name in ("mha", "mqa")
    )
    common, difference = made_by(group.records)
    assert difference == f"Made by different {what}: {expected.format(by_mha, by_mqa)}."
    assert common.startswith("Made by: ")
    for table in group_tables(group):
        assert {common, difference} <= set(table.notes)


def test_stages_of_one_record_that_other_code_made_are_named() -> None:
    """A training of other code with the same recipe is used, and the report says so."""
    made, _ = OTHERS["code"]
    records = [
        synthetic.made_by(synthetic.record(heads, seed), made, "evaluate")
        for heads in (8, 1)
        for seed in (1, 2)
    ]
    records[0] = synthetic.made_by(records[0], made, "train")
    _, difference = made_by(group_of(records).records)
    assert difference == (
        "Made by different code: commit c0ffee0 for prepare of all and train of mha seed 2, mqa "
        "seed 1, mqa seed 2; commit bbbbbbb for train of mha seed 1 and evaluate of all."
    )


def test_made_alike_is_one_line() -> None:
    (line,) = made_by([synthetic.record(8), synthetic.record(1, seed=3)])
    assert line == (
        "Made by: commit c0ffee0; python 3.11.7, torch 2.13.0, ve-fairseq 0.12.3; "
        "Synthetic CPU (2 cores, 24 GiB), no GPU; 2 threads; seed 1, 3."
    )


def test_how_a_job_is_named_kept_and_shown_does_not_matter() -> None:
    plain = synthetic.record(1)
    names = {"tracking": {"mode": "offline"}, "paths": {"runs": "x"}, "experiment_name": "x"}
    named = replace(plain, config=plain.config | names | {"rerun": "train", "seed": 2}, seed=2)
    (group,) = group_records([plain, named])
    assert [record.seed for record in group.rows[0].records] == [1, 2]


def test_where_several_machines_met_does_not_matter_what_they_are_does() -> None:
    def on(**hardware: object) -> Record:
        record = synthetic.record(1, seed=len(hardware))
        return replace(record, config=record.config | {"hardware": {"devices": 1} | hardware})

    one, other = on(master="a:1", node_rank=0), on(master="b:2", device="cuda", threads=7)
    assert len(group_records([one, other])) == 1
    assert len(group_records([one, on(devices=8)])) == 2


def test_how_speed_is_measured_does_not_matter() -> None:
    one, other = synthetic.record(8), synthetic.record(1)
    other = replace(other, config=other.config | {"measure": {"repeats": 9}})
    assert len(group_records([one, other])) == 1


def test_placements_and_widths_are_rows_of_their_own() -> None:
    records = [
        synthetic.record(4),
        synthetic.record(4, placement="decoder"),
        synthetic.record(4, d_ff="kept"),
    ]
    group = group_of(records)
    assert [row.name for row in group.rows] == ["gqa4", "gqa4-ff768", "gqa4-dec"]
    widths = {name: row["d_ff enc / dec"] for name, row in cells(overview(group)).items()}
    assert widths["gqa4"] == "912 / 912"
    assert widths["gqa4-ff768"] == "768 / 768"


def test_a_row_never_mixes_uptrained_models_and_models_from_scratch() -> None:
    """At the same heads and widths, and though the kept width is MHA's own."""
    scratch = [synthetic.record(heads, d_ff="kept") for heads in (8, 1)]
    uptrained = [
        synthetic.record(heads, seed, uptrained=how)
        for heads in (8, 1)
        for how in (("mean", 0.0), ("mean", 0.1), ("svd", 0.1))
        for seed in (1, 2)
    ]
    [group] = group_records([*scratch, *uptrained])
    assert [(row.name, len(row.records)) for row in group.rows] == [
        (f"{name}{how}", 2 if how else 1)
        for name in ("mha", "mqa-ff768")
        for how in ("", "-mean-0", "-mean-0.1", "-svd-0.1")
    ]
    [cells] = [row for row in training(group).rows if row[0] == "mqa-ff768-mean-0"]
    assert cells[1:] == ["not run", "not run", "not measured", "not run", "not run"]
    # A checkpoint that no job trained has a recipe that no config knows.
    foreign = replace(uptrained[0], stages=[s for s in uptrained[0].stages if s.name != "train"])
    assert len(group_records([*scratch, foreign])) == 2


def test_one_machine_is_one_machine_after_a_reboot() -> None:
    """The memory that the kernel keeps for itself differs from boot to boot."""
    hardware = replace(MADE.hardware, memory_bytes=MADE.hardware.memory_bytes - 4096)
    rebooted = synthetic.made_by(synthetic.record(1), replace(MADE, hardware=hardware))
    assert len(made_by(group_of([synthetic.record(8), rebooted]).records)) == 1


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


def test_of_a_repeated_run_the_newest_counts() -> None:
    old = synthetic.record(8)
    newer = synthetic.with_evaluation(old, dev_nll_nats_per_token=1.0, dev_perplexity=math.exp(1.0))
    started = old.job.started_utc.replace(year=2027)
    newer = replace(newer, job=replace(newer.job, started_utc=started))
    (group,) = group_records([newer, old, old])
    assert group.repeats_left_out == 2
    assert cells(overview(group))["mha"]["dev nats/token"] == "1.000"


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


def test_the_written_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [synthetic.record(heads, seed) for heads in HEADS for seed in (1, 2)]
    other = synthetic.record(1, data_name="multi30k_en_de")
    first = save(tmp_path / "a", records)
    beside = tmp_path / "measurements" / "sweep" / MEASUREMENT_NAME
    write_measurement(beside, synthetic.measurement([*records, other]))
    second = save(tmp_path / "b", [other, records[0]])
    out = tmp_path / "report"
    arguments = ["--records", str(first), "--records", str(second), "--out", str(out)]
    assert main(arguments) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    sections = [heading for heading in headings(text) if re.match(r"\d\.", heading)]
    assert [heading.split(":")[0] for heading in sections] == [
        "1. sample_en_de",
        "2. multi30k_en_de",
    ]
    # Every picture is there, and no mark of the template is left.
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    # Four a group (one of them an exhibit), and key/value heads against time, which needs three.
    assert len(pictures) == 9
    assert all((out / picture).is_file() for picture in pictures)
    assert "{{" not in text
    assert "{%" not in text
    # Tables have as many cells in each line as in their heading, and blank lines around them.
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count(" | ") for line in block.strip().split("\n")}) == 1
        assert text[: text.index(block)].endswith("\n\n")
        assert text[text.index(block) + len(block) :].startswith("\n")
    # The papers' rows stand after everything measured here, with the warning.
    ours, _, papers = text.partition("## The papers' numbers")
    assert NOT_COMPARABLE in papers
    assert "5440" in papers
    assert "5440" not in ours
    assert "gqa4" not in papers
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.split("\n") if not line.startswith("report:"))
    for name in ("mha", "gqa4", "gqa2", "mqa", "nearest", "3,034,368", "±0.0", "2.16x"):
        assert name in shown


def test_pipes_do_not_break_a_table() -> None:
    table = Table("t", ["a", "b"], [["x|y", "1"]], [])
    assert markdown_table(table).split("\n")[2] == r"| x\|y | 1 |"


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_no_records_is_one_clear_line(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "report"
    assert main(["--records", str(tmp_path / folder), "--out", str(out)]) == 2
    shown = capsys.readouterr().err.strip()
    assert re.fullmatch(r"error: .* \(run an experiment first.*\)", shown)
    assert not out.exists()


def test_measurements_are_found_or_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [synthetic.record(heads) for heads in (8, 1)]
    folder = save(tmp_path / "runs" / "quickstart", records)
    arguments = ["--records", str(folder), "--out", str(tmp_path / "report")]
    assert main(arguments) == 0
    report = tmp_path / "report" / "report.md"
    assert 'Shown as "not measured"' in report.read_text(encoding="utf-8")
    given = tmp_path / "given"
    write_measurement(given / "one.json", synthetic.measurement(records))
    assert main([*arguments, "--measurements", str(given)]) == 0
    assert "| 2.16x (2.16-2.17) |" in report.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments, "--measurements", str(tmp_path / "absent")]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith(f"error: {tmp_path / 'absent'}: no such folder of measurements (")


def test_a_bad_record_leaves_the_others_their_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "records", [synthetic.record(8), synthetic.record(1)])
    (folder / "job1" / "record.json").write_text("{", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "report")]) == 2
    assert "job1/record.json: not JSON" in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| mha | 8 |" in text
    assert "job1/record.json: not JSON" in text


def test_an_unwritable_folder_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "records", [synthetic.record(8)])
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_report_is_written_after_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption leaves no report that names pictures which are not there."""
    groups = [group_of([synthetic.record(8)])]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.report.render.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(groups, read_papers(), tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_the_report_loads_neither_torch_nor_fairseq() -> None:
    """Nor matplotlib, before there is something to draw."""
    code = (
        "import sys, experiments.report.__main__, experiments.report.tables\n"
        "print({'torch', 'fairseq', 'gqa_fairseq.models', 'wandb', 'matplotlib'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
