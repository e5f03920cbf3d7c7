"""The measured part of docs/intensity.md, and its pictures, from the records of cells alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from experiments.errors import ExperimentError
from experiments.intensity.campaign import (
    NotMeasured,
    Rest,
    Why,
    read_folders,
    read_rest,
)
from experiments.intensity.cells import CLOSE, CellRecord, Prediction, closeness, rates_of
from experiments.intensity.published import ARXIV, TABLE
from experiments.records.measurement import Ratio, Samples, search_label, speed_up
from experiments.records.storage import write_bytes, write_text
from experiments.report.cells import markdown_rows
from experiments.report.measured import machine as machine_line
from experiments.report.papers.reference import find_table, read_papers
from experiments.report.pictures.drawing import GREY, picture, style
from gqa_fairseq.roofline import Load, decoding_per_sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCUMENT = Path("docs/intensity.md")
MARKS = "<!-- measured -->\n", "<!-- /measured -->"
SPEED_UPS, ERRORS, SAMPLES = "intensity-measured.png", "intensity-errors.png", "intensity-heads.png"
# How a factor that was not measured is marked, by what it lacks.
_MARKED: dict[Why, str] = {"time": "*{}*", "memory": "*{}* †", "failed": "*{}* ‡"}


@dataclass(frozen=True)
class Found:
    """The records of one plan."""

    name: str
    cells: dict[str, CellRecord]
    rest: Rest | None

    @property
    def records(self) -> list[CellRecord]:
        return list(self.cells.values())

    @property
    def predictions(self) -> list[Prediction]:
        return [one for record in self.records for one in record.predictions]

    @property
    def unmeasured(self) -> list[NotMeasured]:
        """Predicted alone: cells that were measured since are not."""
        found = self.rest.cells if self.rest else []
        return [cell for cell in found if cell.name not in self.cells]

    @property
    def scale(self) -> int:
        """How many times as many layers the published model has."""
        return self.records[0].scale


def read_found(folder: Path) -> dict[str, Found]:
    """Every plan's records below `folder`, by the plan that they name.

    Raises:
        ExperimentError: none is there, a folder has two plans, or a plan two folders.
    """
    found: dict[str, Found] = {}
    for path, cells in read_folders(folder).items():
        name, *others = dict.fromkeys(record.plan for record in cells.values())
        if others:
            raise ExperimentError(f"{path}: has records of {name} and of {others[0]} (keep one)")
        if name in found:
            raise ExperimentError(f"{folder}: two folders have records of {name} (keep one)")
        found[name] = Found(name, cells, read_rest(path))
    return found


def write_page(records: Path, document: Path = DOCUMENT) -> list[Path]:
    """Write the block between the marks, and the pictures beside the document.

    Records are read and stay as they are.

    Returns the files that were written.

    Raises:
        ExperimentError: no record is there that the page shows, or the document has no marks.
    """
    found = read_found(records)
    shown = block(found)
    if not shown:
        raise ExperimentError(f"{records}: the page shows none of {', '.join(found)}")
    text = document.read_text(encoding="utf-8")
    start, end = MARKS
    if text.count(start) != 1 or text.count(end) != 1:
        raise ExperimentError(f"{document}: no single place between {start.strip()} and {end}")
    before, rest = text.split(start)
    after = rest.split(end)[1]
    write_text(document, f"{before}{start}{shown}{end}{after}")
    written = [document]
    for name, content in pictures(found).items():
        write_bytes(document.parent / name, content)
        written.append(document.parent / name)
    return written


def block(found: Mapping[str, Found]) -> str:
    """The page's Markdown between the marks."""
    parts: list[str] = []
    if grid := found.get("grid"):
        parts += [_about(grid), _factors(grid), _closeness(grid), f"![Predicted]({ERRORS})\n"]
    if table_2 := found.get("table2"):
        parts += [_about(table_2), _protocol_of_table_2(table_2)]
    figures = [one for name, one in found.items() if name.startswith("figure6-")]
    for figure in figures:
        parts += [_about(figure), _protocol_of_figure_6(figure)]
    if figures:
        parts.append(f"![Time of a sample over key/value heads]({SAMPLES})\n")
    return "\n".join(parts)


def pictures(found: Mapping[str, Found]) -> dict[str, bytes]:
    """By name, as PNG."""
    drawn = {}
    if grid := found.get("grid"):
        drawn[SPEED_UPS] = picture(lambda figure: _draw_speed_ups(figure, grid), (7.2, 3.4))
        drawn[ERRORS] = picture(lambda figure: _draw_errors(figure, grid), (7.2, 3.6))
    if figures := [one for name, one in found.items() if name.startswith("figure6-")]:
        drawn[SAMPLES] = picture(lambda figure: _draw_samples(figure, figures), (7.2, 3.4))
    return drawn


