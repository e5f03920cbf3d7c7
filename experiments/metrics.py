"""The metrics of translation quality, declared once: evaluation, records, report and tracking
follow this table.

A metric is sacrebleu's, with its signature. BLEU's tokenizer follows the target language: 13a, but
for Chinese, Japanese and Korean, which are not written in words.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from experiments.errors import ExperimentError

TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
DEFAULT_TOKENIZER = "13a"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One score of a file of hypotheses.

    `lowest` and `highest` bound its value, `digits` after the point are shown. `tokenizer` is the
    name of sacrebleu's for a target language, None for a metric that has none. `make` builds the
    scorer of sacrebleu for such a tokenizer.
    """

    name: str
    label: str
    lowest: float
    highest: float
    digits: int
    tokenizer: Callable[[str], str | None]
    make: Callable[[str | None], Any]

    def scorer(self, target_lang: str) -> Any:
        """sacrebleu's metric; raises ExperimentError where its tokenizer is not installed."""
        tokenize = self.tokenizer(target_lang)
        try:
            return self.make(tokenize)
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ExperimentError(
                f"{self.label} for {target_lang} needs sacrebleu's tokenizer {tokenize}, which is "
                f"not installed: {reason} (pip install 'sacrebleu[{target_lang}]')"
            ) from error


def sentence_statistics(
    scorer: Any, hypotheses: Sequence[str], references: Sequence[str]
) -> list[list[int]]:
    """sacrebleu's counts [lines][k], from which its significance tests start as well.

    Their sum over any choice of lines gives the score of that choice. BLEU: lengths of hypothesis
    and reference, then matches and totals of 1- to 4-grams. chrF: for each order the n-grams of
    hypothesis and reference, and their matches.
    """
    counts = scorer._extract_corpus_statistics(list(hypotheses), [list(references)])
    return [[int(count) for count in line] for line in counts]


def score_of(scorer: Any, counts: Sequence[Sequence[int]]) -> float:
    """The corpus score of lines with these counts, equal to sacrebleu's `corpus_score`."""
    return scorer._aggregate_and_compute(list(counts)).score


def scores_of_sums(scorer: Any, sums: Iterable[Sequence[float]]) -> list[float]:
    """The corpus scores of counts that are added up already, of each choice of lines its own."""
    return [scorer._compute_score_from_stats(counts).score for counts in sums]


def _bleu(tokenize: str | None) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenize)


def _chrf(tokenize: str | None) -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="bleu",
            label="BLEU",
            lowest=0,
            highest=100,
            digits=1,
            tokenizer=lambda target_lang: TOKENIZERS.get(target_lang, DEFAULT_TOKENIZER),
            make=_bleu,
        ),
        Metric(
            name="bleu_intl",
            label="BLEU intl",
            lowest=0,
            highest=100,
            digits=1,
            tokenizer=lambda target_lang: "intl",
            make=_bleu,
        ),
        Metric(
            name="chrf",
            label="chrF",
            lowest=0,
            highest=100,
            digits=1,
            tokenizer=lambda target_lang: None,
            make=_chrf,
        ),
    )
}
