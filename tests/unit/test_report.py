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
from experiments.record_parts import Hardware
from hypothesis import given
from hypothesis import strategies as st

from experiments.records import Record, write_record
from experiments.report.__main__ import main
from experiments.report.groups import Row, group_records
from experiments.report.plots import group_plots, raw_latency, training_curves
from experiments.report.reference import NOT_COMPARABLE, read_papers
from experiments.report.render import markdown_table, write_report
from experiments.report.tables import Table, group_tables, overview, quality

ROOT = Path(__file__).resolve().parents[2]
HEADS = (8, 4, 2, 1)
replace = msgspec.structs.replace


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Cell texts by row name and column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def overview_cells(records: list[Record]) -> dict[str, dict[str, str]]:
    (group,) = group_records(records)
    return cells(overview(group))


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
    assert record.evaluation is not None
    assert row["parameters"] == "2,500,000"
    assert row["residual"] == "0"
    assert row["d_ff enc / dec"] == "984 / 984"
    assert row["dev nats/token"] == f"{record.evaluation.dev_nll_nats_per_token:.3f}"
    assert row["dev perplexity"] == f"{math.exp(record.evaluation.dev_nll_nats_per_token):.2f}"
    assert row["test BLEU greedy"] == "11.2"
    assert row["test BLEU beam 4"] == "11.9"


def test_speed_up_is_the_time_of_mha_over_the_own_time() -> None:
    records = {heads: synthetic.record(heads) for heads in HEADS}
    rows = overview_cells(list(records.values()))
    us = {
        heads: record.benchmark.timings[0].decoder_us_per_token
        for heads, record in records.items()
        if record.benchmark
    }
    column = "decoder µs/token greedy (speed-up over MHA)"
    assert rows["mha"][column] == f"{us[8]:.1f} (1.00×)"
    assert rows["mqa"][column] == f"{us[1]:.1f} ({us[8] / us[1]:.2f}×)"


def test_without_mha_there_is_no_speed_up() -> None:
    row = overview_cells([synthetic.record(1)])["mqa"]
    assert "×" not in row["decoder µs/token greedy (speed-up over MHA)"]


def test_seeds_become_mean_and_deviation() -> None:
    records = [synthetic.record(4, seed) for seed in (1, 2, 4)]
    row = overview_cells(records)["gqa4"]
    nll = [r.evaluation.dev_nll_nats_per_token for r in records if r.evaluation]
    assert row["dev nats/token"] == f"{statistics.fmean(nll):.3f} ± {statistics.stdev(nll):.3f}"
    assert row["seeds"] == "1, 2, 4"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_an_estimate_is_the_statistics_of_its_runs(values: list[float]) -> None:
    row = Row(tuple(synthetic.record(8, seed, stages=False) for seed in range(len(values))))
    estimate = row.estimate(lambda record: values[record.seed])
    assert estimate is not None
    assert estimate.mean == statistics.fmean(values)
    assert estimate.runs == len(values)
    if len(values) == 1:
        assert estimate.deviation is None
    else:
        assert estimate.deviation == statistics.stdev(values)


def test_what_did_not_run_says_so() -> None:
    rows = overview_cells([synthetic.record(8), synthetic.record(1, stages=False)])
    assert rows["mqa"]["dev nats/token"] == "not run"
    assert rows["mqa"]["test BLEU beam 4"] == "not run"
    assert rows["mqa"]["decoder µs/token greedy (speed-up over MHA)"] == "not run"
    assert rows["mqa"]["parameters"] == "2,500,000"
    assert "not run" not in rows["mha"].values()


def test_baselines_stand_beside_the_variants() -> None:
    rows = overview_cells([synthetic.record(heads) for heads in HEADS])
    assert rows["baseline: copied source"]["test BLEU beam 4"] == "3.1"
    assert rows["baseline: nearest training line"]["test BLEU greedy"] == "5.2"
    assert rows["baseline: copied source"]["parameters"] == "–"
    assert len(rows) == 6


def other_hardware(record: Record) -> Record:
    hardware = Hardware(cpu_model="Synthetic CPU", cores_usable=4, memory_bytes=1, gpus=[])
    return replace(record, hardware=hardware)


