"""README's and the study's tables of results say what the committed records say."""

import itertools
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

from kept_results import read_records

from experiments.records.record import Finished

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_uptraining_has_the_means_of_the_records() -> None:
    losses = defaultdict(list)
    for record in read_records(ROOT / "results/runs/study_uptrain"):
        made = record.uptraining
        assert made is not None
        assert isinstance(record.result, Finished)
        heads = record.architecture.num_kv_heads
        found = record.result.evaluation.dev_nll_nats_per_token
        losses[made.method, heads, made.alpha].append(found)
    assert len({len(seeds) for seeds in losses.values()}) == 1  # all of as many seeds
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    methods = "random|first|mean|svd-product|identity"
    rows = re.findall(rf"^\| ({methods})(?: \(MHA\))? \| (\d.*?)[| ]*\|$", text, re.MULTILINE)
    assert [method for method, _ in rows] == methods.split("|")
    for method, cells in rows:
        all_heads = (8,) if method == "identity" else (1, 2)
        values = [mean(losses[method, h, at]) for h in all_heads for at in (0.0, 0.05, 0.1)]
        assert cells == " | ".join(f"{value:.3f}" for value in values)


def test_the_first_table_is_that_of_the_report() -> None:
    """Some columns of the report's overview of the study, and the rows of as many trainings."""
    heading, rule, baseline, *others = rows_after(report_of_the_study(), "### Overview")
    seeds = heading.index("seeds")
    trained_alike = [row for row in others if row[seeds] in (baseline[seeds], "–")]
    whole = [heading, rule, baseline, *trained_alike]
    shown = rows_after((ROOT / "README.md").read_text(encoding="utf-8"), "What `make study` found")
    first = shown[0]
    assert len(first) == 10
    assert [row[0] for row in shown] == [row[0] for row in whole]
    columns = [heading.index(name) for name in first]
    for row, full in zip(shown[2:], whole[2:], strict=True):
        assert row == [full[column] for column in columns]


def test_the_sentences_below_it_have_the_report_s_losses() -> None:
    tested = rows_after(report_of_the_study(), "### Quality tested on test, beam 4")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for variant, sentence in (
        ("mqa", "MQA costs {0} nats a token (95 % interval over trainings {1} to {2}) and {3}"),
        ("gqa2", "GQA-2 costs {0} nats ({1} to {2}) and {3}"),
    ):
        (row,) = [row for row in rows_of(tested, variant) if row["seed"].startswith("all ")]
        # More nats and less BLEU are a cost.
        costs = re.findall(r"\+([\d.]+)", row["dev nats/token difference"])
        lost = row["BLEU difference"].split()[0].removeprefix("-")
        assert f"{sentence.format(*costs, lost)} BLEU" in text


def test_the_sentences_of_software_s_texts_have_the_report_s_differences() -> None:
    report = report_of_the_study("local")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (multi_head,) = rows_of(rows_after(report, "### Overview"), "mha")
    bleu, nats = (multi_head[name].split()[0] for name in ("test BLEU beam 4", "dev nats/token"))
    assert f"MHA has {bleu} BLEU and {nats} dev nats a token" in text
    tested = rows_after(report, "### Quality tested on test, beam 4")
    for variant, name in (("mqa", "MQA"), ("gqa2", "GQA-2")):
        rows = rows_of(tested, variant)
        gained = [float(row["BLEU difference"].split()[0]) for row in rows]
        more = rows[-1]["dev nats/token difference"].split()[0].removeprefix("+")
        first, second, both = (
            f"{abs(value):.2f} {'less' if value < 0 else 'more'}" for value in gained
        )
        both = both.replace(" ", " BLEU ")
        assert f"{name} {both} ({first} and {second}) and {more} nats more" in text
        for cell in (rows[-1]["BLEU difference"], rows[-1]["dev nats/token difference"]):
            low, high = re.findall(r"[+-][\d.]+", cell)[1:]
            assert float(low) < 0 < float(high), "README says that all intervals hold 0"


def test_the_study_s_other_variants_are_those_of_fewer_trainings() -> None:
    report = report_of_the_study()
    overview = rows_after(report, "### Overview")
    (multi_head,) = rows_of(overview, "mha")
    tested = rows_after(report, "### Quality tested on test, beam 4")
    shown = rows_after(
        (ROOT / "docs/study.md").read_text(encoding="utf-8"), "## The other variants"
    )
    columns = [tested[0].index(name) for name in shown[0]]
    fewer = [
        [row[column] for column in columns]
        for row in tested[2:]
        if rows_of(overview, row[0])[0]["seeds"] != multi_head["seeds"]
    ]
    assert shown[2:] == fewer
    # What the main variants lost in the seed that these have.
    (gqa2,), (mqa,) = (
        [row for row in rows_of(tested, name) if row["seed"] == "1"] for name in ("gqa2", "mqa")
    )
    lost = [
        f"{row['BLEU difference'].split()[0].removeprefix('-')} BLEU and "
        f"{row['dev nats/token difference'].removeprefix('+')} nats"
        for row in (gqa2, mqa)
    ]
    study = " ".join((ROOT / "docs/study.md").read_text(encoding="utf-8").split())
    assert f"are {lost[0]} (GQA-2) and {lost[1]} (MQA) worse than MHA" in study
    nats, chrf = (mqa[f"{name} difference"].split()[0][1:] for name in ("dev nats/token", "chrF"))
    assert f"({nats} and {chrf}) and as much BLEU" in study


def test_the_smaller_model_s_scores_are_the_report_s() -> None:
    report = (ROOT / "results/report/report.md").read_text(encoding="utf-8")
    overview = rows_after(report[report.index("layers, d_model 96, 6 heads\n") :], "### Overview")
    (row,) = rows_of(overview, "mha")
    said = f"{row['dev nats/token']} dev nats a token and {row['test BLEU beam 4']} BLEU with beam"
    study = " ".join((ROOT / "docs/study.md").read_text(encoding="utf-8").split())
    assert f"(seed {row['seeds']}; {row['parameters']} parameters) has {said}" in study


def report_of_the_study(data: str = "multi30k_en_de") -> str:
    """The report from its first group of this data on, which is the models from scratch."""
    report = (ROOT / "results/report/report.md").read_text(encoding="utf-8")
    return report[report.index(f". {data}: ") :]


def rows_after(text: str, words: str) -> list[list[str]]:
    """The cells of the first table below these words, its heading and its rule first."""
    lines = text[text.index(words) :].split("\n")
    table = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("|"), lines),
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def rows_of(table: list[list[str]], variant: str) -> list[dict[str, str]]:
    """The rows that begin with this variant, by the names of their columns."""
    return [dict(zip(table[0], row, strict=True)) for row in table if row[0] == variant]
