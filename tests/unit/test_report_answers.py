"""Answers: what is said of each variant, what is open, and the scale of a group."""

from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
from synthetic_comparisons import group_of, pairs_of

from experiments.records.record import Record
from experiments.report.answers import answers, in_order, lead, open_questions, scale
from experiments.report.exhibits.kv_heads import kv_heads
from experiments.report.groups import Group, group_records, source_of

replace = msgspec.structs.replace


def test_an_answer_without_tests_and_speed_says_so() -> None:
    (answer,) = answers(group_of([synthetic.record(8), synthetic.record(1)], measured=False))
    assert answer.variant == "mqa"
    assert answer.sentence == (
        "1 key/value head in place of 8, against mha. Quality is not tested. Its speed was not "
        "measured beside that of mha."
    )
    (answer,) = answers(group_of([synthetic.record(8), synthetic.record(1)]))
    assert (
        "Its decoder is 2.16 times as fast (94% interval 2.16 to 2.17) with beam 4"
        in answer.sentence
    )
    assert "MiB of keys and values in place of" in answer.sentence


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"placement": "decoder"}, "1 key/value head in place of 8 in the decoder alone"),
        ({"num_heads": 1, "head_dim": 16}, "1 head of 16 in place of 8 of 24"),
        ({"num_heads": 4, "head_dim": 48, "num_kv_heads": 4}, "4 heads of 48 in place of 8 of 24"),
        (
            {"num_kv_heads": 8, "window": 32},
            "8 key/value heads, and a window of 32 positions in the decoder",
        ),
    ],
)
def test_an_answer_says_what_is_another_in_the_variant(variant: dict[str, Any], said: str) -> None:
    records = [synthetic.record(8), synthetic.record(**{"num_kv_heads": 1, **variant})]
    (answer,) = answers(group_of(records, measured=False))
    assert answer.sentence.startswith(f"{said}, against mha. ")


def test_the_answer_on_an_uptrained_model_says_how_it_was_made() -> None:
    """Of several alphas the largest; the control is what the others are set against."""
    records = [
        synthetic.record(heads, uptrained=(method, alpha))
        for heads, method in ((8, "identity"), (1, "mean"))
        for alpha in (0.0, 0.05)
    ]
    (answer,) = answers(group_of(records, measured=False))
    said = lead(group_of(records)) or ""
    assert said.startswith(
        "mha-identity-0.05, with 8 key/value heads and trained on like the others, has "
    )
    assert answer.variant == "mqa-ff768-mean-0.05"
    assert answer.sentence.startswith(
        "1 key/value head in place of 8, converted with the method mean and trained on for 5% of "
        "the updates, against the model with all heads that was trained on alike. Quality is not "
        "tested."
    )


def test_the_baseline_is_no_variant_with_more_heads_than_it() -> None:
    """Rows stand from most key/value heads to fewest."""
    more = synthetic.record(num_kv_heads=16, num_heads=16, head_dim=12)
    group = group_of([more, synthetic.record(8), synthetic.record(2), synthetic.record(1)])
    assert group.rows[0].name == "mha-16x12"
    assert (lead(group) or "").startswith("mha, with 8 key/value heads, has ")
    assert kv_heads(group) is not None


def test_what_is_open_is_said() -> None:
    said = " ".join(open_questions(group_of([synthetic.record(8), synthetic.record(1)])))
    assert said.startswith("One seed: nothing is said of other trainings")
    assert "Times are of one machine (Synthetic CPU)" in said
    several = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2, 3)]
    assert "seed" not in " ".join(open_questions(group_of(several, measured=False)))
    assert "Speed was not measured." in open_questions(group_of(several, measured=False))
    best = 100.0
    scores = [
        replace(score, value=best) for score in synthetic.finished(several[0]).evaluation.model_free
    ]
    beaten = [synthetic.with_evaluation(record, model_free=scores) for record in several]
    assert any(
        line.startswith("No model here translates well: the translation of the nearest training")
        for line in open_questions(group_of(beaten))
    )


