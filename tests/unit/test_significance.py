"""Tests of quality: sacrebleu's p-values, honest intervals, and what is refused, kept and said."""

import json
import lzma
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.significance import PairedTest
from synthetic_records import comparison, metric_tests

from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of, sentence_statistics
from experiments.records.hypotheses import (
    COUNTS,
    Hypotheses,
    LineCounts,
    hypotheses_digest,
    write_hypotheses,
)
from experiments.records.record import Record, read_records, write_record
from experiments.records.significance import (
    TESTED,
    Comparison,
    Settings,
    Sides,
    comparison_key,
    find_comparisons,
    read_comparison,
    write_comparison,
)
from experiments.report.comparisons import Pair, pairs
from experiments.report.groups import Group, group_records
from experiments.report.statistics import CHUNK, Floats, compare, holm, t_interval, t_quantile
from experiments.report.verdicts import untested, verdict, verdict_tables
from experiments.significance import Kept, compared, main, make_tests

RESULTS = Path(__file__).resolve().parents[2] / "results"
WORDS = ["das", "Haus", "ist", "grün", "und", "der", "Baum", ",", "die", "Datei", "neu"]
replace = msgspec.structs.replace


# What is computed


def texts(lines: int = 60) -> tuple[list[str], list[str], list[str]]:
    """References and two systems, the second a little worse."""
    draw = random.Random(3)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(3, 15))) for _ in range(lines)]

    def spoilt(share: float) -> list[str]:
        return [
            " ".join(w if draw.random() > share else draw.choice(WORDS) for w in line.split())
            for line in references
        ]

    return references, spoilt(0.30), spoilt(0.36)