def other_code(record: Record) -> Record:
    return replace(record, code=replace(record.code, version=synthetic.sha256("other")))


def other_torch(record: Record) -> Record:
    return replace(record, versions=record.versions | {"torch": "2.11.0"})


def other_data(record: Record) -> Record:
    return replace(record, data=replace(record.data, checksum=synthetic.sha256("other")))


def other_training(record: Record) -> Record:
    return replace(record, config=record.config | {"train": {"max_updates": 601}})


@pytest.mark.parametrize(
    "change", [other_hardware, other_code, other_torch, other_data, other_training]
)
def test_what_cannot_be_compared_stands_apart(change: Callable[[Record], Record]) -> None:
    records = [synthetic.record(8), change(synthetic.record(1))]
    groups = group_records(records)
    assert [[row.name for row in group.rows] for group in groups] == [["mha"], ["mqa"]]


def test_how_a_job_is_named_kept_and_shown_does_not_matter() -> None:
    plain = synthetic.record(1)
    names = {"tracking": {"mode": "offline"}, "paths": {"runs": "x"}, "experiment_name": "x"}
    named = replace(plain, config=plain.config | names | {"force": True, "seed": 2}, seed=2)
    (group,) = group_records([plain, named])
    assert [record.seed for record in group.rows[0].records] == [1, 2]


def test_where_several_machines_met_does_not_matter_what_they_are_does() -> None:
    def on(**hardware: object) -> Record:
        record = synthetic.record(1, seed=len(hardware))
        return replace(record, config=record.config | {"hardware": {"device": "cuda"} | hardware})

    one, other = on(master="a:1", node_rank=0), on(master="b:2")
    assert len(group_records([one, other])) == 1
    assert len(group_records([one, on(devices=8)])) == 2


def test_placements_and_widths_are_rows_of_their_own() -> None:
    wide = synthetic.record(4)
    wide = replace(wide, model=replace(wide.model, decoder_d_ff=1000))
    records = [synthetic.record(4), synthetic.record(4, placement="decoder"), wide]
    (group,) = group_records(records)
    assert [row.name for row in group.rows] == ["gqa4", "gqa4", "gqa4-dec"]


def test_one_machine_is_one_machine_after_a_reboot() -> None:
    """The memory that the kernel keeps for itself differs from boot to boot."""
    record = synthetic.record(1)
    memory_bytes = record.hardware.memory_bytes - 4096
    rebooted = replace(record, hardware=replace(record.hardware, memory_bytes=memory_bytes))
    assert len(group_records([synthetic.record(8), rebooted])) == 1


def test_another_beam_has_columns_of_its_own() -> None:
    record = synthetic.record(8)
    assert record.evaluation is not None
    assert record.benchmark is not None
    scores = [replace(s, beam=5) if s.beam > 1 else s for s in record.evaluation.scores]
    timings = [replace(t, beam=5) if t.beam > 1 else t for t in record.benchmark.timings]
    record = replace(
        record,
        evaluation=replace(record.evaluation, scores=scores),
        benchmark=replace(record.benchmark, timings=timings),
    )
    row = overview_cells([record])["mha"]
    assert row["test BLEU beam 5"] == "12.6"
    assert "not run" not in row.values()
    assert not any("beam 4" in column for column in row)


def test_of_a_repeated_run_the_newest_counts() -> None:
    old = synthetic.record(8)
    assert old.evaluation is not None
    newer = replace(
        old,
        job=replace(old.job, started_utc=old.job.started_utc.replace(year=2027)),
        evaluation=replace(
            old.evaluation, dev_nll_nats_per_token=1.0, dev_perplexity=math.exp(1.0)
        ),
    )
    (group,) = group_records([newer, old, old])
    assert group.repeats_left_out == 2
    assert cells(overview(group))["mha"]["dev nats/token"] == "1.000"


