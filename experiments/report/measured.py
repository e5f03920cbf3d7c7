"""Tables of a measurement, for the terminal and in Markdown. Nothing here imports torch.

Every figure is computed from the samples of one timing: microseconds are medians, and a ratio is
the median of the ratios of its rounds, with its interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rich.console import JustifyMethod
from rich.table import Table

from experiments.records.measurement import (
    PHASES,
    Contender,
    FixedLengths,
    Measurement,
    Ratio,
    RealText,
    Samples,
    Timing,
    TrainingText,
    median_ratio,
    speed_up,
)
from gqa_fairseq.architecture import Architecture, Heads, distinct_names

# Engines that others are compared with, beside the plugin's own multi-head attention.
REFERENCE_ENGINES = ("stock", "ctranslate2", "products")
OWN_ENGINES = ("gqa", "fairseq")  # of decoding and of training
_NOTHING = "-"
_PACKAGES = ("nvidia-driver", "torch", "ctranslate2")


def references(timing: Timing) -> list[Samples]:
    """What the others are compared with; none where there is one contender.

    Stock fairseq, CTranslate2 and, where architectures differ, our own multi-head attention; where
    none of them is there, the first contender.
    """
    if len(timing.samples) < 2:
        return []
    engines = list(REFERENCE_ENGINES)
    if len({s.contender.architecture for s in timing.samples}) > 1:
        engines += OWN_ENGINES
    found = [s for engine in engines for s in timing.samples if _is_reference(s.contender, engine)]
    return found or timing.samples[:1]


def _is_reference(contender: Contender, engine: str) -> bool:
    own = contender.architecture
    is_one = own.is_multi_head if engine in REFERENCE_ENGINES else own.is_baseline
    return contender.engine == engine and is_one


def headings(timing: Timing) -> list[str]:
    """The columns of a timing's table; some have nothing to show, see `filled_table`."""
    names = [f"{phase} µs/token" for phase in PHASES]
    faster = [
        f"times as fast as {_reference_name(ref, timing)}: decoder / total"
        for ref in references(timing)
    ]
    bounds = ["decoder: times roofline", "decoder: share of bandwidth"]
    return [
        "architecture",
        "engine",
        *names,
        *faster,
        *bounds,
        "KV cache MiB",
        "peak MiB",
        "other hypotheses",
        "BLEU",
    ]


def cells(timing: Timing) -> Iterator[list[str]]:
    """One row a contender, under `headings`."""
    names = _names(timing)
    for samples in timing.samples:
        yield [
            names[samples.contender.architecture],
            samples.contender.engine,
            *(_number(samples.us_per_token(phase), ",.0f") for phase in PHASES),
            *(_times_as_fast(reference, samples) for reference in references(timing)),
            _roofline(timing, samples),
            _number(timing.bandwidth_share(samples), ".0%"),
            _mib(samples.kv_cache_bytes),
            _mib(samples.peak_memory_bytes),
            _differing(timing, samples),
            _number(samples.bleu, ".2f"),
        ]


def filled_table(timing: Timing) -> list[list[str]]:
    """The headings and the rows, without the columns that have nothing in any row."""
    columns = list(zip(headings(timing), *cells(timing), strict=True))
    filled = [column for column in columns if set(column[1:]) - {_NOTHING, f"{_NOTHING} / -"}]
    return [list(row) for row in zip(*filled, strict=True)]


def title(timing: Timing) -> str:
    """The workload, and the weights and positions that it was done with."""
    weights = " and ".join(sorted({s.contender.weights for s in timing.samples}))
    positions = ""
    if isinstance(timing.workload, FixedLengths):
        positions = f", {timing.workload.max_positions:,} positions"
    return f"{timing.workload.title} ({weights} weights{positions})"


def note(timing: Timing) -> str:
    """What the figures are, and what the machine reached between the rounds."""
    bandwidth = statistics.median(timing.read_bytes_per_s) / 1e9
    rate = statistics.median(timing.matrix_flops_per_s) / 1e9
    rounds = "1 round" if timing.rounds == 1 else f"{timing.rounds} rounds"
    ratios = ""
    if references(timing):
        confidence = median_ratio([1.0] * timing.rounds).confidence
        ratios = (
            " Ratios are medians of the ratios of the rounds, in brackets an interval"
            f" with {confidence:.0%} confidence."
        )
        if timing.rounds == 1:
            ratios = " One round gives no interval."
    return (
        f"Medians of {rounds} in which the contenders took turns, after {timing.warmup_runs} "
        f"warm-up.{ratios} Measured between the rounds: {bandwidth:.1f} GB/s read, "
        f"{rate:,.0f} GFLOP/s in a large matrix product."
    )


