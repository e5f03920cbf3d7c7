"""Translations that records keep: one file each, named by its digest, with the counts of each line.

    DIGEST.txt.xz          the translations, one a line
    DIGEST.counts.json.xz  for every metric sacrebleu's counts of each line

From the counts every test of significance can be computed, with no reference at hand: references
may be text that must not be redistributed.
"""

import hashlib
import lzma
from pathlib import Path

import msgspec

from experiments.errors import ExperimentError
from experiments.records.storage import read_bytes, write_bytes

COUNTS = ".counts.json.xz"


class LineCounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """sacrebleu's counts [lines][k] for one metric (experiments.metrics.sentence_statistics)."""

    metric: str
    signature: str
    lines: list[list[int]]


class Hypotheses(msgspec.Struct, frozen=True):
    """Translations in the order of the references, and their counts by metric.

    `lines` is empty where only the counts are kept.
    """

    lines: list[str]
    counts: list[LineCounts]

    def of(self, metric: str) -> LineCounts:
        """Raises ExperimentError when that metric was not counted."""
        for counts in self.counts:
            if counts.metric == metric:
                return counts
        raise ExperimentError(f"{metric} was not counted (evaluate again: rerun=evaluate)")


def hypotheses_digest(lines: list[str]) -> str:
    """sha256 of the file of these lines."""
    return hashlib.sha256(_text(lines)).hexdigest()


def write_hypotheses(folder: Path, hypotheses: Hypotheses, *, keep_text: bool = True) -> str:
    """Write both files, or the counts alone; returns the digest."""
    digest = hypotheses_digest(hypotheses.lines)
    counts = msgspec.json.encode(hypotheses.counts, order="deterministic")
    write_bytes(folder / f"{digest}{COUNTS}", lzma.compress(counts))
    if keep_text:
        write_bytes(folder / f"{digest}.txt.xz", lzma.compress(_text(hypotheses.lines)))
    return digest


def read_hypotheses(folder: Path, digest: str) -> Hypotheses:
    """Raises ExperimentError when they are not there, or not those of the digest."""
    counts_path, text_path = folder / f"{digest}{COUNTS}", folder / f"{digest}.txt.xz"
    try:
        counts = msgspec.json.decode(
            lzma.decompress(read_bytes(counts_path)), type=list[LineCounts]
        )
        text = lzma.decompress(read_bytes(text_path)) if text_path.exists() else None
    except (lzma.LZMAError, msgspec.DecodeError) as error:
        raise ExperimentError(f"{folder}/{digest}: cannot be read: {error}") from error
    if text is not None and hashlib.sha256(text).hexdigest() != digest:
        raise ExperimentError(f"{text_path}: its text has another digest (restore the file)")
    return Hypotheses(text.decode("utf-8").removesuffix("\n").split("\n") if text else [], counts)


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8")
