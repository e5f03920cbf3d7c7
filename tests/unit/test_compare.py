"""`experiments.compare`: what is asked for, and what it says of the committed records."""

import dataclasses
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import msgspec
import pytest
import synthetic_records as synthetic

from experiments import compare
from experiments.records.measurement import read_measurement, speed_up, write_measurement
from experiments.records.parts import ModelScore
from experiments.records.record import Finished, Record, read_record, write_record
from experiments.records.significance import (
    Comparison,
    SeedTests,
    Settings,
    Sides,
    comparison_key,
    read_comparison,
)
from experiments.report.archive import Archive, read_archive
from experiments.report.cells import Table
from experiments.report.differences import (
    apart,
    config_table,
    score_tables,
    speed_table,
)
from experiments.report.quality.testing import Kept

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "results" / "runs" / "quickstart"
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def archive() -> Archive:
    return read_archive([QUICKSTART])


def saved(folder: Path, *records: Record) -> Archive:
    for place, record in enumerate(records):
        write_record(folder / f"job{place}" / "record.json", record)
    return read_archive([folder])


def kept_result(variant: str) -> Finished:
    """Of the quickstart's committed record."""
    (job,) = QUICKSTART.glob(f"{variant}-seed1-*")
    return synthetic.finished(read_record(job / "record.json"))


def beam_score(result: Finished, metric: str) -> ModelScore:
    """On test, with the beam."""
    scores = result.evaluation.scores
    (found,) = (s for s in scores if (s.split, s.metric) == ("test", metric) and s.beam > 1)
    return found


def kept_tests() -> Comparison:
    """MQA's against MHA on test, with the beam: bleu and chrf."""
    baseline, variant = (
        [beam_score(kept_result(name), "bleu").hypotheses_sha256] for name in ("mha", "mqa")
    )
    key = comparison_key(Sides(baseline=baseline, variant=variant), Settings())
    return read_comparison(ROOT / f"results/tests/{key}.json")


def interval(tests: SeedTests) -> str:
    """The difference, and what lines drawn anew leave open."""
    return f"{tests.difference:+.2f} ({tests.interval.low:+.2f} to {tests.interval.high:+.2f})"


def test_a_folder_is_a_side_a_variant_with_the_most_heads_first(archive: Archive) -> None:
    sides = compare.sides_of(archive, [str(QUICKSTART)])
    assert [(side.letter, side.label) for side in sides] == [
        ("A", "quickstart/mha, seed 1"),
        ("B", "quickstart/gqa2, seed 1"),
        ("C", "quickstart/mqa, seed 1"),
    ]


def test_jobs_and_filters_come_in_their_order(archive: Archive) -> None:
    (job,) = QUICKSTART.glob("mqa-seed1-*")
    sides = compare.sides_of(archive, [str(job / "record.json"), "variant=mha,seed=1"])
    assert [side.row.name for side in sides] == ["mqa", "mha"]
    sides = compare.sides_of(archive, ["attention.num_kv_heads=2", "attention.num_kv_heads=8"])
    assert [side.row.name for side in sides] == ["gqa2", "mha"]


def test_seeds_of_a_variant_are_one_side_and_the_newest_record_of_a_seed_counts(
    tmp_path: Path,
) -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (2, 1)]
    again = records[0]
    started = again.job.started_utc.replace(year=2027)
    again = replace(again, job=replace(again.job, id=synthetic.sha256("x"), started_utc=started))
    found = saved(tmp_path, *records, again, synthetic.record(1, 3, diverged_after=9))
    mha, mqa = compare.sides_of(found, [str(tmp_path)])
    assert [record.seed for record in mha.records] == [1, 2]
    assert mha.records[1] == again
    assert [record.seed for record in mqa.records] == [1, 2]  # a diverged one has no scores


def test_the_config_that_differs_is_shown_and_no_other(archive: Archive) -> None:
    sides = compare.sides_of(archive, [str(QUICKSTART)])
    table = config_table(sides)
    assert table.rows == [
        ["variant", "mha", "gqa2", "mqa"],
        ["d_ff enc / dec", "768 / 768", "984 / 984", "1020 / 1020"],
        ["attention.num_kv_heads", "8", "2", "1"],
    ]
    assert table.notes == []


def test_many_sides_are_lines_and_not_columns() -> None:
    few = Table("t", ["setting", "A", "B"], [["seed", "1", "2"]], ["a note"])
    assert compare.turned(few) is few
    sides = list("ABCDEF")
    values = [f"{side}1" for side in sides]
    many = Table("t", ["setting", *sides], [["seed", *values], ["heads", *sides]], ["a note"])
    turned = compare.turned(many)
    assert turned.columns == ["", "seed", "heads"]
    assert turned.rows == [[side, f"{side}1", side] for side in sides]
    assert turned.notes == ["a note"]