def counts_of(metric: str, hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """One run, [1, lines, counts]."""
    scorer = METRICS[metric].make("13a")
    return np.array([sentence_statistics(scorer, hypotheses, references)], dtype=np.float64)


def sacrebleus_score(metric: str, sums: Floats) -> Floats:
    scorer = METRICS[metric].make("13a")
    return np.array([score_of(scorer, [line]) for line in sums.tolist()])


@pytest.mark.parametrize("metric", TESTED)
def test_p_values_are_sacrebleus(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: the draws are the same, over more than one chunk of them."""
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    references, one, other = texts()
    settings = Settings(resamples=CHUNK + 150)
    seeds, _ = compare(
        counts_of(metric, one, references),
        counts_of(metric, other, references),
        lambda sums: sacrebleus_score(metric, sums),
        settings,
        None,
    )
    expected = {}
    for kind in ("bs", "ar"):
        scorer = METRICS[metric].make("13a")
        scorer._cache_references([references])
        systems = [("one", one), ("other", other)]
        test = PairedTest(
            systems, {metric: scorer}, [references], kind, n_samples=settings.resamples
        )
        _, found = test()
        (baseline, variant) = next(found[name] for name in found if name != "System")
        expected[kind] = variant.p_value
        difference = variant.score - baseline.score
    assert (seeds[0].p_bootstrap, seeds[0].p_randomization) == (expected["bs"], expected["ar"])
    assert seeds[0].difference == pytest.approx(difference, abs=1e-12)
    assert 0.01 < seeds[0].p_randomization < 0.99  # not one that any test would give


def test_sacrebleus_command_says_the_same(tmp_path: Path) -> None:
    references, one, other = texts()
    for name, lines in (("ref", references), ("one", one), ("other", other)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shown = {}
    for kind in ("bs", "ar"):
        command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "one", "other", "-m", "bleu"]
        command += [f"--paired-{kind}", f"--paired-{kind}-n", "300", "--format", "json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        shown[kind] = json.loads(done.stdout)[1]["BLEU"]["p_value"]
    (tests,), _ = compare(
        counts_of("bleu", one, references),
        counts_of("bleu", other, references),
        lambda sums: sacrebleus_score("bleu", sums),
        Settings(resamples=300),
        None,
    )
    assert shown == {"bs": tests.p_bootstrap, "ar": tests.p_randomization}


def test_a_system_does_not_differ_from_itself() -> None:
    """sacrebleu gives 1 / (resamples + 1) here."""
    references, one, _ = texts(20)
    counts = counts_of("bleu", one, references)
    (tests,), together = compare(
        counts, counts, lambda sums: sacrebleus_score("bleu", sums), Settings(resamples=50), 0.5
    )
    assert (tests.p_bootstrap, tests.p_randomization) == (1.0, 1.0)
    assert (together.tost.low, together.tost.high, together.difference) == (0, 0, 0)
    assert together.p_worse == 1 / 51


@pytest.mark.parametrize("shape", [(1, 9, 3), (2, 10, 3), (1, 10, 4), (10, 3)])
def test_sides_with_other_lines_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the sides' counts have the shapes"):
        compare(np.ones((1, 10, 3)), np.ones(shape), means, Settings(), None)
    with pytest.raises(ValueError, match="the sides' counts have the shapes"):
        compare(np.ones((1, 0, 3)), np.ones((1, 0, 3)), means, Settings(), None)


def means(sums: Floats) -> Floats:
    """A score that is a mean, whose truth is known: counts are a value and 1."""
    return sums[:, 0] / sums[:, 1]


def drawn_side(values: Floats) -> Floats:
    return np.stack([values, np.ones_like(values)], axis=-1)


def simulate(
    seeds: int, of_seed: float, *, times: int, margin: float = 0.5, lines: int = 60
) -> dict[str, float]:
    """How often intervals hold the truth and tests cry wolf, where what is said is known.

    The difference is `-margin` in truth, so that each non-inferiority shown is false; what lines
    have in common has deviation 1, and a training's own deviation is `of_seed`. p-values are of
    sides that do not differ.
    """
    rng = np.random.default_rng(11)
    counted = dict.fromkeys(("covered", "seed covered", "wrongly shown", "bootstrap", "random"), 0)
    for _ in range(times):
        baseline = rng.normal(20, 3, (1, lines)) + rng.normal(0, 0.5, (seeds, lines))
        own = rng.normal(0, 1, (1, lines)) + rng.normal(0, 0.5, (seeds, lines))
        trained = rng.normal(0, of_seed, (seeds, 1))
        settings = Settings(resamples=300, random_seed=int(rng.integers(2**31)))
        sides = drawn_side(baseline), drawn_side(baseline + own + trained - margin)
        of_seeds, together = compare(*sides, means, settings, margin)
        interval = together.interval
        counted["covered"] += interval.low <= -margin <= interval.high
        interval = of_seeds[0].interval
        counted["seed covered"] += interval.low <= trained[0, 0] - margin <= interval.high
        counted["wrongly shown"] += together.tost.low > -margin
        (alike,), _ = compare(
            drawn_side(baseline[:1]), drawn_side(baseline[:1] + own[:1]), means, settings, None
        )
        counted["bootstrap"] += alike.p_bootstrap <= 0.05
        counted["random"] += alike.p_randomization <= 0.05
    return {what: count / times for what, count in counted.items()}


def check_rates(found: dict[str, float], times: int, slack: float) -> None:
    """Within what `times` tries tell apart (3.3 deviations, one chance in a thousand).

    `slack` is what the method itself is off by: percentiles of some tens of lines are a little
    narrow, and the standard error of few seeds counts what lines add twice.
    """
    chance = 3.3 * math.sqrt(0.05 * 0.95 / times)
    assert found["covered"] >= 0.95 - chance - slack
    assert found["seed covered"] == pytest.approx(0.95, abs=chance + slack)
    assert found["wrongly shown"] <= 0.05 + chance + slack
    assert found["random"] == pytest.approx(0.05, abs=chance)
    # sacrebleu's own test: about twice as often as it says.
    assert found["bootstrap"] == pytest.approx(0.10, abs=1.4 * chance + slack)


@pytest.mark.parametrize(("seeds", "of_seed"), [(1, 0.0), (3, 1.0)])
def test_intervals_hold_the_truth_and_alarms_are_rare(seeds: int, of_seed: float) -> None:
    times = 150
    check_rates(simulate(seeds, of_seed, times=times), times, slack=0.01)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("seeds", "of_seed"), [(1, 0.0), (2, 1.0), (3, 0.0), (3, 0.1), (3, 1.0), (5, 0.1), (10, 1.0)]
)
def test_intervals_and_alarms_at_length(seeds: int, of_seed: float) -> None:
    times = 2000
    check_rates(simulate(seeds, of_seed, times=times), times, slack=0.01)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("metric", TESTED)
def test_alarms_on_real_translations(metric: str) -> None:
    """Each line's two translations change sides at random: then nothing differs in truth."""
    records = {record.variant: record for record in read_records(RESULTS / "runs")}
    (pair,) = (p for p in pairs_of(list(records.values()))[0] if p.variant.name == "mqa")
    kept = Kept([RESULTS / "runs"])
    one, other = (kept.counts(pair, records[name], metric)[:300] for name in ("mha", "mqa"))
    rng = np.random.default_rng(4)
    times, alarms, covered = 300, 0, 0
    for _ in range(times):
        mine = rng.integers(2, size=(len(one), 1))
        sides = (mine * one + (1 - mine) * other)[None], (mine * other + (1 - mine) * one)[None]
        settings = Settings(resamples=200, random_seed=int(rng.integers(2**31)))
        (tests,), _ = compare(*sides, lambda sums: sacrebleus_score(metric, sums), settings, None)
        alarms += tests.p_randomization <= 0.05
        covered += tests.interval.low <= 0 <= tests.interval.high
    chance = 3.3 * math.sqrt(0.05 * 0.95 / times)
    assert alarms / times == pytest.approx(0.05, abs=chance)
    assert covered / times == pytest.approx(0.95, abs=chance)


@pytest.mark.parametrize(
    ("level", "degrees", "expected"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.90, 2, 2.9200),
        (0.95, 3, 3.1824),
        (0.90, 4, 2.1318),
        (0.95, 9, 2.2622),
        (0.99, 30, 2.7500),
    ],
)
def test_students_t_is_the_printed_tables(level: float, degrees: int, expected: float) -> None:
    assert t_quantile(level, degrees) == pytest.approx(expected, abs=5e-5)


def test_an_interval_of_seeds_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0], 0.95)
    assert found is not None
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert t_interval([1.0], 0.95) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_lowers_nothing(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert sorted(adjusted) == [adjusted[index] for index in order]


# What is compared with what


def pairs_of(records: list[Record]) -> list[list[Pair]]:
    (group,) = group_records(records)
    return pairs(group)


def test_models_from_scratch_are_tested_against_mha_by_seed() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2)]
    records.append(synthetic.record(1, 3))  # which no multi-head run goes with
    tables = pairs_of(records)
    assert [table[0].title for table in tables] == ["test, greedy", "test, beam 4, fairseq alpha 1"]
    for table in tables:
        assert [(p.variant.name, p.baseline.name, p.seeds) for p in table] == [
            ("gqa2", "mha", [1, 2]),
            ("mqa", "mha", [1, 2]),
        ]
    pair = tables[1][1]
    assert pair.sides.baseline == [pair.score(r).hypotheses_sha256 for r in records[:2]]
    assert pair.sides.variant == [pair.score(r).hypotheses_sha256 for r in records[4:6]]
    assert pair.score(records[4]).beam == 4


