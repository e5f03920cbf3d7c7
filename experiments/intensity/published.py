"""Shazeer 2019, table 2, put through the counts: which bandwidth do the published times imply?

Greedy decoding has 128 sentences on each of 8 cores of a TPUv2. The cache is padded to the whole
length and masked, so every step reads all its positions. The paper does not give the type of the
elements: 16 bits are assumed, and with 32 the bandwidths double.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.table import Table

from experiments.intensity.machines import PRESETS as MACHINES
from experiments.intensity.models import PRESETS as MODELS
from experiments.intensity.models import architecture_of
from experiments.report.papers.reference import find_table, read_papers
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.costs import step_work
from gqa_fairseq.parity import regrouped
from gqa_fairseq.roofline import Load, Machine, step_seconds

ARXIV, TABLE, COLUMN = "1911.02150", "Table 2", "greedy decoder"
SENTENCES, CORES, CORES_A_CHIP, LENGTH, WINDOW = 1024, 8, 2, 128, 32
TYPE = "bfloat16"


@dataclass(frozen=True)
class Implied:
    """One row of the table: a step as published, and what its bytes say, of one core."""

    attention: str
    us_per_token: float
    step_s: float
    bytes_moved: int
    bytes_per_s: float
    share_of_peak: float
    predicted_s: float


def core(chip: Machine) -> Machine:
    """One of the two cores of a chip, with its own memory."""
    rates = {kind: rate / CORES_A_CHIP for kind, rate in chip.flops_per_s.items()}
    return replace(
        chip,
        bytes_per_s=chip.bytes_per_s / CORES_A_CHIP,
        flops_per_s=rates,
        memory_bytes=chip.memory_bytes // CORES_A_CHIP,
    )


def implied() -> list[Implied]:
    """The rows of the published table, in its order."""
    published = find_table(read_papers(), ARXIV, TABLE)
    machine = core(MACHINES["TPUv2"])
    multi_head = architecture_of(MODELS["paper"])
    load = Load(SENTENCES // CORES, LENGTH, LENGTH, weights=TYPE, cache=TYPE)
    found = []
    for attention, own in _rows(multi_head).items():
        us_per_token = float(published.shown({"attention": attention}, COLUMN))
        work = step_work(
            own,
            batch=load.batch,
            beam=1,
            source_tokens=LENGTH,
            length=LENGTH,
            element_bytes=load.element_bytes,
        )
        step_s = us_per_token * 1e-6 * SENTENCES
        rate = work.bytes_moved / step_s
        found.append(
            Implied(
                attention,
                us_per_token,
                step_s,
                work.bytes_moved,
                rate,
                rate / machine.bytes_per_s,
                step_seconds(own, load, machine),
            )
        )
    return found


def _rows(multi_head: Architecture) -> dict[str, Architecture]:
    multi_query = regrouped(multi_head, 1, "all", "matched")
    return {
        "multi-head": multi_head,
        "multi-query": multi_query,
        "multi-head local": replace(multi_head, window=WINDOW),
        "multi-query local": replace(multi_query, window=WINDOW),
    }


def published_table() -> Table:
    """`implied` for a terminal."""
    rows = implied()
    table = Table(
        title=f"Shazeer 2019, table 2, greedy: one step on one core of TPUv2, {TYPE} assumed",
        title_justify="left", title_style="", box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("attention")
    for heading in (
        "µs/token", "ms a step", "MB a step", "GB/s implied", "of the peak", "ms predicted",
        "times as fast", "predicted",
    ):  # fmt: skip
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            row.attention,
            f"{row.us_per_token:g}",
            f"{1e3 * row.step_s:.1f}",
            f"{row.bytes_moved / 1e6:,.0f}",
            f"{row.bytes_per_s / 1e9:.0f}",
            f"{row.share_of_peak:.0%}",
            f"{1e3 * row.predicted_s:.2f}",
            f"{rows[0].step_s / row.step_s:.1f}",
            f"{rows[0].predicted_s / row.predicted_s:.1f}",
        )
    return table
