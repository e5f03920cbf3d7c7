"""WMT14 beside the papers: what stands there, and what never does."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from omegaconf import OmegaConf

from experiments.errors import ExperimentError
from experiments.records.measurement import Measurement
from experiments.records.record import Record
from experiments.report.cells import Table
from experiments.report.groups import group_records
from experiments.report.papers.reference import find_table, read_papers
from experiments.report.papers.wmt14 import BASELINE, is_eligible, wmt14_tables
from experiments.report.render import write_report
from experiments.report.tables import group_tables
from gqa_fairseq.parity import Baseline

ROOT = Path(__file__).resolve().parents[2]
replace = msgspec.structs.replace
ROWS = [
    "mha", "gqa4", "gqa2", "mqa", "mha-w32", "mqa-w32",
    "mha-1x128", "mha-2x64", "mha-4x32", "mha-8x16",
]  # fmt: skip


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Cell texts by row name and column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def tables_of(records: list[Record], *measurements: Measurement) -> list[Table]:
    return wmt14_tables(group_records(records, measurements), read_papers())


def here(table: Table) -> set[str]:
    """The texts of all cells that are not the papers'."""
    ours = [i for i, column in enumerate(table.columns) if "here" in column]
    return {row[i] for row in table.rows for i in ours}


def other_corpus(record: Record) -> Record:
    return replace(record, data=replace(record.data, name="multi30k_en_de"))


def unchecked_text(record: Record) -> Record:
    return replace(record, data=replace(record.data, note="not checked to be WMT14"))


def smaller_model(record: Record) -> Record:
    return of_baseline(record, dataclasses.replace(synthetic.PAPER, d_model=512))


def narrower_baseline(record: Record) -> Record:
    return of_baseline(record, dataclasses.replace(synthetic.PAPER, mha_d_ff=2048))


def with_biases(record: Record) -> Record:
    return of_baseline(record, dataclasses.replace(synthetic.PAPER, bias=True))


def of_baseline(record: Record, baseline: Baseline) -> Record:
    """The record as that of a model of another baseline."""
    other = synthetic.record(1, data_name="wmt14_en_de", baseline=baseline)
    parameters = other.architecture.parameters
    evaluation = replace(synthetic.finished(record).evaluation, parameters=parameters)
    result = replace(synthetic.finished(record), evaluation=evaluation)
    return replace(other, data=record.data, result=result)


@pytest.mark.parametrize(
    "change", [other_corpus, unchecked_text, smaller_model, narrower_baseline, with_biases]
)
def test_nothing_else_stands_beside_the_papers(change) -> None:
    record = synthetic.wmt14_record(1)
    assert is_eligible(record)
    tables = tables_of([change(record)])
    assert [table.title for table in tables] == [
        "Quality", "Speed", "The GQA paper's WMT14 column",
    ]  # fmt: skip
    for table in tables:
        assert here(table) == {"not run"}


def test_the_papers_rows_stand_beside_not_run() -> None:
    quality, speed, ainslie = tables_of([synthetic.record()])
    assert list(cells(quality)) == list(cells(speed)) == ROWS
    mqa = cells(quality)["mqa"]
    published = [text for column, text in mqa.items() if "Shazeer" in column]
    assert published == ["1.439", "26.5", "27.5", "28.5"]
    published = [text for column, text in cells(speed)["mha"].items() if "Shazeer" in column]
    assert published == ["13.2", "1.7 + 46", "2.0 + 203"]
    gqa = cells(quality)["gqa4"]
    assert {text for column, text in gqa.items() if "Shazeer" in column} == {"–"}
    narrow = cells(quality)["mha-2x64"]
    published = [text for column, text in narrow.items() if "Shazeer" in column]
    assert published == ["1.480", "26.2", "26.8", "27.9"]
    local = cells(speed)["mqa-w32"]
    published = [text for column, text in local.items() if "Shazeer" in column]
    assert published == ["13.0", "1.5 + 3.3", "1.6 + 16"]
    for name in ("mha-1x128", "mha-8x16"):  # of one width with the baseline's first row, not timed
        timed = cells(speed)[name].items()
        assert {text for column, text in timed if "Shazeer" in column} == {"–"}
    bleu = {row[0]: row[2] for row in ainslie.rows}
    assert bleu == {
        "MHA-Large": "27.7", "MHA-XXL": "28.4", "MQA-XXL": "28.5", "GQA-8-XXL": "28.4",
    }  # fmt: skip