def machine(measurement: Measurement) -> str:
    """One line: what it was measured on."""
    made_by = measurement.provenance
    processor = made_by.hardware.cpu_model
    if measurement.device == "cuda":
        processor = ", ".join(made_by.hardware.gpus)
    packages = [f"{name} {v}" for name, v in made_by.versions.items() if name in _PACKAGES]
    return (
        f"{processor}, {made_by.threads} threads, {measurement.dtype}, {measurement.operators} "
        f"operators; {', '.join(packages)}; commit {made_by.code.label}, "
        f"{measurement.created_utc:%Y-%m-%d}"
    )


def architectures(measurement: Measurement) -> list[str]:
    """One line for each architecture: its numbers."""
    names = distinct_names(s.contender.architecture for t in measurement.timings for s in t.samples)
    return [_in_numbers(own, name) for own, name in names.items()]


def terminal_table(timing: Timing) -> Table:
    """For rich."""
    table = Table(title=title(timing), title_justify="left", caption=note(timing))
    head, *rows = filled_table(timing)
    for heading in head:
        is_name = heading in ("architecture", "engine")
        justify: JustifyMethod = "left" if is_name else "right"
        table.add_column(heading, justify=justify, no_wrap=is_name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(measurements: Sequence[Measurement]) -> str:
    """All tables of the measurements, as the documents show them."""
    blocks = []
    for measurement in measurements:
        known = "".join(f"- {line}\n" for line in architectures(measurement))
        blocks.append(f"{machine(measurement)}.\n\n{known}")
        for timing in measurement.timings:
            head, *rows = filled_table(timing)
            ruler = ["---" if name in ("architecture", "engine") else "---:" for name in head]
            table = "".join(f"| {' | '.join(row)} |\n" for row in [head, ruler, *rows])
            blocks.append(f"**{title(timing)}**\n\n{table}\n{note(timing)}\n")
    return "\n".join(blocks)


def _in_numbers(own: Architecture, name: str) -> str:
    widths = f"{own.encoder_d_ff:,}"
    if own.encoder_d_ff != own.decoder_d_ff:
        widths = f"{own.encoder_d_ff:,} (encoder) and {own.decoder_d_ff:,} (decoder)"
    heads = _heads(own.decoder_heads)
    if own.encoder_heads != own.decoder_heads:
        heads = f"{_heads(own.encoder_heads)} (encoder) and {heads} (decoder)"
    if own.window is not None:
        heads += f" with a window of {own.window} positions"
    return (
        f"{name}: {own.encoder_layers} + {own.decoder_layers} layers, d_model {own.d_model:,}, "
        f"d_ff {widths}, {heads}, vocabulary {own.vocab_size:,}, {own.parameters:,} parameters"
    )


def _heads(heads: Heads) -> str:
    return f"{heads.num_heads} heads of {heads.head_dim} on {heads.num_kv_heads}"


def _reference_name(reference: Samples, timing: Timing) -> str:
    """Stock and CTranslate2 are multi-head alone; others, or several, have their model's name."""
    contender = reference.contender
    alike = [s for s in references(timing) if s.contender.engine == contender.engine]
    if contender.engine in REFERENCE_ENGINES and len(alike) == 1:
        return contender.engine
    if len({s.contender.engine for s in timing.samples}) == 1:
        return _names(timing)[contender.architecture]
    return f"{_names(timing)[contender.architecture]}, {contender.engine}"


def _names(timing: Timing) -> dict[Architecture, str]:
    return distinct_names(samples.contender.architecture for samples in timing.samples)


def _times_as_fast(reference: Samples, own: Samples) -> str:
    """Of the decoder and in total; of the reference itself 1, by definition."""
    if reference is own:
        return "1 / 1" if own.encoder_s else f"{_NOTHING} / 1"
    return " / ".join(_ratio(speed_up(reference, own, phase)) for phase in PHASES[1:])


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return _NOTHING
    if ratio.confidence == 0:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _roofline(timing: Timing, samples: Samples) -> str:
    decoder_s, least = samples.raw_s("decoder"), timing.roofline(samples)
    if decoder_s is None or least is None:
        return _NOTHING
    least_s, bound = least
    return f"{statistics.median(decoder_s) / least_s:.1f} ({bound})"


def _differing(timing: Timing, samples: Samples) -> str:
    if samples.differing is None:
        return _NOTHING
    workload = timing.workload
    if isinstance(workload, RealText | TrainingText):
        return f"{samples.differing} of {workload.sentences}"
    return f"{samples.differing} of {workload.batch}"


def _mib(size_bytes: int | None) -> str:
    return _number(None if size_bytes is None else size_bytes / 2**20, ",.0f")


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)