def test_uptrained_models_are_tested_against_the_control() -> None:
    records = [synthetic.record(8), synthetic.record(1)]
    records += [
        synthetic.record(8, uptrained=("identity", 0.1)),
        synthetic.record(1, uptrained=("mean", 0.1)),
        synthetic.record(1, uptrained=("mean", 0.05)),  # which no control goes with
    ]
    named = [[(p.variant.name, p.baseline.name) for p in table] for table in pairs_of(records)]
    # Greedy and beam 4 of each; Holm's correction is over the variants of a table.
    assert named == [[("mqa", "mha")]] * 2 + [[("mqa-ff768-mean-0.1", "mha-identity-0.1")]] * 2


def test_without_a_baseline_nothing_is_tested() -> None:
    assert pairs_of([synthetic.record(1), synthetic.record(2)]) == []
    assert pairs_of([synthetic.record(8)]) == []


# What is made of records


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


# What is kept


def a_comparison() -> Comparison:
    return comparison(pairs_of([synthetic.record(8), synthetic.record(1)])[0][0], -0.4, 0.2)


def test_tests_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = a_comparison()
    write_comparison(tmp_path / "tests", written)
    assert find_comparisons([tmp_path / "runs"]) == {written.key: written}
    assert find_comparisons([tmp_path / "runs" / "some"]) == {written.key: written}
    assert find_comparisons([], [tmp_path / "tests"]) == {written.key: written}
    assert find_comparisons([tmp_path / "a" / "b" / "c"]) == {}
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


# What is said


def group_with(ends: dict[str, tuple[float, float, float]], seeds: Sequence[int] = (1,)) -> Group:
    """Variants by name with the 90 % interval of their difference and p_worse."""
    heads = {"mha": 8, "gqa4": 4, "gqa2": 2, "mqa": 1}
    records = [
        synthetic.record(number, seed)
        for name, number in heads.items()
        if name == "mha" or name in ends
        for seed in seeds
    ]
    found = {}
    for table in pairs_of(records):
        for pair in table:
            if all(not math.isnan(end) for end in ends[pair.variant.name]):
                tests = comparison(pair, *ends[pair.variant.name])
                found[tests.key] = tests
    (group,) = group_records(records, (), found)
    return group