# Numbers.


def measured_factor(record: CellRecord) -> Ratio:
    """How many times as fast the fewest key/value heads are as the most."""
    found = speed_up(*_ends(record), "decoder")
    assert found is not None
    return found


def predicted_factor(predictions: Sequence[Prediction]) -> float:
    most, fewest = _most_and_fewest(predictions)
    return most.predicted_s / fewest.predicted_s


def _most_and_fewest(predictions: Sequence[Prediction]) -> tuple[Prediction, Prediction]:
    ordered = sorted(predictions, key=lambda one: -one.num_kv_heads)
    return ordered[0], ordered[-1]


def _heads(one: Prediction) -> str:
    return "1 key/value head" if one.num_kv_heads == 1 else f"{one.num_kv_heads} key/value heads"


def _ends(record: CellRecord) -> tuple[Samples, Samples]:
    ordered = sorted(
        record.timing.samples, key=lambda one: -one.contender.architecture.num_kv_heads
    )
    return ordered[0], ordered[-1]


# Tables.


def _about(found: Found) -> str:
    """What was measured, on what, and what the machine reached meanwhile."""
    machines = dict.fromkeys(machine_line(record.measurement) for record in found.records)
    read = sorted(record.rates.bytes_per_s / 1e9 for record in found.records)
    flops: dict[str, list[float]] = {}
    for record in found.records:
        for kind, rate in record.rates.flops_per_s.items():
            flops.setdefault(kind, []).append(rate / 1e9)
    rates = ", ".join(
        f"{min(each):,.0f} to {max(each):,.0f} GFLOP/s in {kind}" for kind, each in flops.items()
    )
    heads = sorted({one.num_kv_heads for one in found.predictions}, reverse=True)
    lacking = [cell.why for cell in found.unmeasured]
    left = ""
    if lacking:
        memory = lacking.count("memory")
        left = f" {len(lacking)} more are predicted alone; {memory} of them do not fit the memory."
        if unknown := sum(cell.step_overhead_s is None for cell in found.unmeasured):
            left += f" The overhead of a step is not known for {unknown}, and left out of these."
    return (
        f"**{found.name}**: {len(found.cells)} loads with {', '.join(map(str, heads))} key/value "
        f"heads in turn.{left} Between the rounds: {read[0]:.1f} to {read[-1]:.1f} GB/s, {rates}. "
        f"{'; '.join(machines)}.\n"
    )


def _factors(grid: Found) -> str:
    """Times as fast by load: measured, and in brackets predicted."""
    measured = {
        record.load: f"{measured_factor(record).median:.2f} "
        f"({predicted_factor(record.predictions):.2f})"
        for record in grid.records
    }
    predicted = {
        cell.load: _MARKED[cell.why].format(f"{predicted_factor(cell.predictions):.2f}")
        for cell in grid.unmeasured
    }
    shown = measured | predicted
    lengths = sorted({load.target_tokens for load in shown})
    rows = []
    for weights, beam, batch in sorted({(x.weights, x.beam, x.batch) for x in shown}):
        by_length = {
            load.target_tokens: text
            for load, text in shown.items()
            if (load.weights, load.beam, load.batch) == (weights, beam, batch)
        }
        cells = [by_length.get(length, "-") for length in lengths]
        rows.append([weights, search_label(beam), f"{batch:,}", *cells])
    for weights, beam in sorted({(load.weights, load.beam) for load in shown}):
        limits = [f"*{_limit(grid, weights, beam, length):.2f}*" for length in lengths]
        rows.append([weights, search_label(beam), "limit", *limits])
    rows.sort(key=lambda row: row[:2])  # keeps the batches in their order
    most, fewest = _most_and_fewest(grid.predictions)
    heading = ["weights", "search", "batch", *(f"{n:,} tokens" for n in lengths)]
    return (
        f"Decoding with {_heads(fewest)} over {most.num_kv_heads}, times as fast: measured, and "
        "predicted in brackets; in italics predicted alone (†: does not fit the memory, ‡: its "
        "measurement failed). The limit is that of large batches, whose sentences still have "
        f"their own arithmetic.\n\n{markdown_rows(heading, rows, text=2)}\n"
    )


def _limit(grid: Found, weights: str, beam: int, length: int) -> float:
    """The factor for large batches, with the medians of all rates but those of few rows."""
    dtype = grid.records[0].measurement.dtype
    rates = rates_of([record.timing for record in grid.records], dtype)
    machine = replace(rates, step_flops_per_s=None).machine()
    ordered = sorted(grid.records[0].cell.architectures, key=lambda own: own.num_kv_heads)
    load = Load(1, length, length, beam, weights, dtype)
    fewest, most = (decoding_per_sentence(own, load, machine) for own in (ordered[0], ordered[-1]))
    return most / fewest


