"""Is training stable (Ainslie et al. 2023, appendix A)? Loss spikes, gradient norms, divergence.

There multi-query models "suffered from frequent loss spikes", and grouped-query ones did not.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.records.parts import TrainPoint
from experiments.records.record import Diverged, Record
from experiments.records.spikes import DEVIATIONS, WINDOW, judged_points, loss_spikes
from experiments.report.cells import NOT_APPLICABLE, NOT_RECORDED, Table, number
from experiments.report.exhibits.exhibit import Exhibit, few
from experiments.report.groups import Estimate, Group, source_of
from experiments.report.made_by import made_by
from experiments.report.pictures.drawing import say_empty, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_IN_A_LINE = 4


@dataclass(frozen=True)
class Trainings:
    """All trainings of one variant, finished or diverged, by seed."""

    name: str
    records: tuple[Record, ...]

    @property
    def curves(self) -> list[list[TrainPoint]]:
        return [record.result.curve for record in self.records]


def stability(group: Group) -> Exhibit | None:
    """None where no curve of the group has gradient norms, as in older records."""
    found = trainings_of(group)
    if not any(_norms(curve) for each in found for curve in each.curves):
        return None
    lines = -(-len(found) // PANELS_IN_A_LINE)
    return Exhibit(
        name="stability",
        table=_table(found),
        caption="Train loss and gradient norm of every training; triangles mark loss spikes, a "
        "cross the last point of a training that diverged.",
        size_inches=(9, 4.6 * lines),
        draw=lambda figure: _draw(figure, found),
    )


def trainings_of(group: Group) -> list[Trainings]:
    """From scratch, in the order of the rows; what has but diverged trainings comes last."""
    by_name: dict[str, list[Record]] = {}
    for record in (r for r in group.records if r.uptraining is None):
        by_name.setdefault(record.variant, []).append(record)
    return [
        Trainings(name, tuple(sorted(records, key=lambda record: record.seed)))
        for name, records in by_name.items()
    ]


def _table(found: Sequence[Trainings]) -> Table:
    columns = [
        "variant",
        "trainings",
        "diverged",
        "loss spikes of each training",
        "largest spike, nats",
        "points judged",
        "gradient norm: median of the later half",
        "gradient norm: largest of the later half",
    ]
    rows = []
    for each in found:
        spikes = [loss_spikes(curve) for curve in each.curves]
        rises = [spike.rise_nats for of_one in spikes for spike in of_one]
        later = [norms for curve in each.curves if (norms := _norms(curve[len(curve) // 2 :]))]
        rows.append(
            [
                each.name,
                str(len(each.records)),
                _diverged(each),
                ", ".join(str(len(of_one)) for of_one in spikes),
                f"{max(rises):.2f}" if rises else NOT_APPLICABLE,
                f"{sum(judged_points(curve) for curve in each.curves):,}",
                _over_seeds([statistics.median(norms) for norms in later]),
                _over_seeds([max(norms) for norms in later]),
            ]
        )
    records = [record for each in found for record in each.records]
    seeds = sorted({record.seed for record in records})
    fewest = min(len(each.records) for each in found)
    notes = [
        f"Trainings by seed ({', '.join(map(str, seeds))}). {few(fewest)}".strip(),
        f"A spike is one or more points in a row whose train loss is at least {DEVIATIONS:g} "
        f"standard deviations above the mean of the {WINDOW} points before that are in no spike; "
        "its size is from that mean to its highest point. A point is the mean of the updates "
        f"between two lines of the log; the first {WINDOW} of a curve are not judged.",
        "The gradient norm is that of the loss that is trained on, in nats per target token, "
        "before it is clipped; each point is a mean of its updates as well. Over several trainings "
        "the cell is mean ± standard deviation.",
        *made_by(records),
    ]
    sources = [source_of(each.records[0]) for each in found]
    return Table("Training stability", columns, rows, notes, sources)


def _diverged(each: Trainings) -> str:
    ends = [
        f"seed {record.seed} after update {record.result.after_update:,}"
        for record in each.records
        if isinstance(record.result, Diverged)
    ]
    return f"{len(ends)}: {', '.join(ends)}" if ends else "0"


def _norms(curve: Sequence[TrainPoint]) -> list[float]:
    return [point.grad_norm for point in curve if point.grad_norm is not None]


def _over_seeds(values: Sequence[float]) -> str:
    return number(Estimate.of(values), 2) if values else NOT_RECORDED


def _draw(figure: Figure, found: Sequence[Trainings]) -> None:
    """Two panels a variant, loss above gradient norm; a line a training."""
    from matplotlib.ticker import LogLocator

    across = min(len(found), PANELS_IN_A_LINE)
    panels = figure.subplots(2 * -(-len(found) // across), across, squeeze=False, sharex=True)
    for axes in panels.flat:
        axes.set_visible(False)
    pairs = []
    for index, each in enumerate(found):
        line, column = divmod(index, across)
        loss, norm = panels[2 * line][column], panels[2 * line + 1][column]
        pairs.append((loss, norm))
        loss.set_title(each.name)
        norm.set_yscale("log")
        norm.minorticks_off()
        norm.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        norm.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        norm.xaxis.set_tick_params(labelbottom=True)
        for record in each.records:
            _draw_training(loss, norm, record, style(index)[0])
        if column == 0:
            loss.set_ylabel("train loss\n(nats per target token)")
            norm.set_ylabel("gradient norm")
    for alike in zip(*pairs, strict=True):
        limits = [axes.get_ylim() for axes in alike if axes.lines]
        for axes in alike:
            axes.set_visible(True)
            if axes.lines:
                axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            else:
                say_empty(axes, NOT_RECORDED)
    figure.supxlabel("update", fontsize=10)


def _draw_training(loss: Axes, norm: Axes, record: Record, colour: str) -> None:
    curve = record.result.curve
    losses = {p.update: y for p in curve if (y := p.train_nll_nats_per_token) is not None}
    norms = {p.update: y for p in curve if (y := p.grad_norm) is not None}
    high = [spike.highest_update for spike in loss_spikes(curve)]
    for axes, points in ((loss, losses), (norm, norms)):
        if not points:
            continue
        axes.plot(list(points), list(points.values()), color=colour, linewidth=1.0, alpha=0.8)
        spikes = [update for update in high if update in points]
        axes.plot(spikes, [points[u] for u in spikes], "v", color="black", markersize=6)
        if isinstance(record.result, Diverged):
            last = max(points)
            axes.plot([last], [points[last]], "x", color="black", markersize=8)
