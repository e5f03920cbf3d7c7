"""Which of a group's numbers answer a question: readers of a record for `Row.estimate`."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.headline import HEADLINE_SHAPE, main_engine
from experiments.record_parts import BaselineScore, Engine, ModelScore, Timing, search_name
from experiments.records import Record
from experiments.report.groups import Group

SEARCHES = (1, 4)  # beams: greedy and beam 4, as in both papers' comparisons
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ScoreKind:
    """Scores that stand in one column."""

    metric: str
    tokenize: str | None
    beam: int
    engine: Engine
    length_penalty: str
    length_alpha: float

    @property
    def heading(self) -> str:
        """Such as `BLEU 13a, beam 4`."""
        name = "chrF" if self.metric == "chrf" else f"BLEU {self.tokenize}"
        return f"{name}, {search_label(self.beam)}"


def search_label(beam: int) -> str:
    """`greedy` or `beam 4`."""
    return search_name(beam).replace("beam", "beam ")


def test_splits(group: Group) -> list[str]:
    """The splits that the group scores or could, `dev` and `train` not among them."""
    return sorted(set(group.first.data.splits) - {"train", "dev"})


def quality_splits(group: Group) -> list[str]:
    """The splits that some record has scores on."""
    return sorted(
        {
            score.split
            for record in group.records
            if record.evaluation
            for score in record.evaluation.scores
        }
    )


def group_engine(group: Group) -> Engine:
    """The engine that the overview shows."""
    return "gqa" if any(main_engine(record) == "gqa" for record in group.records) else "stock"


def timed_shapes(group: Group) -> list[Shape]:
    """(batch, source, target) of the group's timings, the headline's first."""
    shapes = {
        (timing.batch, timing.source_tokens, timing.target_tokens)
        for record in group.records
        if record.benchmark
        for timing in record.benchmark.timings
    }
    return sorted(shapes, key=lambda shape: (shape != HEADLINE_SHAPE, shape))


def timed_engines(group: Group) -> list[Engine]:
    """The engines of the group's timings."""
    return sorted(
        {
            timing.engine
            for record in group.records
            if record.benchmark
            for timing in record.benchmark.timings
        }
    )


def find_timing(record: Record, engine: Engine, beam: int, shape: Shape) -> Timing | None:
    """The timing of `record` for this engine, search and shape."""
    for timing in record.benchmark.timings if record.benchmark else []:
        found = (timing.batch, timing.source_tokens, timing.target_tokens)
        if (timing.engine, timing.beam, found) == (engine, beam, shape):
            return timing
    return None


def decoder_us(engine: Engine, beam: int, shape: Shape) -> Callable[[Record], float | None]:
    """Reads a record's decoder microseconds per output token."""

    def value(record: Record) -> float | None:
        timing = find_timing(record, engine, beam, shape)
        return timing.decoder_us_per_token if timing else None

    return value


def find_score(record: Record, split: str, kind: ScoreKind) -> ModelScore | None:
    """The score of `record` on `split` of this kind."""
    for score in record.evaluation.scores if record.evaluation else []:
        if score.split == split and score_kind(score) == kind:
            return score
    return None


def score_kind(score: ModelScore) -> ScoreKind:
    """The column that `score` belongs to."""
    return ScoreKind(
        score.metric,
        score.tokenize,
        score.beam,
        score.engine,
        score.length_penalty,
        score.length_alpha,
    )


def score_kinds(group: Group, split: str) -> list[ScoreKind]:
    """The kinds of score that any record of the group has on `split`."""
    kinds = {
        score_kind(score)
        for record in group.records
        if record.evaluation
        for score in record.evaluation.scores
        if score.split == split
    }
    return sorted(kinds, key=lambda k: (k.metric, k.tokenize or "", k.beam, str(k)))


def headline_kind(group: Group, split: str, beam: int) -> ScoreKind | None:
    """BLEU 13a of the group's engine; fairseq's length penalty before GNMT's."""
    kinds = [
        kind
        for kind in score_kinds(group, split)
        if (kind.metric, kind.tokenize, kind.beam) == ("bleu", "13a", beam)
        and kind.engine == group_engine(group)
    ]
    return min(kinds, key=lambda kind: (kind.length_penalty, kind.length_alpha), default=None)


def score_value(split: str, kind: ScoreKind) -> Callable[[Record], float | None]:
    """Reads a record's score."""

    def value(record: Record) -> float | None:
        score = find_score(record, split, kind)
        return score.value_0_100 if score else None

    return value


def baseline_scores(group: Group, split: str) -> dict[str, list[BaselineScore]]:
    """Scores on `split` by baseline; the same text is scored whatever the model."""
    found: dict[str, list[BaselineScore]] = {}
    for record in group.records:
        scores = record.evaluation.baselines if record.evaluation else []
        for score in scores:
            if score.split == split and score not in found.setdefault(score.baseline, []):
                found[score.baseline].append(score)
    return found
