"""What a comparison of engines measured, as a file, and the table that is made from it.

Raw samples, counts and what the machine could do are kept; every figure of the table is computed
from them here, on the terminal and in Markdown alike. Nothing here imports torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from rich.table import Table

from experiments.record_parts import (
    CodeInfo,
    Count,
    Hardware,
    MemoryKind,
    Positive,
    RawSeconds,
    Text,
    median_us_per_token,
    require,
)

PAPER_POSITIONS = 256  # Shazeer 2019, section 4.1
Part = Literal["encoder", "decoder", "total"]
PARTS: tuple[Part, ...] = ("encoder", "decoder", "total")
Rates = Annotated[list[float], Meta(min_length=1)]


class ComparisonPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file; unknown keys are errors."""


class WorkloadInfo(ComparisonPart, frozen=True, kw_only=True):
    """What every engine translated.

    `model` is the name of a shape or the folder of a job. `target_tokens` is what each sentence
    was decoded to; null for real text, where the search decides. `source_tokens` is the sum over
    all sentences, without padding.
    """

    model: Text
    weights: Literal["random", "trained"]
    num_heads: Positive
    max_positions: Positive
    beam: Positive
    batch: Positive
    sentences: Positive
    source_tokens: Positive
    target_tokens: Positive | None

    @property
    def title(self) -> str:
        """One line that says everything but the machine."""
        positions = f"{self.max_positions:,} positions"
        if self.weights == "random" and self.max_positions > PAPER_POSITIONS:
            positions = f"the same shape with {positions}"
        search = "greedy" if self.beam == 1 else f"beam {self.beam}"
        start = f"{self.model} ({self.weights} weights, {positions}), {search}, batch {self.batch}"
        if self.target_tokens is None:
            return (
                f"{start}: real text, {self.sentences:,} sentences, "
                f"{self.source_tokens:,} source tokens"
            )
        source = self.source_tokens // self.sentences
        return f"{start}: {source:,} source and {self.target_tokens:,} target tokens"


class EngineSamples(ComparisonPart, frozen=True, kw_only=True):
    """Raw times of one engine with G kv heads, and what its run amounts to.

    `encoder_s` is null where the encoder cannot be told apart. `bytes_by_part` and `flops` are the
    counts of gqa_fairseq.decoding.traffic for the hypotheses that this engine found: what this
    plugin's decoder has to move and compute for them, whichever engine it was. `differing` counts
    best hypotheses that are not those of the first engine with as many kv heads; null where
    engines end a forced length differently. `bleu_0_100` is sacrebleu's with tokenizer 13a; null
    where there are no references.
    """

    engine: Text
    num_kv_heads: Positive
    tokens_produced: Positive
    differing: Count | None
    bleu_0_100: Annotated[float, Meta(ge=0, le=100)] | None
    total_s: RawSeconds
    encoder_s: RawSeconds | None
    bytes_by_part: dict[str, Count]
    flops: Positive
    peak_memory_bytes: Positive | None
    peak_memory_kind: MemoryKind | None

    def __post_init__(self) -> None:
        require(
            self.encoder_s is None or len(self.encoder_s) == len(self.total_s),
            "encoder_s and total_s have different numbers of runs",
        )

    @property
    def name(self) -> str:
        """As a reference; stock and CTranslate2 are multi-head alone."""
        own = self.engine.startswith("gqa")
        return f"{self.engine} with G = {self.num_kv_heads}" if own else self.engine

    @property
    def decoder_s(self) -> list[float] | None:
        """Everything but the encoder, run by run."""
        if self.encoder_s is None:
            return None
        return [t - e for t, e in zip(self.total_s, self.encoder_s, strict=True)]

    def us_per_token(self, part: Part) -> float | None:
        """Microseconds per token of the best hypotheses, or None where it is not known."""
        raw = {"encoder": self.encoder_s, "decoder": self.decoder_s, "total": self.total_s}[part]
        return None if raw is None else median_us_per_token(raw, self.tokens_produced)


class Comparison(ComparisonPart, frozen=True, kw_only=True):
    """Engines on one workload, and what memory and matrix products reached between their runs."""

    workload: WorkloadInfo
    warmup_runs: Positive
    engines: Annotated[list[EngineSamples], Meta(min_length=1)]
    read_bytes_per_s: Rates
    matrix_flops_per_s: Rates

    @property
    def references(self) -> list[EngineSamples]:
        """What the others are compared with: stock, CTranslate2 and, with several G, our MHA."""
        heads = self.workload.num_heads
        names = ["stock", "ctranslate2"]
        if len({engine.num_kv_heads for engine in self.engines}) > 1:
            names.append("gqa")
        found = [
            e for name in names for e in self.engines if (e.engine, e.num_kv_heads) == (name, heads)
        ]
        return found or self.engines[:1]

    def bandwidth_share(self, engine: EngineSamples) -> float | None:
        """Bytes counted, over decoder time, as a share of what reading memory reached."""
        if engine.decoder_s is None:
            return None
        reached = sum(engine.bytes_by_part.values()) / statistics.median(engine.decoder_s)
        return reached / statistics.median(self.read_bytes_per_s)

    def roofline(self, engine: EngineSamples) -> tuple[float, Literal["memory", "arithmetic"]]:
        """Least decoder time in seconds by the counts and the machine's rates, and which binds."""
        memory_s = sum(engine.bytes_by_part.values()) / statistics.median(self.read_bytes_per_s)
        arithmetic_s = engine.flops / statistics.median(self.matrix_flops_per_s)
        if memory_s >= arithmetic_s:
            return memory_s, "memory"
        return arithmetic_s, "arithmetic"


