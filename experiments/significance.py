"""Test each variant's translations against the baseline's, and keep what came out.

    python -m experiments.significance --records outputs/runs/quickstart --out outputs/tests

Tests that are there are not made again. The counts that records keep suffice: no reference is
needed. A report shows the tests that it finds; it makes none.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.system.surroundings import settle
from experiments.arguments import Parser
from experiments.errors import ExperimentError
from experiments.metrics import METRICS, scores_of_sums
from experiments.records.hypotheses import COUNTS, Hypotheses, read_hypotheses
from experiments.records.record import Record, read_record, record_files
from experiments.records.significance import (
    SCHEMA_VERSION,
    TESTED,
    Comparison,
    MetricTests,
    Settings,
    comparison_key,
    read_comparison,
    write_comparison,
)
from experiments.records.storage import read_each
from experiments.report.comparisons import Pair, pairs
from experiments.report.groups import group_records
from experiments.report.statistics import Floats, compare


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


def make_tests(
    records: Sequence[Record], kept: Kept, out: Path, settings: Settings | None = None
) -> int:
    """Make the tests that `out` lacks, with a line for each that is made or cannot be.

    Returns how many have translations that are not those of their records, or cannot be compared.
    """
    settings = settings or Settings()
    tables = [table for group in group_records(records) for table in pairs(group)]
    failed = 0
    for pair in chain.from_iterable(tables):
        sides = pair.sides
        name = f"{pair.variant.name} against {pair.baseline.name} on {pair.title}"
        if _is_made(out / f"{comparison_key(sides, settings)}.json"):
            continue
        lacking = [digest for digest in [*sides.baseline, *sides.variant] if digest not in kept]
        if lacking:
            print(f"not tested: {name}: translations {lacking[0][:12]} are not beside the records")
            continue
        try:
            write_comparison(out, compared(pair, kept, settings))
            print(f"tested: {name}")
        except ExperimentError as error:
            print(f"error: not tested: {name}: {error}", file=sys.stderr)
            failed += 1
    return failed


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


def _is_made(path: Path) -> bool:
    """Whether the tests are there; those that are damaged are made again."""
    try:
        return path.exists() and bool(read_comparison(path))
    except ExperimentError as error:
        print(f"made again: {error}")
        return False


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.significance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--records",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of record.json files with their hypotheses, at any depth (may be given "
        "several times)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/tests"),
        metavar="DIR",
        help="folder (%(default)s)",
    )
    settle()
    try:
        options = parser.parse_args(arguments)
        files = [path for folder in options.records for path in record_files(folder)]
        records, refused = read_each(dict.fromkeys(files), read_record)
        for line in refused:
            print(f"error: left out: {line}", file=sys.stderr)
        failed = make_tests(list(records.values()), Kept(options.records), options.out)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if failed or refused else 0


if __name__ == "__main__":
    sys.exit(main())
