"""Tables as text, and how their cells show a number."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.records.measurement import Ratio
from experiments.report.groups import Estimate
from gqa_fairseq.architecture import Architecture

NOT_RUN = "not run"
NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"
NOT_TESTED = "not tested"
NOT_APPLICABLE = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text; `notes` say what the numbers need to be understood.

    `sources` say where the numbers of each row are from: a `Row.source`, or one for each cell;
    empty for what is from no record.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    sources: Sequence[str | Sequence[str]] = ()

    def source(self, row: int, column: int) -> str:
        """Where the number of a cell is from, empty text for none."""
        found = self.sources[row] if self.sources else ""
        return found if isinstance(found, str) else found[column]


def markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table in Markdown, without the end of its last line: the first `text` columns are words.

    Words are to the left, numbers to the right.
    """
    rule = [*["---"] * text, *["---:"] * (len(columns) - text)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |"
        for line in [columns, rule, *rows]
    )


def number(estimate: Estimate | None, digits: int) -> str:
    """Mean, with ± the standard deviation where there are several runs."""
    if estimate is None:
        return NOT_RUN
    mean = f"{estimate.mean:,.{digits}f}"
    if estimate.deviation is None:
        return mean
    return f"{mean} ± {estimate.deviation:.{digits}f}"


# What says how large a model is, under `size_cells`.
SIZE_COLUMNS = ("kv heads", "d_ff enc / dec", "parameters")


def size_cells(architecture: Architecture) -> list[str]:
    """G of the decoder, both d_ff, and the number of parameters."""
    return [
        str(architecture.num_kv_heads),
        f"{architecture.encoder_d_ff} / {architecture.decoder_d_ff}",
        f"{architecture.parameters:,}",
    ]


def mebibytes(size_bytes: float) -> str:
    """Bytes as MiB with one digit."""
    return f"{size_bytes / 2**20:,.1f}"


def times_as_fast(ratio: Ratio) -> str:
    """Such as `1.38x (1.31-1.45)`; without an interval where there is none."""
    median = f"{ratio.median:.2f}x"
    has_interval = ratio.confidence > 0 and ratio.low < ratio.high
    return f"{median} ({ratio.low:.2f}-{ratio.high:.2f})" if has_interval else median