class ComparisonReport(ComparisonPart, frozen=True, kw_only=True):
    """One run of `python -m experiments.benchmark`."""

    created_utc: datetime
    versions: dict[str, str]
    hardware: Hardware
    code: CodeInfo
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]
    threads: Positive
    operators: str = "PyTorch"  # whose the plugin's steps take, but for gqa+torch
    comparisons: Annotated[list[Comparison], Meta(min_length=1)]

    @property
    def machine(self) -> str:
        """One line: what it was measured on."""
        processor = self.hardware.cpu_model
        if self.device == "cuda":
            processor = ", ".join(self.hardware.gpus)
        commit = (self.code.commit or "unknown")[:7] + (" with changes" if self.code.dirty else "")
        packages = [f"{k} {v}" for k, v in self.versions.items() if k in ("torch", "ctranslate2")]
        return (
            f"{processor}, {self.threads} threads, {self.dtype}, {self.operators} operators; "
            f"{', '.join(packages)}; "
            f"commit {commit}, {self.created_utc:%Y-%m-%d}"
        )


def headings(comparison: Comparison) -> list[str]:
    """The columns of a comparison's table."""
    times = [f"{part} µs/token" for part in PARTS]
    faster = [f"times as fast as {ref.name}: decoder / total" for ref in comparison.references]
    bounds = ["decoder: times roofline", "decoder: share of bandwidth"]
    return ["engine", "G", *times, *faster, *bounds, "peak MiB", "other hypotheses", "BLEU"]


def cells(comparison: Comparison) -> Iterable[list[str]]:
    """One row an engine, under `headings`."""
    for engine in comparison.engines:
        decoder_s = engine.decoder_s
        least_s, bound = comparison.roofline(engine)
        memory, differing = engine.peak_memory_bytes, engine.differing
        yield [
            engine.engine,
            str(engine.num_kv_heads),
            *(
                _number(engine.us_per_token(part), ",.0f")
                for part in ("encoder", "decoder", "total")
            ),
            *(_times_as_fast(engine, reference) for reference in comparison.references),
            "-" if decoder_s is None else f"{statistics.median(decoder_s) / least_s:.1f} ({bound})",
            _number(comparison.bandwidth_share(engine), ".0%"),
            _number(None if memory is None else memory / 2**20, ",.0f"),
            "-" if differing is None else f"{differing} of {comparison.workload.sentences}",
            _number(engine.bleu_0_100, ".2f"),
        ]


def terminal_table(comparison: Comparison) -> Table:
    """For rich."""
    table = Table(title=comparison.workload.title, title_justify="left", caption=_note(comparison))
    for heading in headings(comparison):
        is_name = heading == "engine"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    for row in cells(comparison):
        table.add_row(*row)
    return table


def markdown(reports: Sequence[ComparisonReport]) -> str:
    """All tables of the reports, as the documents show them."""
    blocks = []
    for report in reports:
        blocks.append(f"{report.machine}.\n")
        for comparison in report.comparisons:
            columns = headings(comparison)
            rows = [columns, ["---", *["---:"] * (len(columns) - 1)], *cells(comparison)]
            table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
            blocks.append(f"**{comparison.workload.title}**\n\n{table}\n{_note(comparison)}\n")
    return "\n".join(blocks)


def _note(comparison: Comparison) -> str:
    repeats = len(comparison.engines[0].total_s)
    bandwidth = statistics.median(comparison.read_bytes_per_s) / 1e9
    rate = statistics.median(comparison.matrix_flops_per_s) / 1e9
    return (
        f"Medians of {repeats} interleaved runs after {comparison.warmup_runs} warm-up; measured "
        f"between them: {bandwidth:.1f} GB/s read, {rate:,.0f} GFLOP/s in a large matrix product."
    )


def _times_as_fast(engine: EngineSamples, reference: EngineSamples) -> str:
    ratios = []
    for part in PARTS[1:]:
        own, other = engine.us_per_token(part), reference.us_per_token(part)
        ratios.append(_number(None if own is None or other is None else other / own, ".2f"))
    return " / ".join(ratios)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
