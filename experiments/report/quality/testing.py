"""The tests of a pair of systems, made from the translations that records keep."""

from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from experiments.errors import ExperimentError
from experiments.metrics import METRICS, scores_of_sums
from experiments.records.hypotheses import COUNTS, Hypotheses, read_hypotheses
from experiments.records.record import Record
from experiments.records.significance import (
    SCHEMA_VERSION,
    TESTED,
    Comparison,
    MetricTests,
    Settings,
)
from experiments.report.quality.comparisons import Pair
from experiments.report.quality.statistics import Floats, compare


class Kept:
    """The translations below some folders; each file is read once."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = {
            path.name.removesuffix(COUNTS): path.parent
            for folder in folders
            for path in sorted(folder.rglob(f"*{COUNTS}"))
        }
        self._read: dict[str, Hypotheses] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._folders

    def counts(self, pair: Pair, record: Record, metric: str) -> Floats:
        """sacrebleu's counts [lines, counts] of a record's translations.

        Raises ExperimentError when they were not counted or are not those of the record's score.
        """
        score = pair.score(record, metric)
        digest = score.hypotheses_sha256
        where = f"{self._folders[digest] / digest}{COUNTS}"
        try:
            if digest not in self._read:
                self._read[digest] = read_hypotheses(self._folders[digest], digest)
            kept = self._read[digest].of(metric)
        except ExperimentError as error:
            raise ExperimentError(f"{record.name}: {error}") from error
        if len({len(line) for line in kept.lines}) != 1 or len(kept.lines) != score.lines:
            raise ExperimentError(
                f"{where}: {metric} has {len(kept.lines)} lines, the record {score.lines}, all "
                "with as many counts (restore the file)"
            )
        counts = np.array(kept.lines, dtype=np.float64)
        value = float(_scores(metric, counts.sum(0, keepdims=True))[0])
        if kept.signature != score.signature or not abs(value - score.value) < 1e-6:
            raise ExperimentError(
                f"{where}: {metric} is {value:.4f} ({kept.signature}), the record's "
                f"{score.value:.4f} ({score.signature}); restore the file, or evaluate again "
                "(rerun=evaluate)"
            )
        return counts


def compared(pair: Pair, kept: Kept, settings: Settings) -> Comparison:
    """The tests of one pair; raises ExperimentError when its sides cannot be compared."""
    metrics = []
    for metric in TESTED:
        scores = [pair.score(record, metric) for record in chain.from_iterable(pair.runs)]
        first = scores[0]
        for score in scores:
            if (score.lines, score.signature) != (first.lines, first.signature):
                raise ExperimentError(
                    f"{metric} is of {score.lines} lines ({score.signature}) and of {first.lines} "
                    f"({first.signature}) (evaluate both again: rerun=evaluate)"
                )
        baseline, variant = (
            np.stack([kept.counts(pair, run[side], metric) for run in pair.runs]) for side in (0, 1)
        )
        margin = settings.margins.get(metric)
        seeds, together = compare(baseline, variant, partial(_scores, metric), settings, margin)
        metrics.append(
            MetricTests(
                metric=metric,
                signature=first.signature,
                lines=first.lines,
                margin=margin,
                seeds=seeds,
                together=together,
            )
        )
    return Comparison(
        schema_version=SCHEMA_VERSION, settings=settings, sides=pair.sides, metrics=metrics
    )


def _scores(metric: str, sums: Floats) -> Floats:
    # Counts are tokenized already: the tokenizer of the target language changes nothing.
    return np.array(scores_of_sums(METRICS[metric].make("none"), sums.tolist()))
