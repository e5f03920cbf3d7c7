"""Tests of quality: made of records once, kept, read, and refused in one line."""

import json
import lzma
import math
from pathlib import Path

import msgspec
import pytest
import synthetic_records as synthetic
from kept_results import find_comparisons, read_records
from synthetic_comparisons import pairs_of, texts
from synthetic_records import comparison

from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of, sentence_statistics
from experiments.records.hypotheses import (
    COUNTS,
    Hypotheses,
    LineCounts,
    hypotheses_digest,
    write_hypotheses,
)
from experiments.records.record import Record, write_record
from experiments.records.significance import (
    TESTED,
    Comparison,
    Settings,
    Sides,
    comparison_key,
    read_comparison,
    write_comparison,
)
from experiments.report.groups import group_records
from experiments.report.quality.comparisons import pairs
from experiments.significance import Kept, compared, main, make_tests

RESULTS = Path(__file__).resolve().parents[2] / "results"


replace = msgspec.structs.replace


def keep(folder: Path, heads: int, lines: list[str], references: list[str]) -> Record:
    """A record whose greedy translations, counts and scores go together."""
    counts, scores = [], []
    for metric in TESTED:
        scorer = METRICS[metric].scorer("de")
        statistics = sentence_statistics(scorer, lines, references)
        signature = str(scorer.get_signature())
        counts.append(LineCounts(metric=metric, signature=signature, lines=statistics))
        score = synthetic.model_score(1, metric, score_of(scorer, statistics))
        digest = hypotheses_digest(lines)
        scores.append(replace(score, signature=signature, hypotheses_sha256=digest))
    record = synthetic.with_evaluation(synthetic.record(heads), scores=scores)
    write_hypotheses(folder / record.name / "hypotheses", Hypotheses(lines, counts))
    write_record(folder / record.name / "record.json", record)
    return record


@pytest.fixture(scope="module")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "runs" / "some"
    references, one, other = texts(synthetic.TEST_LINES)
    for heads, lines in ((8, one), (1, other), (2, list(reversed(one)))):
        keep(folder, heads, lines, references)
    return folder


@pytest.fixture
def runs(kept_runs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "runs" / "some"
    for path in kept_runs.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(kept_runs)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


QUICK = Settings(resamples=40)


def test_tests_are_made_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs.parent.parent / "tests"
    records = read_records(runs)
    assert make_tests(records, Kept([runs]), out, QUICK) == 0
    shown = "tested: gqa2 against mha on test, greedy\ntested: mqa against mha on test, greedy\n"
    assert capsys.readouterr().out == shown
    made = find_comparisons([runs])
    assert len(made) == 2
    assert make_tests(records, Kept([runs]), out, QUICK) == 0
    assert capsys.readouterr().out == ""
    assert make_tests(records, Kept([runs]), out, replace(QUICK, random_seed=2)) == 0
    assert len(find_comparisons([runs])) == 4
    (pair,) = (p for p in pairs_of(records)[0] if p.variant.name == "mqa")
    comparison = made[comparison_key(pair.sides, QUICK)]
    for metric in TESTED:
        recorded = [pair.score(record, metric).value for record in pair.runs[0]]
        assert comparison.of(metric).together.difference == pytest.approx(
            recorded[1] - recorded[0], abs=1e-9
        )
        assert comparison.of(metric).lines == synthetic.TEST_LINES


def test_damaged_tests_are_made_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs.parent.parent / "tests"
    records = read_records(runs)
    make_tests(records, Kept([runs]), out, QUICK)
    path = sorted(out.iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:99])
    with pytest.raises(ExperimentError, match="not JSON"):
        find_comparisons([runs])
    make_tests(records, Kept([runs]), out, QUICK)
    assert "made again: " in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_what_has_no_translations_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = (path for path in runs.iterdir() if path.name.startswith("gqa2"))
    for path in (job / "hypotheses").iterdir():
        path.unlink()
    assert make_tests(read_records(runs), Kept([runs]), runs / "tests", QUICK) == 0
    shown = capsys.readouterr().out
    assert "not tested: gqa2 against mha on test, greedy: translations " in shown
    assert "tested: mqa against mha on test, greedy\n" in shown


def other_text(folder: Path) -> None:
    (path,) = folder.glob("*.txt.xz")
    other = write_hypotheses(folder, Hypotheses(["another"], []))
    (folder / f"{other}.txt.xz").replace(path)
    (folder / f"{other}{COUNTS}").unlink()