def _closeness(grid: Found) -> str:
    groups: dict[tuple[str, str], list[CellRecord]] = {}
    for record in grid.records:
        key = record.load.weights, search_label(record.load.beam)
        groups.setdefault(key, []).append(record)
    rows = [[*key, *_errors_of(records)] for key, records in sorted(groups.items())]
    rows.append(["all", "", *_errors_of(grid.records)])
    heading = [
        "weights", "search", "predictions", f"within {CLOSE:.0%}", "median error", "worst",
        "median error of the factor",
    ]  # fmt: skip
    return f"Predicted over measured time, less 1:\n\n{markdown_rows(heading, rows, text=2)}\n"


def _errors_of(records: Sequence[CellRecord]) -> Iterator[str]:
    found = [(one.error, one, record) for record in records for one in record.predictions]
    errors = [error for error, _, _ in found if error is not None]
    close, count = closeness(records)
    yield str(count)
    yield f"{close / count:.0%}"
    yield f"{statistics.median(errors):+.0%}"
    worst, one, record = max(found, key=lambda each: abs(each[0] or 0.0))
    yield f"{worst:+.0%} ({one.num_kv_heads} at {_shape(record.load)})"
    off = [
        abs(predicted_factor(record.predictions) / measured_factor(record).median - 1)
        for record in records
    ]
    yield f"{statistics.median(off):.0%}"


def _protocol_of_table_2(found: Found) -> str:
    """Beside what the paper printed."""
    table = find_table(read_papers(), ARXIV, TABLE)
    rows = []
    for record in sorted(
        found.records, key=lambda each: (not each.cell.is_training, each.load.beam)
    ):
        if record.cell.is_training:
            name = column = "training"
            pair = speed_up(*_ends(record), "total")
        else:
            name = search_label(record.load.beam)
            column = f"{name} decoder"
            pair = measured_factor(record)
        assert pair is not None
        tokens = record.load.batch * record.load.target_tokens
        times = [
            f"{1e6 * (one.measured_s or 0) / tokens:,.0f} ({1e6 * one.predicted_s / tokens:,.0f})"
            for one in _most_and_fewest(record.predictions)
        ]
        printed = [
            float(table.shown({"attention": attention}, column))
            for attention in ("multi-head", "multi-query")
        ]
        rows.append(
            [
                name,
                f"{record.load.batch:,}",
                *times,
                f"{pair.median:.2f} ({predicted_factor(record.predictions):.2f})",
                f"{printed[0] / printed[1]:.2f}",
            ]
        )
    heading = [
        "pass", "batch", "multi-head µs/token", "multi-query µs/token", "times as fast",
        "on TPUv2, as printed",
    ]  # fmt: skip
    return (
        "Shazeer 2019, table 2, source and target of 128: measured, and predicted in brackets.\n\n"
        + f"{markdown_rows(heading, rows)}\n"
    )


def _protocol_of_figure_6(found: Found) -> str:
    scale = found.scale
    rows = []
    for record in sorted(found.records, key=lambda each: -each.load.source_tokens):
        most = _most_and_fewest(record.predictions)[0]
        for one in sorted(record.predictions, key=lambda each: each.num_kv_heads):
            assert one.measured_s is not None
            assert most.measured_s is not None
            batch = record.load.batch
            rows.append(
                [
                    f"{record.load.source_tokens:,} / {record.load.target_tokens:,}",
                    str(one.num_kv_heads),
                    f"{one.measured_s / batch:.3g}",
                    f"{one.predicted_s / batch:.3g}",
                    f"{scaled_s(record, one) / batch:.3g}",
                    f"{most.measured_s / one.measured_s:.2f}",
                    f"{most.predicted_s / one.predicted_s:.2f}",
                ]
            )
    own = found.records[0].cell.architectures[0]
    heads = own.decoder_heads
    heading = [
        "input / output", "KV heads", "s/sample", "predicted", f"of {scale * own.decoder_layers} "
        "layers", "times as fast", "predicted",
    ]  # fmt: skip
    return (
        f"Ainslie et al. 2023, figure 6: a decoder of {heads.num_heads} heads x {heads.head_dim}, "
        f"{own.decoder_layers} layers of {scale * own.decoder_layers}, ungated feed-forward layers "
        f"of {own.decoder_d_ff:,}; {found.records[0].load.batch} samples a batch, greedy, the "
        "decoder alone. The time of all layers is that of these, scaled by their count, with one "
        "output layer as predicted and the overhead of a step as measured apart.\n\n"
        + f"{markdown_rows(heading, rows)}\n"
    )