def test_runs_stand_beside_the_papers_as_the_paper_scored() -> None:
    records = [synthetic.wmt14_record(heads) for heads in (8, 1)]
    measurement = synthetic.measurement(records)
    quality, speed, _ = tables_of([synthetic.record(), *records], measurement)
    assert quality.title == "Quality (runs of section 2)"  # the report's first is another corpus
    rows = cells(quality)
    # Tokenizer intl, the filtered lines, and beam 4 with GNMT's penalty: no other score.
    assert rows["mqa"]["BLEU dev: here"] == "19.1"
    assert rows["mqa"]["BLEU test beam 1: here"] == "20.6"
    assert rows["mqa"]["BLEU test beam 4: here"] == "22.6"
    assert rows["mqa"]["updates here"] == "600"
    evaluation = synthetic.finished(records[1]).evaluation
    assert rows["mqa"]["ln(PPL) dev: here"] == f"{evaluation.dev_nll_nats_per_token:.3f}"
    assert rows["mqa"]["ln(PPL) dev: Shazeer 2019"] == "1.439"
    assert rows["gqa4"]["BLEU test beam 4: here"] == "not run"
    greedy = measurement.timings[0].samples[0]
    updates = measurement.timings[-1].samples[0]
    mha = cells(speed)["mha"]
    assert mha["training µs/token: here"] == f"{updates.us_per_token('total'):.1f}"
    both = f"{greedy.us_per_token('encoder'):.1f} + {greedy.us_per_token('decoder'):.1f}"
    assert mha["greedy, encoder + decoder µs/token: here"] == both
    assert cells(speed)["gqa4"]["greedy, encoder + decoder µs/token: here"] == "not run"


def test_runs_that_no_measurement_has_say_so() -> None:
    records = [synthetic.wmt14_record(heads) for heads in (8, 1)]
    _, speed, _ = tables_of(records, synthetic.measurement(records[:1]))
    assert {text for name, text in cells(speed)["mqa"].items() if "here" in name} == {
        "not measured"
    }
    assert "not measured" not in cells(speed)["mha"].values()


def test_the_largest_batch_at_the_papers_lengths_is_shown() -> None:
    record = synthetic.wmt14_record(8)
    workloads = [synthetic.fixed_lengths(1, 128, batch) for batch in (32, 256, 64)]
    workloads.append(synthetic.fixed_lengths(1, 512, 512))
    _, speed, _ = tables_of([record], synthetic.measurement([record], workloads))
    assert "Here: batch 256." in speed.notes
    assert cells(speed)["mha"]["beam 4, encoder + decoder µs/token: here"] == "not measured"


def test_the_notes_say_what_can_be_compared() -> None:
    quality, speed, _ = tables_of([synthetic.wmt14_record(1)])
    below = " ".join(quality.notes)
    assert "nats per subword token" in below
    assert "4,000 pieces" in below
    assert "never the paper's column with ours" in below
    assert "sacrebleu -t wmt14 -l en-de -tok intl" in below
    assert "(here 450)" in below
    assert "tok:intl|smooth:exp" in below
    assert "tok:13a|" not in below
    assert "GNMT's length penalty, alpha 0.6" in below
    assert "TPUv2" in " ".join(speed.notes)
    for table in (quality, speed):
        assert "Synthetic CPU (2 cores, 24 GiB)" in table.notes[-1]


def test_an_unpenalized_or_unfiltered_score_does_not_take_the_papers_place() -> None:
    record = synthetic.wmt14_record(1)
    all_scores = synthetic.finished(record).evaluation.scores
    scores = [s for s in all_scores if s.search != "beam4_gnmt"]
    row = cells(tables_of([synthetic.with_evaluation(record, scores=scores)])[0])["mqa"]
    assert row["BLEU test beam 4: here"] == "not run"
    assert row["BLEU test beam 1: here"] == "20.6"
    scores = [s for s in all_scores if s.split != "test_filtered"]
    row = cells(tables_of([synthetic.with_evaluation(record, scores=scores)])[0])["mqa"]
    assert {row["BLEU test beam 1: here"], row["BLEU test beam 4: here"]} == {"not run"}