def test_other_code_is_named(tmp_path: Path) -> None:
    made = synthetic.provenance()
    other = replace(made, versions=made.versions | {"torch": "2.11.0"})
    records = [synthetic.record(8), synthetic.made_by(synthetic.record(1), other)]
    (note,) = config_table(compare.sides_of(saved(tmp_path, *records), [str(tmp_path)])).notes
    assert note.startswith("Made by different versions: ")


def test_scores_have_the_tests_that_are_there_and_others_are_made(archive: Archive) -> None:
    sides = compare.sides_of(archive, ["variant=mha", "variant=mqa"])
    tables = list(score_tables(sides, archive, Kept([QUICKSTART]), Settings()))
    assert [table.title for table in tables] == [
        "Dev loss",
        "Scores on test, greedy",
        "Scores on test, beam 4",
        "Scores on dev, greedy",
    ]
    results = [kept_result(variant) for variant in ("mha", "mqa")]
    losses = [result.evaluation.dev_nll_nats_per_token for result in results]
    assert [row[1] for row in tables[0].rows] == [f"{loss:.3f}" for loss in losses]
    scores = [[beam_score(result, metric) for metric in ("bleu", "chrf")] for result in results]
    mha, mqa = tables[2].rows
    assert mha == ["A", *(f"{score.value:.1f}" for score in scores[0]), "–", "–", "–", "–"]
    assert mqa[:3] == ["B", *(f"{score.value:.1f}" for score in scores[1])]
    tests = [metric.seeds[0] for metric in kept_tests().metrics]
    assert mqa[3:] == [
        cell for test in tests for cell in (interval(test), f"{test.p_randomization:.4f}")
    ]
    for test, baseline, variant in zip(tests, *scores, strict=True):
        assert test.difference == pytest.approx(variant.value - baseline.value, abs=1e-6)
    quick = Settings(resamples=20)
    assert quick.resamples != Settings().resamples
    made = list(score_tables(sides, archive, Kept([QUICKSTART]), quick))[2].rows[1]
    assert made[3].startswith(f"{tests[0].difference:+.2f} (")
    assert 1 / 21 <= float(made[4]) <= 1


def test_what_cannot_be_tested_says_why(tmp_path: Path) -> None:
    records = [synthetic.record(8), synthetic.record(1)]
    found = saved(tmp_path, *records)
    sides = compare.sides_of(found, [str(tmp_path)])
    *_, table = score_tables(sides, found, Kept([tmp_path]), Settings())
    assert table.rows[1][3:] == ["not tested"] * 4
    assert "are not beside the records" in table.notes[0]
    other = replace(records[1], data=replace(records[1].data, checksum=synthetic.sha256("other")))
    write_record(tmp_path / "job1" / "record.json", other)
    found = read_archive([tmp_path])
    sides = compare.sides_of(found, [str(tmp_path)])
    *_, table = score_tables(sides, found, Kept([tmp_path]), Settings())
    assert table.notes[0] == "B: not tested: they were trained on other data."
    (line,) = apart(sides, found, [], 20)
    assert line.endswith("its translations are not kept, or of other data")


def test_a_run_without_the_score_is_left_out_of_its_tests(tmp_path: Path) -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2)]
    scores = synthetic.finished(records[3]).evaluation.scores
    greedy = [score for score in scores if score.beam == 1]
    records[3] = synthetic.with_evaluation(records[3], scores=greedy)
    found = saved(tmp_path, *records)
    sides = compare.sides_of(found, [str(tmp_path)])
    _, both, one = score_tables(sides, found, Kept([tmp_path]), Settings())
    first = {
        beam: next(
            score.hypotheses_sha256[:12]
            for score in synthetic.finished(records[0]).evaluation.scores
            if (score.metric, score.beam) == ("bleu", beam)
        )
        for beam in (1, 4)
    }
    assert first[1] in both.notes[0]
    assert first[4] in one.notes[0]


def test_speed_is_of_one_measurement(archive: Archive, tmp_path: Path) -> None:
    table = speed_table(compare.sides_of(archive, [str(QUICKSTART)]), archive)
    assert table.columns == ["workload", "A: µs/token", "B: µs/token", "C: µs/token"]
    assert len(table.rows) == 4
    (path,) = (ROOT / "results/measurements/quickstart").rglob("measurement.json")
    base, *others = read_measurement(path).timings[0].samples
    middle = [median(each.total_s) * 1e6 / each.tokens_produced for each in (base, *others)]
    ratios = [speed_up(base, each, "total") for each in others]
    assert table.rows[0][1:] == [
        f"{middle[0]:.1f}",
        *(
            f"{us:.1f}, {ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
            for us, ratio in zip(middle[1:], ratios, strict=True)
            if ratio
        ),
    ]
    unmeasured = saved(tmp_path, synthetic.record(8), synthetic.record(1))
    table = speed_table(compare.sides_of(unmeasured, [str(tmp_path)]), unmeasured)
    assert table.rows == [["any", "not measured", "not measured"]]


