"""Is decoding as fast as the machine's rates allow? The roofline's time against the measured one.

The prediction is the least time: the bytes and operations that gqa_fairseq.costs counts, over what
reading memory and multiplying matrices reached between the rounds of the same measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from experiments.records.measurement import search_label
from experiments.records.speed import fixed_length_timings
from experiments.report.cells import Table
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.groups import Group, Row
from experiments.report.made_by import distinct
from experiments.report.pictures.drawing import GREY, MARKERS, style
from experiments.report.tables import timing_notes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """One variant on one workload, in microseconds of the decoder per output token."""

    row: Row
    workload: str
    search: str
    bound: str
    predicted_us: float
    measured_us: float


def predicted(group: Group) -> Exhibit | None:
    """None where no measured decoder has counts."""
    points = list(_points(group))
    if not points:
        return None
    return Exhibit(
        name="predicted",
        table=_table(group, points),
        caption="The decoder's least time by the counts and the machine's rates against the "
        "measured one; on the line they are equal.",
        size_inches=(9, 4.2),
        draw=lambda figure: _draw(figure, points),
    )


def _points(group: Group) -> Iterator[Point]:
    timings = fixed_length_timings(group.measurement) if group.measurement else []
    for workload, timing in timings:
        seen = set()
        for row in group.rows:
            samples = row.samples(timing)
            if samples is None or row.architecture in seen:
                continue
            seen.add(row.architecture)  # time does not depend on how a model was trained
            least, measured = timing.roofline(samples), samples.us_per_token("decoder")
            if least is None or measured is None:
                continue
            least_s, bound = least
            yield Point(
                row=row,
                workload=workload.title,
                search=search_label(workload.beam),
                bound=bound,
                predicted_us=1e6 * least_s / samples.tokens_produced,
                measured_us=measured,
            )


def _table(group: Group, points: list[Point]) -> Table:
    columns = [
        "variant",
        "workload",
        "bound by",
        "predicted µs/token",
        "measured µs/token",
        "measured over predicted",
    ]
    rows = [
        [
            point.row.architecture.name,
            point.workload,
            point.bound,
            f"{point.predicted_us:,.1f}",
            f"{point.measured_us:,.1f}",
            f"{point.measured_us / point.predicted_us:.2f}",
        ]
        for point in points
    ]
    assert group.measurement is not None
    timings = [timing for _, timing in fixed_length_timings(group.measurement)]
    notes = [
        "The decoder alone. Predicted is the larger of two times: bytes over what reading memory "
        "reached, and operations over what multiplying matrices reached, both between the rounds "
        "of the measurement. It leaves out what is neither, such as the search.",
        *timing_notes(group, timings),
    ]
    title = "Predicted against measured decoding time"
    return Table(title, columns, rows, notes, [point.row.source for point in points])


def _draw(figure: Figure, points: list[Point]) -> None:
    """A colour a variant, a marker a workload."""
    from matplotlib.ticker import LogLocator

    axes = figure.subplots()
    names = distinct(point.row.architecture.name for point in points)
    workloads = distinct(point.workload for point in points)
    every = [us for point in points for us in (point.predicted_us, point.measured_us)]
    ends = [min(every) * 0.8, max(every) * 1.25]
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1.0)
    for point in points:
        axes.scatter(
            [point.predicted_us],
            [point.measured_us],
            s=50,
            color=style(names.index(point.row.architecture.name))[0],
            marker=MARKERS[workloads.index(point.workload) % len(MARKERS)],
            edgecolor="white",
            linewidths=0.5,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    for which in (axes.xaxis, axes.yaxis):
        which.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        which.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("predicted µs per output token, at least")
    axes.set_ylabel("measured µs per output token")
    handles = [
        axes.scatter([], [], color=style(place)[0], marker="s", label=name)
        for place, name in enumerate(names)
    ]
    handles += [
        axes.scatter([], [], color=GREY, marker=MARKERS[place % len(MARKERS)], label=name)
        for place, name in enumerate(workloads)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
