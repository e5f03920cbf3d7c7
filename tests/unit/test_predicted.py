"""The exhibit of the roofline's time against the measured one."""

import statistics

import msgspec
import pytest
import synthetic_records as synthetic
from matplotlib.figure import Figure

from experiments.report.exhibits.predicted import predicted
from experiments.report.groups import Group, group_records

replace = msgspec.structs.replace


def group_of(*heads: int) -> Group:
    records = [synthetic.record(each) for each in heads]
    (group,) = group_records(records, [synthetic.measurement(records)])
    return group


def test_the_prediction_is_of_the_measurements_own_counts_and_rates() -> None:
    group = group_of(8, 1)
    exhibit = predicted(group)
    assert exhibit is not None
    assert len(exhibit.table.rows) == 2 * 4
    rows = [dict(zip(exhibit.table.columns, row, strict=True)) for row in exhibit.table.rows]
    mqa = next(row for row in rows if row["variant"] == "mqa")
    assert group.measurement is not None
    timing = group.measurement.timings[0]
    samples = timing.samples[1]
    memory_s = sum(samples.bytes_by_part.values()) / statistics.median(timing.read_bytes_per_s)
    arithmetic_s = (samples.flops or 0) / statistics.median(timing.matrix_flops_per_s)
    assert mqa["bound by"] == ("memory" if memory_s >= arithmetic_s else "arithmetic")
    least_us = 1e6 * max(memory_s, arithmetic_s) / samples.tokens_produced
    measured_us = samples.us_per_token("decoder")
    assert measured_us is not None
    assert mqa["predicted µs/token"] == f"{least_us:,.1f}"
    assert mqa["measured µs/token"] == f"{measured_us:,.1f}"
    assert mqa["measured over predicted"] == f"{measured_us / least_us:.2f}"
    assert exhibit.table.sources[0] == group.rows[0].source


def test_every_point_is_drawn_and_the_line_is_where_both_are_equal() -> None:
    exhibit = predicted(group_of(8, 2, 1))
    assert exhibit is not None
    figure = Figure(figsize=exhibit.size_inches)
    exhibit.draw(figure)
    (axes,) = figure.axes
    drawn = [
        tuple(points.get_offsets()[0]) for points in axes.collections if len(points.get_offsets())
    ]
    assert len(drawn) == 3 * 4
    table = sorted((row[3], row[4]) for row in exhibit.table.rows)
    assert sorted((f"{x:,.1f}", f"{y:,.1f}") for x, y in drawn) == table
    (line,) = axes.lines
    assert list(line.get_xdata()) == pytest.approx(list(line.get_ydata()))


def test_without_a_measurement_or_its_counts_there_is_none() -> None:
    (group,) = group_records([synthetic.record(8)])
    assert predicted(group) is None
    records = [synthetic.record(8)]
    measurement = synthetic.measurement(records)
    timings = [
        replace(timing, samples=[replace(s, bytes_by_part={}) for s in timing.samples])
        for timing in measurement.timings
    ]
    (group,) = group_records(records, [replace(measurement, timings=timings)])
    assert predicted(group) is None
