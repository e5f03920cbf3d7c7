"""Exhibits of the report: the numbers of their tables, and what their pictures draw."""

import statistics
from collections.abc import Sequence

import msgspec
import synthetic_records as synthetic
from matplotlib.figure import Figure

from experiments.records.parts import TrainPoint
from experiments.records.record import Diverged, Record
from experiments.report.cells import Table
from experiments.report.exhibits import group_exhibits
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.stability import stability
from experiments.report.groups import Group, group_records

replace = msgspec.structs.replace


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Cell texts by row name and column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def group_of(*records: Record) -> Group:
    (group,) = group_records(records)
    return group


def drawn(exhibit: Exhibit) -> Figure:
    figure = Figure(figsize=exhibit.size_inches, layout="constrained")
    exhibit.draw(figure)
    return figure


def noisy_curve(points: int, norm: float, spikes: Sequence[int] = ()) -> list[TrainPoint]:
    """Losses around 3, two nats more at the points with these numbers; norms rise by 0.01."""
    return [
        TrainPoint(
            update=50 * number,
            train_nll_nats_per_token=(2.9, 3.1)[number % 2] + 2 * (number in spikes),
            dev_nll_nats_per_token=None,
            learning_rate=1e-3,
            target_tokens=number,
            wall_s=float(number),
            grad_norm=norm + 0.01 * number,
        )
        for number in range(1, points + 1)
    ]


def trained(heads: int, seed: int, norm: float, spikes: Sequence[int] = ()) -> Record:
    """A record whose curve has 40 points, or 30 where it diverged (a negative norm)."""
    if norm < 0:
        record = synthetic.record(heads, seed, updates=2000, diverged_after=1500)
        assert isinstance(record.result, Diverged)
        return replace(record, result=replace(record.result, curve=noisy_curve(30, -norm, spikes)))
    record = synthetic.record(heads, seed, updates=2000)
    result = synthetic.finished(record)
    training = replace(result.training, curve=noisy_curve(40, norm, spikes))
    return replace(record, result=replace(result, training=training))


def unstable() -> Group:
    return group_of(
        *(trained(8, seed, 0.5) for seed in (1, 2, 3)),
        trained(1, 1, 1.0, spikes=(25, 26, 31)),
        trained(1, 2, -2.0, spikes=(29,)),
        trained(1, 3, 3.0),
    )


def test_the_table_of_stability_counts_every_training() -> None:
    exhibit = stability(unstable())
    assert exhibit is not None
    rows = cells(exhibit.table)
    mha, mqa = rows["mha"], rows["mqa"]
    assert (mha["trainings"], mha["diverged"]) == ("3", "0")
    assert mha["loss spikes of each training"] == "0, 0, 0"
    assert mha["largest spike, nats"] == "–"
    assert mha["points judged"] == "60"
    assert (mqa["trainings"], mqa["diverged"]) == ("3", "1: seed 2 after update 1,500")
    assert mqa["loss spikes of each training"] == "2, 1, 0"
    assert mqa["largest spike, nats"] == "2.10"
    assert mqa["points judged"] == "50"
    # The later halves: points 21 to 40, and 16 to 30 where it diverged.
    medians, largest = [1.305, 2.23, 3.305], [1.4, 2.3, 3.4]
    for column, values in (("median", medians), ("largest", largest)):
        expected = f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
        assert mqa[f"gradient norm: {column} of the later half"] == expected
    assert mha["gradient norm: largest of the later half"] == "0.90 ± 0.00"
    notes = " ".join(exhibit.table.notes)
    assert "Trainings by seed (1, 2, 3)." in notes
    assert "few" not in notes


def test_few_seeds_are_called_few() -> None:
    exhibit = stability(group_of(trained(8, 1, 0.5), trained(1, 1, 0.5)))
    assert exhibit is not None
    assert "One seed is few: a difference may be chance." in " ".join(exhibit.table.notes)


def test_spikes_and_divergence_are_drawn_where_they_are() -> None:
    exhibit = stability(unstable())
    assert exhibit is not None
    loss, *_ = (axes for axes in drawn(exhibit).axes if axes.get_title() == "mqa")
    marks = {
        marker: sorted(
            (float(x), float(y))
            for line in loss.lines
            if line.get_marker() == marker
            for x, y in line.get_xydata()
        )
        for marker in "vx"
    }
    assert marks == {"v": [(1250, 5.1), (1450, 5.1), (1550, 5.1)], "x": [(1500, 2.9)]}
    assert len([line for line in loss.lines if line.get_marker() == "None"]) == 3


def test_records_without_gradient_norms_have_no_exhibit_of_stability() -> None:
    group = group_of(synthetic.record(8), synthetic.record(1))
    assert stability(group) is None
    assert group_exhibits(group) == []


def test_a_training_without_gradient_norms_says_so_beside_the_others() -> None:
    exhibit = stability(group_of(synthetic.record(8, updates=2000), trained(1, 1, 0.5)))
    assert exhibit is not None
    row = cells(exhibit.table)["mha"]
    assert row["gradient norm: median of the later half"] == "not recorded"
    assert row["points judged"] == "20"


def test_a_picture_is_the_same_for_the_same_records() -> None:
    for exhibit in group_exhibits(unstable()):
        assert exhibit.picture().startswith(b"\x89PNG\r\n\x1a\n")
        assert exhibit.picture() == exhibit.picture()