def test_the_lines_that_differ_most_come_with_their_source(archive: Archive) -> None:
    sides = compare.sides_of(archive, ["variant=mha", "variant=mqa"])
    shown = list(apart(sides, archive, [], 20))
    first = "test, beam 4, A of seed 1, B of seed 1: lines whose chrF differs most, most first"
    assert shown[0] == first
    starts = [line for line in shown if line.startswith("\nline ")]
    assert len(starts) == len(set(starts)) == 20
    scores = [float(found[1]) for line in shown if (found := re.match(r"  [AB] +([\d.]+)", line))]
    spread = [abs(a - b) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    assert len(spread) == 20
    assert spread == pytest.approx(sorted(spread, reverse=True), abs=0.11)  # shown with a digit
    assert sum(line.startswith("  source ") for line in shown) == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["absent"], "absent: no such folder, and no filter such as variant=mqa"),
        (["variant="], "variant=: no such folder, and no filter such as variant=mqa"),
        (["variant=zzz"], "variant=zzz: no record that can be read (--records DIR says where"),
        (["variant=mha"], "variant=mha: 1 variant with a finished job: two are compared"),
        (["colour=red"], "colour=red: no record has a colour (variant, seed, experiment, or a key"),
        ([str(ROOT / "docs")], "no record that can be read (give the folder of a job"),
        ([str(ROOT / "README.md")], "README.md: no record.json (give a job's folder or its record"),
    ],
)
def test_bad_arguments_are_one_line(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([*given, "--records", str(QUICKSTART)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_bad_record_is_named_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # no cell of a table takes two lines
    shutil.copytree(QUICKSTART, tmp_path / "runs" / "quickstart")
    (bad,) = (tmp_path / "runs").rglob("gqa2-seed1-*/record.json")
    bad.write_text("{", encoding="utf-8")
    tests = str(ROOT / "results" / "tests")
    folder = str(tmp_path / "runs" / "quickstart")
    assert compare.main([folder, "--tests", tests, "--lines", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: left out: {bad}: not JSON")
    assert shown.err.count("\n") == 1
    assert "B: quickstart/mqa, seed 1" in shown.out
    assert interval(kept_tests().metrics[0].seeds[0]) in shown.out


def test_the_help_comes_without_torch_and_drawing() -> None:
    code = (
        "import sys, experiments.compare\n"
        "print({'torch', 'fairseq', 'wandb', 'matplotlib', 'sacrebleu'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_records_are_read_from_the_committed_files(archive: Archive) -> None:
    for path, record in archive.records.items():
        assert read_record(path) == record
        assert archive.path_of(record) == path


def test_a_record_is_compared_with_its_own_rerun_and_with_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    kept, again = (tmp_path / name / "runs" / "some" / "job" for name in ("kept", "again"))
    first = synthetic.record(1)
    measured = synthetic.measurement([first])
    for changed in (False, True):
        job = replace(first.job, started_utc=first.job.started_utc.replace(year=2027))
        rerun = synthetic.with_evaluation(
            replace(first, job=job), dev_nll_nats_per_token=3.25, dev_perplexity=math.exp(3.25)
        )
        write_record(kept / "record.json", first)
        write_record(again / "record.json", rerun if changed else first)
        write_measurement(kept.parents[2] / "measurements" / "some" / "measurement.json", measured)
        assert compare.main([str(kept), str(again)]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        assert f"B: synthetic/mqa, seed 1 ({again}" in shown.out
        assert ("3.250" in shown.out) == changed
        assert "A and B are of one job: python -m experiments.rerun compares" in shown.out
        assert shown.out.count("not measured") == 2


def test_jobs_whose_configs_differ_are_sides_of_their_own(tmp_path: Path) -> None:
    short, long = (synthetic.record(8, seed, updates=n) for seed, n in ((1, 600), (2, 900)))
    narrow = synthetic.record(8, baseline=dataclasses.replace(synthetic.SMALL, mha_d_ff=512))
    found = saved(tmp_path, short, long, narrow)
    sides = compare.sides_of(found, [str(tmp_path)])
    assert sorted((side.label, len(side.records)) for side in sides) == [
        ("synthetic/mha, seed 1", 1),
        ("synthetic/mha, seed 1", 1),
        ("synthetic/mha, seed 2", 1),
    ]
    differing = {row[0] for row in config_table(sides).rows}
    assert {"train.max_updates", "model.mha_d_ff"} <= differing
