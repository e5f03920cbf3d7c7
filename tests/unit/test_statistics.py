"""sacrebleu's p-values, honest intervals and Holm's correction, by hand and by simulation."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_results import read_records
from sacrebleu.significance import PairedTest
from synthetic_comparisons import pairs_of, texts

from experiments.metrics import METRICS, score_of, sentence_statistics
from experiments.records.significance import TESTED, Settings
from experiments.report.quality.statistics import (
    CHUNK,
    Floats,
    compare,
    holm,
    t_interval,
    t_quantile,
)
from experiments.significance import Kept

RESULTS = Path(__file__).resolve().parents[2] / "results"


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


@pytest.mark.parametrize(("differing", "least"), [(1, 1.0), (2, 0.5), (3, 0.25)])
def test_shuffles_that_differ_as_much_count_against_a_difference(
    differing: int, least: float
) -> None:
    """Of systems that differ in few lines the exact two-sided p-value is known: all signs alike."""
    baseline = np.zeros((1, 50, 1))
    variant = baseline.copy()
    variant[0, :differing, 0] = 0.1
    (tests,), _ = compare(
        baseline, variant, lambda sums: sums[:, 0], Settings(resamples=4000), None
    )
    assert tests.p_randomization == pytest.approx(least, abs=0.03)


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
    records = {record.variant: record for record in read_records(RESULTS / "runs" / "quickstart")}
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
