"""Which of a group's numbers answer a question.

What a `Value` reads from a result, `Row.estimate` averages over the runs of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.metrics import METRICS, Metric
from experiments.records.measurement import RealText, Timing, search_label
from experiments.records.parts import (
    LengthPenalty,
    ModelFreeScore,
    ModelScore,
    Score,
    Training,
)
from experiments.records.record import Finished
from experiments.records.speed import Shape, fixed_length_timings, shape_of
from experiments.report.groups import Group

Value = Callable[[Finished], float | None]
HEADLINE_METRIC = METRICS["bleu"]


@dataclass(frozen=True)
class ScoreKind:
    """Scores that stand in one column."""

    name: str
    beam: int
    length_penalty: LengthPenalty
    length_alpha: float

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]

    @property
    def heading(self) -> str:
        """Such as `BLEU, beam 4`."""
        return f"{self.metric.label}, {search_label(self.beam)}"


def test_splits(group: Group) -> list[str]:
    """The splits that the group scores or could, `dev` and `train` not among them."""
    return sorted(set(group.first.data.splits) - {"train", "dev"})


def searches(group: Group) -> list[int]:
    """The beams that the group used: greedy (1) and at least one more, 4 as in Shazeer 2019."""
    beams = {1}
    for result in group.results:
        beams.update(score.beam for score in result.evaluation.scores)
    if group.measurement:
        beams.update(workload.beam for workload, _ in fixed_length_timings(group.measurement))
    return sorted(beams if len(beams) > 1 else {1, 4})


def quality_splits(group: Group) -> list[str]:
    """The splits that some record has scores on."""
    return sorted({score.split for r in group.results for score in r.evaluation.scores})


def group_engine(group: Group) -> str:
    """The engine that translated; one, for it is part of the config that a group shares."""
    return ", ".join(sorted({result.evaluation.engine for result in group.results}))


def timed_shapes(group: Group) -> list[Shape]:
    """(batch, source, target) of the group's timings, the headline's first."""
    timings = fixed_length_timings(group.measurement) if group.measurement else []
    return list(dict.fromkeys(shape_of(workload) for workload, _ in timings))


def find_timing(group: Group, beam: int, shape: Shape | None) -> Timing | None:
    """The timing of the group's measurement for this search and shape."""
    for workload, timing in fixed_length_timings(group.measurement) if group.measurement else []:
        if (workload.beam, shape_of(workload)) == (beam, shape):
            return timing
    return None


def headline_timing(group: Group, beam: int) -> Timing | None:
    """The timing that the overview shows for this search."""
    return find_timing(group, beam, next(iter(timed_shapes(group)), None))


def decoding_timings(group: Group) -> list[Timing]:
    """All timings of decoding: of fixed lengths, the headline's shape first, then of real text."""
    if group.measurement is None:
        return []
    fixed = [timing for _, timing in fixed_length_timings(group.measurement)]
    return fixed + [t for t in group.measurement.timings if isinstance(t.workload, RealText)]


def score_kind(score: ModelScore) -> ScoreKind:
    """The column that `score` belongs to."""
    return ScoreKind(score.metric, score.beam, score.length_penalty, score.length_alpha)


def score_kinds(group: Group, split: str) -> list[ScoreKind]:
    """The kinds of score that any record of the group has on `split`."""
    kinds = {
        score_kind(score)
        for result in group.results
        for score in result.evaluation.scores
        if score.split == split
    }
    metrics = list(METRICS)
    return sorted(kinds, key=lambda kind: (metrics.index(kind.name), kind.beam, str(kind)))


def headline_kind(group: Group, split: str, beam: int) -> ScoreKind | None:
    """The headline's metric; fairseq's length penalty before GNMT's."""
    kinds = [
        kind
        for kind in score_kinds(group, split)
        if kind.metric is HEADLINE_METRIC and kind.beam == beam
    ]
    return min(kinds, key=lambda kind: (kind.length_penalty, kind.length_alpha), default=None)


def score_value(split: str, kind: ScoreKind) -> Value:
    """Reads a result's score."""

    def value(result: Finished) -> float | None:
        for score in result.evaluation.scores:
            if score.split == split and score_kind(score) == kind:
                return score.value
        return None

    return value


def of_training(value: Callable[[Training], float]) -> Value:
    """Reads what training did; a model that was converted alone has none."""
    return lambda result: value(result.training) if result.training else None


def model_free_scores(group: Group, split: str) -> list[dict[str, ModelFreeScore]]:
    """For each such translation its scores on `split` by metric: the same whatever the model."""
    found: dict[str, dict[str, ModelFreeScore]] = {}
    for result in group.results:
        for score in result.evaluation.model_free:
            if score.split == split:
                found.setdefault(score.name, {}).setdefault(score.metric, score)
    return [found[name] for name in sorted(found)]


def all_scores(group: Group, split: str) -> list[Score]:
    """Every score on `split`, of models and of what needs none."""
    return [
        score
        for result in group.results
        for score in [*result.evaluation.scores, *result.evaluation.model_free]
        if score.split == split
    ]
