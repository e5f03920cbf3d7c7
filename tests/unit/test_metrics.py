"""The table of metrics: tokenizers of languages, and scores that follow from counts of lines."""

import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of, sentence_statistics

WORDS = ["the", "a", "Haus", "house,", "is", "ist", "1,000.5", "don't", "“so”", "über", "—", "."]
LINES = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
PAIRS = st.lists(st.tuples(LINES, LINES), min_size=1, max_size=12)


@pytest.mark.parametrize("name", METRICS)
@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_the_score_of_the_counts_is_sacrebleus_to_the_last_digit(
    name: str, pairs: list[tuple[str, str]], seed: int
) -> None:
    """Of all lines, of some of them, and of some of them more than once, as a bootstrap draws."""
    scorer = METRICS[name].scorer("de")
    hypotheses, references = map(list, zip(*pairs, strict=True))
    counts = sentence_statistics(scorer, hypotheses, references)
    assert len(counts) == len(pairs)
    draw = random.Random(seed)
    some = draw.sample(range(len(pairs)), k=draw.randint(1, len(pairs)))
    drawn = draw.choices(range(len(pairs)), k=len(pairs))
    for choice in (range(len(pairs)), some, drawn):
        expected = scorer.corpus_score(
            [hypotheses[i] for i in choice], [[references[i] for i in choice]]
        )
        assert score_of(scorer, [counts[i] for i in choice]) == expected.score


@pytest.mark.parametrize("name", METRICS)
def test_a_score_keeps_to_its_range(name: str) -> None:
    metric = METRICS[name]
    scorer = metric.scorer("de")
    lines = ["Das ist ein Test, ja.", "Und noch eine Zeile hier."]
    same = score_of(scorer, sentence_statistics(scorer, lines, lines))
    other = score_of(scorer, sentence_statistics(scorer, ["x y z q"] * 2, lines))
    assert same == pytest.approx(metric.highest)
    assert metric.lowest <= other < 5


def test_what_the_counts_of_a_line_are() -> None:
    hypothesis, reference = "a b c d x", "a b c d"
    [bleu] = sentence_statistics(METRICS["bleu"].scorer("de"), [hypothesis], [reference])
    assert bleu == [5, 4, 4, 3, 2, 1, 5, 4, 3, 2]  # lengths, matches, totals
    [chrf] = sentence_statistics(METRICS["chrf"].scorer("de"), [hypothesis], [reference])
    assert len(chrf) == 3 * 6
    assert chrf[:3] == [5, 4, 4]  # characters of both, and those in common


@pytest.mark.parametrize(
    ("target_lang", "tokenizer"), [("de", "13a"), ("en", "13a"), ("zh", "zh"), ("fr", "13a")]
)
def test_bleus_tokenizer_follows_the_target_language(target_lang: str, tokenizer: str) -> None:
    signatures = {}
    for name, metric in METRICS.items():
        scorer = metric.scorer(target_lang)
        sentence_statistics(scorer, ["a"], ["b"])  # a signature counts references
        signatures[name] = str(scorer.get_signature())
    assert f"|tok:{tokenizer}|" in signatures["bleu"]
    assert "|tok:intl|" in signatures["bleu_intl"]
    assert "tok:" not in signatures["chrf"]
    assert all(signature.startswith("nrefs:1|") for signature in signatures.values())


def test_chinese_is_counted_in_characters() -> None:
    scorer = METRICS["bleu"].scorer("zh")
    [counts] = sentence_statistics(scorer, ["我是学生"], ["我是老师"])
    assert counts[:3] == [4, 4, 2]


@pytest.mark.parametrize(
    ("target_lang", "tokenizer", "module"),
    [("ja", "ja-mecab", "MeCab"), ("ko", "ko-mecab", "mecab_ko")],
)
def test_a_tokenizer_that_is_not_installed_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, target_lang: str, tokenizer: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # its import fails
    name = f"sacrebleu.tokenizers.tokenizer_{tokenizer.replace('-', '_')}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ExperimentError) as caught:
        METRICS["bleu"].scorer(target_lang)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"BLEU for {target_lang} needs sacrebleu's tokenizer {tokenizer}")
    assert message.endswith(f"(pip install 'sacrebleu[{target_lang}]')")
    others: list[Any] = [METRICS[name].scorer(target_lang) for name in ("bleu_intl", "chrf")]
    assert all(others)


def test_names_are_the_tables_keys() -> None:
    assert list(METRICS) == [metric.name for metric in METRICS.values()]
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)