def sentences(group: Group) -> list[str]:
    return [note for note in verdict_tables(group)[0].notes if " against " in note]


def test_no_worse_is_what_the_lower_bound_shows() -> None:
    group = group_with({"gqa4": (-0.40, 0.20, 0.01), "gqa2": (-0.41, 0.7, 0.01)})
    assert sentences(group) == [
        "gqa4 against mha: BLEU -0.10 (-0.50 to +0.30), half-width 0.40; no worse than 0.5 BLEU "
        "for this seed: shown; neither worse nor better by 0.5 BLEU: shown.",
        "gqa2 against mha: BLEU +0.14 (-0.51 to +0.80), half-width 0.66; no worse than 0.5 BLEU "
        "for this seed: shown; neither worse nor better by 0.5 BLEU: not shown.",
    ]


@pytest.mark.parametrize(("low", "smallest"), [(-0.5, "0.51"), (-0.501, "0.51"), (-1.2345, "1.24")])
def test_what_is_not_shown_has_a_smallest_margin(low: float, smallest: str) -> None:
    group = group_with({"mqa": (low, 0.2, 0.2)}, seeds=(1, 2, 3))
    (said,) = sentences(group)
    assert said.endswith(
        "no worse than 0.5 BLEU: not shown; the smallest margin that this data can show is "
        f"{smallest} BLEU."
    )
    assert float(smallest) > -low


def test_what_holm_takes_back_is_said() -> None:
    alone = group_with({"mqa": (-0.45, 0.1, 0.03)})
    assert "shown; neither" in sentences(alone)[0]
    of_two = group_with({"gqa2": (-0.45, 0.1, 0.04), "mqa": (-0.45, 0.1, 0.03)})
    for said in sentences(of_two):
        assert "shown by itself, but not with Holm's correction for 2 variants; neither" in said
    with_a_sure_one = group_with({"gqa2": (-0.2, 0.1, 0.001), "mqa": (-0.45, 0.1, 0.03)})
    assert "Holm" not in "".join(sentences(with_a_sure_one))


def test_a_row_a_seed_and_one_for_all() -> None:
    table = verdict_tables(group_with({"mqa": (-0.4, 0.2, 0.01)}, seeds=(1, 2)))[0]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["seed"] for row in rows] == ["1", "2", "all 2"]
    assert rows[0]["BLEU difference"] == "-0.10 (-0.50 to +0.30)"
    assert rows[0]["BLEU p randomization"] == "0.0400 (0.0400)"
    assert rows[2]["BLEU p randomization"] == "–"
    # Synthetic losses differ by 0.004 a head whatever the seed.
    assert rows[2]["dev nats/token difference"] == "+0.028 (+0.028 to +0.028)"
    assert any("2 seeds are few" in note for note in table.notes)
    assert any("Student's t over seeds" in note for note in table.notes)


def test_p_values_are_adjusted_for_the_variants_of_the_table() -> None:
    ends = dict.fromkeys(("gqa4", "gqa2", "mqa"), (-0.4, 0.2, 0.01))
    table = verdict_tables(group_with(ends))[0]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert {row["chrF p bootstrap"] for row in rows} == {"0.0200 (0.0600)"}
    assert {row["chrF p randomization"] for row in rows} == {"0.0400 (0.1200)"}


def test_what_was_not_tested_says_so() -> None:
    missing = (math.nan, math.nan, math.nan)
    table = verdict_tables(group_with({"gqa2": (-0.4, 0.2, 0.01), "mqa": missing}))[0]
    assert table.rows[1][:3] == ["mqa", "mha", "1"]
    assert set(table.rows[1][3:]) == {"not tested"}
    nothing = group_with({"mqa": missing})
    assert verdict_tables(nothing) == []
    assert "python -m experiments.significance" in (untested(nothing) or "")
    assert untested(group_with({})) is None  # nothing to test


def test_a_verdict_needs_a_margin() -> None:
    pair = pairs_of([synthetic.record(8), synthetic.record(1)])[0][0]
    with pytest.raises(AssertionError):
        verdict(pair, metric_tests("chrf", -0.1, 0.1), 0.01, 1)


# What is committed


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
