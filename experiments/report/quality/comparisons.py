"""Which rows of a group are tested against which: what must be computed, and what is shown.

A model from scratch is tested against the multi-head model of its baseline, an uptrained one
against the control: the model that was converted, trained on alike with its heads as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.errors import ExperimentError
from experiments.records.measurement import search_label
from experiments.records.parts import ModelScore
from experiments.records.record import Record
from experiments.records.significance import Comparison, Settings, Sides, comparison_key
from experiments.report.exhibits.uptrained import control_of, converted
from experiments.report.groups import Group, Row
from experiments.report.selection import (
    HEADLINE_METRIC,
    ScoreKind,
    score_kind,
    score_kinds,
    test_splits,
)
from gqa_fairseq.parity import is_variant


@dataclass(frozen=True)
class Pair:
    """A row and what it is tested against, on one test set with one search, seed by seed."""

    split: str
    kind: ScoreKind
    variant: Row
    baseline: Row
    runs: tuple[tuple[Record, Record], ...]  # (baseline, variant)

    @property
    def title(self) -> str:
        """Such as `test, beam 4, fairseq alpha 0.6`: what the pairs of one table share."""
        penalty = f", {self.kind.length_penalty} alpha {self.kind.length_alpha:g}"
        search = search_label(self.kind.beam)
        return f"{self.split}, {search}{penalty if self.kind.beam > 1 else ''}"

    @property
    def seeds(self) -> list[int]:
        return [variant.seed for _, variant in self.runs]

    @property
    def sides(self) -> Sides:
        baseline, variant = zip(
            *(
                (self.score(b).hypotheses_sha256, self.score(v).hypotheses_sha256)
                for b, v in self.runs
            ),
            strict=True,
        )
        return Sides(baseline=list(baseline), variant=list(variant))

    def score(self, record: Record, metric: str = HEADLINE_METRIC.name) -> ModelScore:
        """The record's score by that metric; raises ExperimentError where it has none."""
        found = self.found(record, self.split, self.kind, metric)
        if found is None:
            raise ExperimentError(f"{record.name} has no {metric} (evaluate again: rerun=evaluate)")
        return found

    @staticmethod
    def found(
        record: Record, split: str, kind: ScoreKind, metric: str = HEADLINE_METRIC.name
    ) -> ModelScore | None:
        """The record's score of that kind by that metric; None where it has none."""
        wanted = ScoreKind(metric, kind.beam, kind.length_penalty, kind.length_alpha)
        scores = record.evaluation.scores if record.evaluation else ()
        scored = (s for s in scores if s.split == split and score_kind(s) == wanted)
        return next(scored, None)

    def tests(self, group: Group) -> Comparison | None:
        """None where the tests were not made."""
        return group.comparisons.get(comparison_key(self.sides, Settings()))


def pairs(group: Group) -> list[list[Pair]]:
    """The pairs of each table: one test set, one search; from scratch, then uptrained."""
    rivals = [(row, rival) for row in group.rows if (rival := _rival(group, row))]
    uptrained = [each for each in rivals if each[0].uptraining]
    from_scratch = [each for each in rivals if not each[0].uptraining]
    tables = [
        [
            Pair(split, kind, row, rival, runs)
            for row, rival in members
            if (runs := common_runs(row, rival, split, kind))
        ]
        for members in (from_scratch, uptrained)
        for split in test_splits(group)
        for kind in score_kinds(group, split)
        if kind.metric is HEADLINE_METRIC
    ]
    return [table for table in tables if table]


def _rival(group: Group, row: Row) -> Row | None:
    if row.uptraining:
        rival = control_of(converted(group), row.uptraining.alpha)
    else:
        beside = (r for r in group.from_scratch if is_variant(row.architecture, r.architecture))
        rival = next(beside, None)
    return None if rival is row else rival


def common_runs(
    row: Row, rival: Row, split: str, kind: ScoreKind
) -> tuple[tuple[Record, Record], ...]:
    """(rival's run, row's run) of each seed for which both have the score."""
    own, theirs = (scored(each.records, split, kind) for each in (row, rival))
    return tuple((theirs[seed], own[seed]) for seed in sorted(own) if seed in theirs)


def scored(records: Iterable[Record], split: str, kind: ScoreKind) -> dict[int, Record]:
    """By seed, those that have the score."""
    return {record.seed: record for record in records if Pair.found(record, split, kind, kind.name)}