def scaled_s(record: CellRecord, one: Prediction) -> float:
    """Seconds of one of the record's models with `scale` times as many layers.

    All grows with them but the output layer, which is as predicted, and the overhead of a step,
    which is measured with the layers that there are and with all of them.
    """
    assert one.measured_s is not None
    output = sum(part.seconds for part in one.parts if part.name == "output")
    if record.whole_step_overhead_s is None:
        return one.measured_s
    own, whole = (
        record.load.target_tokens * each + output
        for each in (record.step_overhead_s, record.whole_step_overhead_s)
    )
    return record.scale * max(0.0, one.measured_s - own) + whole


def _shape(load: Load) -> str:
    return f"{load.batch}x{load.source_tokens}x{load.target_tokens}"


# Pictures.


def _draw_speed_ups(figure: Figure, grid: Found) -> None:
    """Times as fast over the batch, a line a length: predicted, and points where measured."""
    kinds = [("float32", 1), ("int8", 1)]
    shown = [kind for kind in kinds if any(_is_of(r.load, kind) for r in grid.records)]
    if not shown:
        shown = [(grid.records[0].load.weights, grid.records[0].load.beam)]
    row = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, kind in zip(row, shown, strict=True):
        _draw_lines(axes, grid, kind)
        axes.set_title(f"{kind[0]} weights, {search_label(kind[1])}")
        axes.set_xlabel("batch (sentences)")
    most, fewest = _most_and_fewest(grid.predictions)
    row[0].set_ylabel(f"times as fast, {_heads(fewest)} over {most.num_kv_heads}")
    row[0].legend(title="tokens; line: predicted, point: measured", fontsize="small")


def _draw_lines(axes: Axes, grid: Found, kind: tuple[str, int]) -> None:
    every: list[CellRecord | NotMeasured] = [*grid.records, *grid.unmeasured]
    predicted = {
        one.load: predicted_factor(one.predictions) for one in every if _is_of(one.load, kind)
    }
    measured = {
        record.load: measured_factor(record).median
        for record in grid.records
        if _is_of(record.load, kind)
    }
    for i, length in enumerate(sorted({load.target_tokens for load in predicted})):
        colour, marker = style(i)
        for factors, look in ((predicted, "-"), (measured, marker)):
            points = sorted(
                (load.batch, factor)
                for load, factor in factors.items()
                if load.target_tokens == length
            )
            label = f"{length:,}" if look == "-" else None
            axes.plot(*_columns(points), look, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.axhline(1, color=GREY, linewidth=0.8)


def _draw_errors(figure: Figure, grid: Found) -> None:
    """Predicted over measured time of every model, over the measured time of a step."""
    axes = figure.subplots()
    groups: dict[str, list[tuple[float, float]]] = {}
    for record in grid.records:
        label = f"{record.load.weights}, {search_label(record.load.beam)}"
        for one in record.predictions:
            assert one.measured_s is not None
            step_ms = 1e3 * one.measured_s / record.load.target_tokens
            groups.setdefault(label, []).append((step_ms, one.predicted_s / one.measured_s))
    for i, (label, points) in enumerate(sorted(groups.items())):
        colour, marker = style(i)
        axes.plot(*_columns(points), marker, color=colour, label=label, alpha=0.7)
    axes.axhspan(1 - CLOSE, 1 + CLOSE, color=GREY, alpha=0.12, zorder=0)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("measured ms a step")
    axes.set_ylabel("predicted / measured")
    axes.legend(fontsize="small")


def _draw_samples(figure: Figure, figures: Sequence[Found]) -> None:
    """Time of a sample over key/value heads, relative to the most heads: a panel a model."""
    row = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, found in zip(row, figures, strict=True):
        for i, record in enumerate(sorted(found.records, key=lambda each: each.load.source_tokens)):
            colour, marker = style(i)
            batch = record.load.batch
            ordered = sorted(record.predictions, key=lambda each: each.num_kv_heads)
            measured = [(one.num_kv_heads, scaled_s(record, one) / batch) for one in ordered]
            label = f"{record.load.source_tokens:,} / {record.load.target_tokens:,}"
            axes.plot(*_columns(measured), marker=marker, color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set_title(found.name.removeprefix("figure6-"))
        axes.set_xlabel("key/value heads")
    row[0].set_ylabel("s/sample, all layers")
    row[0].legend(title="input / output")


def _is_of(load: Load, kind: tuple[str, int]) -> bool:
    return (load.weights, load.beam) == kind


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