def test_the_gqa_papers_placement_is_a_row_below() -> None:
    records = [synthetic.wmt14_record(8), synthetic.wmt14_record(4, placement="decoder")]
    quality, *_ = tables_of(records)
    rows = cells(quality)
    assert list(rows) == [*ROWS, "gqa4-dec"]
    assert rows["gqa4-dec"]["BLEU dev: Shazeer 2019"] == "–"
    assert rows["gqa4-dec"]["BLEU dev: here"] == "19.4"
    assert rows["gqa4"]["BLEU dev: here"] == "not run"


def test_runs_that_cannot_be_compared_have_tables_of_their_own() -> None:
    one = synthetic.wmt14_record(8)
    other = synthetic.wmt14_record(1)
    other = replace(other, config=other.config | {"train": {"max_updates": 700}})
    titles = [table.title for table in tables_of([one, other])]
    assert titles[:4] == [
        "Quality (runs of section 1)", "Speed (runs of section 1)",
        "Quality (runs of section 2)", "Speed (runs of section 2)",
    ]  # fmt: skip


def test_the_baseline_is_that_of_the_paper_model() -> None:
    paper = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/model/paper.yaml"))
    assert isinstance(paper, dict)
    settings = {key: paper[key] for key in paper if key not in ("norm_before", "max_positions")}
    assert settings.items() <= dataclasses.asdict(BASELINE).items()
    assert paper["norm_before"] == BASELINE.pre_norm
    assert len(settings) == 6


def test_every_variant_of_the_baseline_may_stand_there() -> None:
    names = set()
    for heads in (8, 4, 2, 1):
        for placement in ("all", "decoder"):
            for d_ff in ("matched", "kept"):
                record = synthetic.wmt14_record(heads, placement, d_ff=d_ff)
                assert is_eligible(record)
                names.add(record.architecture.name)
    assert names == {
        "mha", "gqa4", "gqa2", "mqa", "gqa4-dec", "gqa2-dec", "mqa-dec",
        "gqa4-ff4096", "gqa2-ff4096", "mqa-ff4096",
        "gqa4-dec-ff4096", "gqa2-dec-ff4096", "mqa-dec-ff4096",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "other"),
    [(8, {"window": 32}), (1, {"window": 32}), (4, {"num_heads": 4, "head_dim": 32})],
)
def test_a_run_of_the_papers_other_rows_stands_beside_its_row(
    heads: int, other: dict[str, int]
) -> None:
    record = synthetic.wmt14_record(heads, **other)
    quality, *_ = tables_of([record])
    row = cells(quality)[record.architecture.name]
    assert row["BLEU dev: Shazeer 2019"] != "–"
    assert row["updates here"] == "600"


def test_subsets_have_a_table_in_the_runs_own_section() -> None:
    (group,) = group_records([synthetic.wmt14_record(8)])
    tables = {table.title: table for table in group_tables(group)}
    filtered = tables["Translation quality on test_filtered"]
    row = cells(filtered)["mha"]
    assert row["BLEU intl, beam 4 (gnmt alpha 0.6)"] == "23.3"
    assert row["BLEU intl, beam 4 (fairseq alpha 1)"] == "22.3"
    assert filtered.notes[0] == "450 lines of test, engine gqa."


def test_the_section_stands_in_the_report(tmp_path: Path) -> None:
    groups = group_records([synthetic.record()])
    text = write_report(groups, read_papers(), tmp_path).read_text(encoding="utf-8")
    section = text.partition("## WMT14 English-German beside the papers\n")[2]
    section = section.partition("\n## ")[0]
    assert section.count("### ") == 3
    assert "| mqa | 1.439 | not run | 26.5 | not run |" in section


def test_a_published_cell_is_one_cell() -> None:
    table = find_table(read_papers(), "1911.02150", "Table 1")
    assert table.shown({"attention": "multi-head", "h": 2}, "ln(PPL) dev") == "1.480"
    for where, column in (
        ({"attention": "multi-head"}, "BLEU dev"),  # of many rows
        ({"attention": "none"}, "BLEU dev"),
        ({"attention": "multi-query"}, "no such column"),
    ):
        with pytest.raises(ExperimentError, match="no single cell"):
            table.shown(where, column)
    with pytest.raises(ExperimentError, match=r"Table 9 of arXiv 1911\.02150 is missing"):
        find_table(read_papers(), "1911.02150", "Table 9")