def changed_counts(folder: Path, change: str) -> None:
    (path,) = folder.glob(f"*{COUNTS}")
    counts = msgspec.json.decode(lzma.decompress(path.read_bytes()), type=list[LineCounts])
    if change == "no chrf":
        counts = counts[:1]
    elif change == "lines":
        counts = [replace(each, lines=each.lines[:-1]) for each in counts]
    elif change == "ragged":
        counts = [replace(each, lines=[*each.lines[:-1], [1]]) for each in counts]
    elif change == "other":
        counts = [replace(each, lines=[each.lines[0]] * len(each.lines)) for each in counts]
    path.write_bytes(lzma.compress(msgspec.json.encode(counts)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", "its text has another digest"),
        ("no chrf", "chrf was not counted"),
        ("lines", "bleu has 499 lines, the record 500"),
        ("ragged", "bleu has 500 lines, the record 500, all with as many counts"),
        ("other", "the record's"),
    ],
)
def test_translations_that_are_not_the_records_are_one_line(
    runs: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (job,) = (path for path in runs.iterdir() if path.name.startswith("gqa2"))
    if change == "text":
        other_text(job / "hypotheses")
    else:
        changed_counts(job / "hypotheses", change)
    out = runs.parent.parent / "tests"
    assert make_tests(read_records(runs), Kept([runs]), out, QUICK) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: not tested: gqa2 against mha on test, greedy: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == "tested: mqa against mha on test, greedy\n"  # the rest is made


def test_other_lines_or_signatures_are_not_compared(runs: Path) -> None:
    records = {record.variant: record for record in read_records(runs)}
    scores = [
        replace(s, signature="other") for s in synthetic.finished(records["mqa"]).evaluation.scores
    ]
    changed = synthetic.with_evaluation(records["mqa"], scores=scores)
    ((pair,),) = pairs_of([records["mha"], changed])
    with pytest.raises(ExperimentError, match=r"bleu is of 500 lines \(other\) and of 500"):
        compared(pair, Kept([runs]), QUICK)


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--records", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.endswith("no such folder of records (run an experiment first)\n")


def a_comparison() -> Comparison:
    return comparison(pairs_of([synthetic.record(8), synthetic.record(1)])[0][0], -0.4, 0.2)


def test_tests_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = a_comparison()
    write_comparison(tmp_path / "tests", written)
    assert find_comparisons([tmp_path / "runs"]) == {written.key: written}
    assert find_comparisons([tmp_path / "runs" / "some"]) == {written.key: written}
    assert find_comparisons([], [tmp_path / "tests"]) == {written.key: written}
    assert find_comparisons([tmp_path / "a" / "b" / "c"]) == {}
    with pytest.raises(ExperimentError, match=r"test: no such folder of tests \(run python"):
        find_comparisons([tmp_path / "runs"], [tmp_path / "test"])
    (tmp_path / "tests" / "v0-0123456789abcdef.json").write_text("of another version")
    assert find_comparisons([tmp_path / "runs"]) == {written.key: written}


def test_the_key_is_of_both_sides_and_the_settings() -> None:
    whole = a_comparison()
    swapped = Sides(baseline=whole.sides.variant, variant=whole.sides.baseline)
    keys = {
        whole.key,
        comparison_key(swapped, whole.settings),
        *(
            comparison_key(whole.sides, replace(whole.settings, **change))
            for change in (
                {"resamples": 9}, {"random_seed": 9}, {"level": 0.9}, {"margins": {"bleu": 1.0}},
            )
        ),
    }  # fmt: skip
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("schema_version",), 9, "schema_version: 9, but this code reads 1"),
        (("settings", "resamples"), 9, "another key"),
        (("sides", "variant", 0), "0" * 64, "another key"),
        (("sides", "variant"), [], "length >= 1"),
        (("settings", "margins", "bleu"), 1.0, "bleu has margin 0.5, the settings 1.0"),
        (("metrics", 0, "metric"), "other", "metrics are other, chrf, not bleu, chrf"),
        (("metrics", 0, "seeds"), [], "length >= 1"),
        (("metrics", 0, "margin"), None, "margin and p_worse go together"),
        (("metrics", 0, "together", "difference"), 3.0, "bleu differs by 3, its seeds by -0.1"),
        (("metrics", 0, "together", "interval", "low"), 9.0, "low is 9, above high 0.3"),
        (("metrics", 0, "seeds", 0, "p_bootstrap"), 1.5, "<= 1.0"),
        (("metrics", 0, "seeds", 0, "difference"), math.nan, "not JSON"),
        (("metrics", 0, "more"), 1, "unknown field `more`"),
    ],
)
def test_tests_that_contradict_themselves_are_refused(
    tmp_path: Path, where: tuple[str | int, ...], value: object, message: str
) -> None:
    write_comparison(tmp_path, a_comparison())
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text(encoding="utf-8"))
    part = whole
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        read_comparison(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_committed_tests_are_of_the_committed_translations() -> None:
    records = read_records(RESULTS / "runs")
    made = find_comparisons([RESULTS / "runs"])
    found = [pair for group in group_records(records) for table in pairs(group) for pair in table]
    assert {comparison_key(pair.sides, Settings()) for pair in found} == set(made)
    pair = found[0]
    again = compared(pair, Kept([RESULTS / "runs"]), Settings())
    assert rounded(again) == rounded(made[again.key])


def rounded(tests: Comparison) -> object:
    """Without the last digits, in which machines differ."""
    return json.loads(msgspec.json.encode(tests), parse_float=lambda text: round(float(text), 9))