def group_tested(records: list[Record], ends: dict[str, tuple[float, float, float]]) -> Group:
    """Variants by name with the 90 % interval of their difference and p_worse."""
    found = {}
    for pair in (pair for table in pairs_of(records) for pair in table):
        tests = synthetic.comparison(pair, *ends[pair.variant.name])
        found[tests.key] = tests
    (group,) = group_records(records, [], found)
    return group


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            (-1.3, -0.7, 0.9),
            "It costs quality, more than 0.5 BLEU: BLEU -1.00 over 3 seeds, 95% "
            "interval -1.40 to -0.60. These data show that it loses less than 1.31 BLEU. ",
        ),
        (
            (-1.3, -0.3, 0.9),
            "It costs quality: BLEU -0.80 over 3 seeds, 95% interval -1.40 to "
            "-0.20. These data show that it loses less than 1.31 BLEU, but not that it loses less "
            "than 0.5 BLEU. ",
        ),
        (
            (-0.4, -0.2, 0.01),
            "It costs quality, but less than 0.5 BLEU: BLEU -0.30 over 3 seeds, "
            "95% interval -0.50 to -0.10. Its",
        ),
        (
            (-0.4, 0.2, 0.01),
            "If it costs quality, it is less than 0.5 BLEU: BLEU -0.10 over 3 "
            "seeds, 95% interval -0.50 to +0.30. Its",
        ),
        (
            (-0.4, 0.2, 0.04),
            "Whether it costs quality is open: BLEU -0.10 over 3 seeds, 95% "
            "interval -0.50 to +0.30. By itself its test shows that it loses less than 0.5 "
            "BLEU, but not with Holm's correction for the 2 variants that are tested together. ",
        ),
        (
            (-0.9, 0.2, 0.2),
            "Whether it costs quality is open: BLEU -0.35 over 3 seeds, 95% "
            "interval -1.00 to +0.30. These data show that it loses less than 0.91 BLEU, but "
            "not that it loses less than 0.5 BLEU. ",
        ),
        (
            (0.2, 0.4, 0.001),
            "It gains quality: BLEU +0.30 over 3 seeds, 95% interval +0.10 to +0.50. Its",
        ),
    ],
)
def test_an_answer_says_what_is_lost_and_what_is_shown(
    ends: tuple[float, float, float], said: str
) -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2, 3)]
    _, answer = answers(group_tested(records, {"gqa2": (-0.9, 0.2, 0.2), "mqa": ends}))
    assert f"against mha. {said}" in answer.sentence


def test_what_can_be_told_apart_is_said_by_variant() -> None:
    """Consistent with each answer: 0 is outside an interval where half of it is exceeded."""
    records = [synthetic.record(heads, seed) for heads in (8, 2, 1) for seed in (1, 2, 3)]
    group = group_tested(records, {"gqa2": (-0.6, -0.2, 0.01), "mqa": (-3.0, 1.0, 0.9)})
    (said,) = [line for line in open_questions(group) if "told from none" in line]
    assert said.endswith("on the 500 lines of test that is 0.30 to 2.10 with 3 seeds.")
    (said,) = [line for line in open_questions(group) if "Holm" in line]
    assert "is tested for 2 variants, and these 2 p-values are corrected together" in said
    alone = open_questions(group_tested(records[:3] + records[6:], {"mqa": (-3.0, 1.0, 0.9)}))
    assert any(line.endswith("lines of test that is 2.10 with 3 seeds.") for line in alone)
    assert "Holm" not in "".join(alone)


def test_one_training_is_not_said_to_be_more_exact_than_three() -> None:
    """Its interval is over lines alone, so that it is narrow, and stands apart from the others."""
    several = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2, 3)]
    ends = {"gqa2": (-0.6, -0.2, 0.4), "mqa": (-3.0, 1.0, 0.9)}
    group = group_tested([*several, synthetic.record(2)], ends)
    (said,) = [line for line in open_questions(group) if "told from none" in line]
    assert said.endswith("that is 2.10 with 3 seeds, and 0.30 with one seed, over lines alone.")
    (one,) = [answer for answer in answers(group) if answer.variant == "gqa2"]
    assert "It costs quality for this seed: " in one.sentence
    assert "These data show for this seed that it loses less than " in one.sentence


