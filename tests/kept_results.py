"""All records of a folder, and all tests of significance beside it: each must be readable."""

from collections.abc import Sequence
from pathlib import Path

from experiments.records.record import Record, read_record, record_files
from experiments.records.significance import Comparison, comparison_files, read_comparison


def read_records(folder: Path) -> list[Record]:
    """In the order of the paths."""
    return [read_record(path) for path in record_files(folder)]


def find_comparisons(records: Sequence[Path], given: Sequence[Path] = ()) -> dict[str, Comparison]:
    """By key."""
    return {path.stem: read_comparison(path) for path in comparison_files(records, given)}
