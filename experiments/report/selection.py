"""Which of a group's numbers answer a question.

What a `Value` reads from a record, `Row.estimate` averages over the runs of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.headline import HEADLINE_SHAPE, main_engine
from experiments.record_parts import BaselineScore, Engine, ModelScore, Timing, search_name
from experiments.records import Record
from experiments.report.groups import Group

Shape = tuple[int, int, int]  # sentences, source tokens, target tokens
Value = Callable[[Record], float | None]


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


def searches(group: Group) -> list[int]:
    """The beams that the group used: greedy (1) and at least one more, 4 as in Shazeer 2019."""
    beams = {1}
    for record in group.records:
        if record.evaluation:
            beams.update(score.beam for score in record.evaluation.scores)
        if record.benchmark:
            beams.update(timing.beam for timing in record.benchmark.timings)
    return sorted(beams if len(beams) > 1 else {1, 4})


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


def timing_value(engine: Engine, beam: int, shape: Shape, field: str) -> Value:
    """Reads a field of a record's timing."""

    def value(record: Record) -> float | None:
        timing = find_timing(record, engine, beam, shape)
        return getattr(timing, field) if timing else None

    return value


def decoder_us(engine: Engine, beam: int, shape: Shape) -> Value:
    """Reads a record's decoder microseconds per output token."""
    return timing_value(engine, beam, shape, "decoder_us_per_token")


def stage_value(stage: str, field: str) -> Value:
    """Reads a field of a record's training, evaluation or benchmark."""

    def value(record: Record) -> float | None:
        found = getattr(record, stage)
        return getattr(found, field) if found else None

    return value


def fixed_shape_training_us(record: Record) -> float | None:
    """Microseconds of training per target token at a fixed shape."""
    timing = record.benchmark.training if record.benchmark else None
    return timing.us_per_target_token if timing else None


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


def score_value(split: str, kind: ScoreKind) -> Value:
    """Reads a record's score (0 to 100)."""

    def value(record: Record) -> float | None:
        for score in record.evaluation.scores if record.evaluation else []:
            if score.split == split and score_kind(score) == kind:
                return score.value_0_100
        return None

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