def test_other_engines_and_penalties_are_columns_of_their_own() -> None:
    record = synthetic.record(8)
    assert record.evaluation is not None
    beam4 = record.evaluation.scores[3]
    more = [
        replace(beam4, engine="gqa", value_0_100=20.0),
        replace(beam4, length_penalty="gnmt", length_alpha=0.6, value_0_100=30.0),
    ]
    evaluation = replace(record.evaluation, scores=[*record.evaluation.scores, *more])
    (group,) = group_records([replace(record, evaluation=evaluation)])
    row = cells(quality(group, "test"))["mha"]
    assert row["BLEU 13a, beam 4 (stock, fairseq alpha 1)"] == f"{beam4.value_0_100:.1f}"
    assert row["BLEU 13a, beam 4 (gqa, fairseq alpha 1)"] == "20.0"
    assert row["BLEU 13a, beam 4 (stock, gnmt alpha 0.6)"] == "30.0"
    assert cells(overview(group))["mha"]["test BLEU beam 4"] == "20.0"


def test_every_table_states_its_provenance() -> None:
    (group,) = group_records([synthetic.record(heads, seed=7) for heads in HEADS])
    for table in group_tables(group):
        below = " ".join(table.notes)
        for stated in ("Synthetic CPU (2 cores, 24 GiB)", "commit c0ffee000000", "seed 7"):
            assert stated in below
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert any("tok:13a" in note for note in quality(group, "test").notes)
    assert any("tok:intl" in note for note in quality(group, "test").notes)
    titles = " ".join(table.title for table in group_tables(group))
    assert "source 512, target 128 tokens, engine stock" in titles


def test_plots_are_images_and_the_same_for_the_same_records() -> None:
    (group,) = group_records([synthetic.record(heads) for heads in HEADS])
    plots = group_plots(group)
    assert set(plots) == {"bleu-latency", "training-curves", "raw-latency"}
    assert all(content.startswith(b"\x89PNG\r\n\x1a\n") for content in plots.values())
    assert group_plots(group) == plots


def test_a_plot_without_data_is_left_out() -> None:
    (group,) = group_records([synthetic.record(8, stages=False)])
    assert group_plots(group) == {}


def test_the_later_half_of_a_curve_is_drawn_where_there_is_an_earlier_one() -> None:
    record = synthetic.record(8)
    assert record.training is not None
    (group,) = group_records([record])
    figure = training_curves(group)
    assert figure is not None
    drawn = [list(axes.lines[0].get_xdata()) for axes in figure.axes]
    assert drawn == [[100, 200, 300, 400, 500, 600], [300, 400, 500, 600]]
    late = replace(record.training, curve=record.training.curve[6:])
    (group,) = group_records([replace(record, training=late)])
    figure = training_curves(group)
    assert figure is not None
    assert [list(axes.lines[0].get_xdata()) for axes in figure.axes] == [[400, 500, 600]]


def test_every_raw_sample_is_drawn() -> None:
    records = [synthetic.record(heads, seed) for heads in HEADS for seed in (1, 2)]
    (group,) = group_records(records)
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
        1e6 * raw_s / timing.tokens_produced
        for record in records
        if record.benchmark
        for timing in record.benchmark.timings
        for raw_s in timing.decoder_s
    )
    assert drawn == pytest.approx(raw_us)


def test_the_written_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [synthetic.record(heads, seed) for heads in HEADS for seed in (1, 2)]
    other = synthetic.record(1, data_name="other_en_de")
    first = save(tmp_path / "a", records)
    second = save(tmp_path / "b", [other, records[0]])
    out = tmp_path / "report"
    arguments = ["--records", str(first), "--records", str(second), "--out", str(out)]
    assert main(arguments) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    sections = [heading for heading in headings(text) if re.match(r"\d\.", heading)]
    assert [heading.split(":")[0] for heading in sections] == [
        "1. synthetic_en_de",
        "2. other_en_de",
    ]
    # Every picture is there, and no mark of the template is left.
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 6
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
    for name in ("mha", "gqa4", "gqa2", "mqa", "nearest", "2,500,000", "±0.0"):
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


def test_a_bad_record_stops_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "records", [synthetic.record(8), synthetic.record(1)])
    (folder / "job1" / "record.json").write_text("{", encoding="utf-8")
    assert main(["--records", str(folder), "--out", str(tmp_path / "report")]) == 2
    assert "job1/record.json: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


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
    groups = group_records([synthetic.record(8)])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.report.render.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(groups, read_papers(), tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_the_report_loads_neither_torch_nor_fairseq() -> None:
    code = (
        "import sys, experiments.report.__main__\n"
        "print({'torch', 'fairseq', 'gqa_fairseq', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
