"""Plots of a group: quality against cost, training curves, all raw latencies.

They show what was trained from scratch; exhibits show what was uptrained. A variant has one colour
and one marker in every plot.
"""

import statistics

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.records.measurement import Timing, search_label
from experiments.records.parts import TrainPoint
from experiments.records.record import Finished
from experiments.report.cells import NOT_MEASURED
from experiments.report.groups import Group, Row
from experiments.report.made_by import distinct
from experiments.report.pictures.drawing import GREY, STYLE, Drawn, style
from experiments.report.selection import (
    HEADLINE_METRIC,
    find_timing,
    headline_kind,
    headline_timing,
    score_value,
    searches,
    test_splits,
    timed_shapes,
)


def group_plots(group: Group) -> dict[str, bytes]:
    """PNG files by name; a plot without data is left out."""
    return {name: picture.png for name, picture in group_pictures(group).items()}


def group_pictures(group: Group) -> dict[str, Drawn]:
    """Pictures by name; one without data is left out."""
    with matplotlib.rc_context(fname=STYLE):
        figures = {
            "bleu-latency": bleu_latency(group),
            "training-curves": training_curves(group),
            "raw-latency": raw_latency(group),
        }
        return {name: Drawn(figure) for name, figure in figures.items() if figure}


def pictures_in_words(group: Group) -> dict[str, str]:
    """What the pictures show, for whoever does not see them."""
    ends = []
    for row in group.from_scratch:
        curves = [points for result in row.results if (points := _dev_points(result))]
        if curves:
            first, last = (
                statistics.fmean(points[end].dev_nll_nats_per_token or 0.0 for points in curves)
                for end in (0, -1)
            )
            ends.append(f"{row.name} from {first:.2f} to {last:.2f}")
    return {
        "bleu-latency": "BLEU against the decoder's time, a panel a search. Its numbers are in the "
        "overview.",
        "training-curves": "Dev loss in nats per target token over updates, first to last: "
        f"{'; '.join(ends)}.",
        "raw-latency": "Time of every round of the decoder, a panel a shape and search. The "
        "medians are in the tables of decoding.",
    }


def bleu_latency(group: Group) -> Figure | None:
    """BLEU over decoder time: one panel a search; every run small, the mean large."""
    shapes, splits, beams = timed_shapes(group), test_splits(group), searches(group)
    if not shapes or not splits:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(beams), sharey=True)
    drawn = [
        _bleu_latency_panel(axes, group, splits[0], beam)
        for axes, beam in zip(panels, beams, strict=True)
    ]
    metric = HEADLINE_METRIC
    panels[0].set_ylabel(f"{metric.label} on {splits[0]} ({metric.lowest:g} to {metric.highest:g})")
    batch, source, target = shapes[0]
    figure.supxlabel(
        f"decoder µs per output token ({_engine_label(group)}, batch {batch}, {source}/{target} "
        "tokens; left is faster)",
        fontsize=10,
    )
    if not any(drawn):
        return None
    # Beside the panels, not in them: neighbours' names would cover each other and the points.
    handles, labels = panels[drawn.index(True)].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _bleu_latency_panel(axes: Axes, group: Group, split: str, beam: int) -> bool:
    axes.set_title(search_label(beam))
    kind, timing = headline_kind(group, split, beam), headline_timing(group, beam)
    drawn = False
    for index, row in enumerate(group.from_scratch):
        colour, marker = style(index)
        samples = row.samples(timing)
        us = samples.us_per_token("decoder") if samples else None
        values = [v for r in row.results if kind and (v := score_value(split, kind)(r)) is not None]
        if us is None or not values:
            continue
        # One contender is timed for all seeds of a variant.
        if len(values) > 1:
            axes.scatter([us] * len(values), values, s=16, color=colour, alpha=0.5, linewidths=0)
        axes.scatter(
            [us],
            [statistics.fmean(values)],
            s=80,
            color=colour,
            marker=marker,
            edgecolor="white",
            label=row.name,
        )
        drawn = True
    axes.margins(x=0.12, y=0.15)
    return drawn


