"""What is compared with what, and what is said of it."""

import math
from collections.abc import Sequence

import pytest
import synthetic_records as synthetic
from synthetic_comparisons import pairs_of
from synthetic_records import comparison, metric_tests

from experiments.report.groups import Group, group_records
from experiments.report.quality.verdicts import untested, verdict, verdict_tables


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