def test_a_variant_with_one_seed_among_several_is_of_that_seed() -> None:
    records = [synthetic.record(heads, seed) for heads in (8, 2) for seed in (1, 2, 3)]
    records.append(synthetic.record(1, 2))
    group = group_tested(records, dict.fromkeys(("gqa2", "mqa"), (-0.9, 0.2, 0.2)))
    gqa, mqa = answers(group)
    assert "Whether it costs quality is open: BLEU -0.35 over 3 seeds" in gqa.sentence
    assert "Whether it costs quality for this seed is open: BLEU -0.35, 95%" in mqa.sentence
    assert open_questions(group)[0] == (
        "One seed of mqa: nothing is said of other trainings, which differ by chance."
    )
    pairs = [synthetic.record(heads, seed) for heads in (8, 1) for seed in (1, 2)]
    assert open_questions(group_of(pairs))[0].startswith("2 seeds are few: ")


def test_answers_name_the_trainings_that_diverged() -> None:
    records = [synthetic.record(8, seed) for seed in (1, 2)] + [synthetic.record(1, 1)]
    records += [synthetic.record(1, seed, diverged_after=150) for seed in (2, 3)]
    records += [synthetic.record(8, 3, diverged_after=90), synthetic.record(2, diverged_after=60)]
    found = {answer.variant: answer for answer in answers(group_of(records))}
    assert list(found) == ["mqa", "mha", "gqa2"]
    assert found["mqa"].sentence.endswith(
        "2 of its 3 trainings diverged (seed 2 after update 150, seed 3 after update 150): what is "
        "said of quality leaves those out."
    )
    assert found["mha"].sentence.startswith("8 key/value heads. 1 of its 3 trainings diverged ")
    assert found["mha"].source == source_of(records[-2])
    assert found["gqa2"].sentence == (
        "2 key/value heads. Its training diverged (seed 1 after update 60): so it has neither "
        "quality nor speed."
    )


def test_each_conversion_answers_with_its_own_longest_uptraining() -> None:
    made = {("identity", 8): (0.05, 0.1), ("mean", 1): (0.05, 0.1), ("first", 1): (0.05,)}
    records = [
        synthetic.record(heads, uptrained=(method, alpha))
        for (method, heads), alphas in made.items()
        for alpha in alphas
    ]
    records.append(synthetic.record(1, uptrained=("first", 0.1), diverged_after=30))
    found = [answer.variant for answer in answers(group_of(records))]
    assert sorted(found[:2]) == ["mqa-ff768-first-0.05", "mqa-ff768-mean-0.1"]
    assert found[2:] == ["mqa-ff768-first-0.1"]


# Scales.


def test_without_a_training_that_ended_no_scale_is_known() -> None:
    group = group_of([synthetic.record(8, diverged_after=9)], measured=False)
    assert scale(group) == "unknown"
    said = " ".join(open_questions(group))
    assert f"{group.first.architecture.parameters:,} parameters and 9,900 training pairs" in said
    assert "smaller" not in said
    alone = group_of([synthetic.record(1, uptrained=("mean", 0.0))], measured=False)
    assert scale(alone) == "unknown"


def test_scales_are_told_apart_and_the_largest_comes_first() -> None:
    toy = synthetic.record(8, updates=100)
    small = synthetic.record(8, data_name="multi30k_en_de", updates=600)
    uptrained = synthetic.record(1, updates=100, uptrained=("mean", 0.1))
    other = replace(uptrained, job=replace(uptrained.job, experiment="uptrain"))
    groups = group_records([toy, small, other])
    assert [scale(group) for group in in_order(groups)] == ["small", "toy", "toy"]
    assert in_order(groups)[1].from_scratch
    assert not in_order(groups)[2].from_scratch


def test_of_one_scale_the_group_of_most_seeds_comes_first() -> None:
    one = synthetic.record(8, data_name="local", updates=600)
    two = [synthetic.record(8, data_name="multi30k_en_de", updates=600, seed=s) for s in (1, 2)]
    ordered = in_order(group_records([one, *two]))
    assert [group.first.data.name for group in ordered] == ["multi30k_en_de", "local"]