def _engine_label(group: Group) -> str:
    timings = [timing for beam in searches(group) if (timing := headline_timing(group, beam))]
    found = (row.samples(timing) for timing in timings for row in group.from_scratch)
    return f"engine {', '.join(distinct(s.contender.engine for s in found if s))}"


def training_curves(group: Group) -> Figure | None:
    """Dev loss over updates, all of them and the later half: a line a run, a colour a variant.

    The later half has no panel where the earlier one has no point.
    """
    results = [result for row in group.from_scratch for result in row.results]
    validated = [point.update for result in results for point in _dev_points(result)]
    if not validated:
        return None
    half = max(result.training.updates for result in results if result.training) / 2
    starts = {"all updates": 0.0} | ({"second half": half} if min(validated) < half else {})
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(starts), squeeze=False)[0]
    for index, row in enumerate(group.from_scratch):
        colour, marker = style(index)
        for run, result in enumerate(row.results):
            for axes, first in zip(panels, starts.values(), strict=True):
                shown = [point for point in _dev_points(result) if point.update >= first]
                axes.plot(
                    [point.update for point in shown],
                    [point.dev_nll_nats_per_token for point in shown],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.4,
                    alpha=1.0 if len(row.records) == 1 else 0.7,
                    label=_with_seeds(row) if run == 0 else None,
                )
    panels[0].set_ylabel("dev loss (nats per target token)")
    for axes, title in zip(panels, starts, strict=True):
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    figure.supxlabel("update", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _dev_points(result: Finished) -> list[TrainPoint]:
    """The points of the training curve that have a dev loss."""
    return [p for p in result.curve if p.dev_nll_nats_per_token is not None]


def _with_seeds(row: Row) -> str:
    return row.name if len(row.records) == 1 else f"{row.name} ({len(row.records)} seeds)"


def raw_latency(group: Group) -> Figure | None:
    """Every timed round of the decoder: one panel a shape and search, a bar at the median."""
    shapes, beams = timed_shapes(group), searches(group)
    names = [row.name for row in group.from_scratch]
    if not shapes or not names:
        return None
    figure = Figure(figsize=(9, 3.1 * len(shapes)), layout="constrained")
    panels = figure.subplots(len(shapes), len(beams), squeeze=False)
    for line, shape in zip(panels, shapes, strict=True):
        for axes, beam in zip(line, beams, strict=True):
            for index, row in enumerate(group.from_scratch):
                _raw_rounds(axes, index, row, find_timing(group, beam, shape))
            batch, source, target = shape
            axes.set_title(f"{search_label(beam)}: batch {batch}, {source}/{target} tokens")
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.grid(visible=False, axis="x")
    figure.supylabel(f"decoder µs per output token ({_engine_label(group)})", fontsize=10)
    return figure


def _raw_rounds(axes: Axes, index: int, row: Row, timing: Timing | None) -> None:
    samples = row.samples(timing)
    decoder_s = samples.raw_s("decoder") if samples else None
    if samples is None or decoder_s is None:
        axes.text(index, 0, NOT_MEASURED, ha="center", va="bottom", color=GREY)
        return
    colour, marker = style(index)
    us = [1e6 * raw_s / samples.tokens_produced for raw_s in decoder_s]
    # Spread sideways in order of measurement, so that a drift shows and no sample hides another.
    places = [index + 0.44 * ((i + 0.5) / len(us) - 0.5) for i in range(len(us))]
    median = statistics.median(us)
    axes.bar(index, median, width=0.62, color=colour, alpha=0.18)
    axes.hlines(median, index - 0.31, index + 0.31, color=colour, linewidth=1.6)
    axes.scatter(places, us, s=18, color=colour, marker=marker, edgecolor="white", linewidths=0.4)
    axes.annotate(
        f"{median:,.1f}",
        (index, max(us)),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=GREY,
    )
    axes.margins(y=0.16)
