"""Which conversion of a multi-head model is best (Ainslie et al. 2023, figure 4)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.report.cells import NOT_RUN, SIZE_COLUMNS, Table, number, size_cells
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.uptrained import (
    CONTROL,
    Converted,
    Quality,
    alphas_of,
    control_of,
    converted,
    merged,
    notes_on,
    qualities,
    values_by_seed,
)
from experiments.report.groups import Estimate, Group
from experiments.report.made_by import distinct
from experiments.report.pictures.drawing import GREY, say_empty, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def conversion(group: Group) -> Exhibit | None:
    """None where the group has no attention that was converted in two ways."""
    found = converted(group)
    of_one = [each.architecture for each in merged(found)]
    if len(of_one) == len(set(of_one)):
        return None
    measures = qualities(group)
    alphas = alphas_of(merged(found))
    return Exhibit(
        name="conversion",
        table=_table(group, found, measures, alphas),
        caption="Conversion method against quality: small dots are runs, large ones their means "
        "with the standard deviation; the dashed line is the model that was converted, trained on "
        "alike.",
        size_inches=(max(6.0, 3.2 * len(alphas)) + 1.5, 3.0 * len(measures)),
        draw=lambda figure: _draw(figure, found, measures, alphas),
    )


def _table(
    group: Group, found: Sequence[Converted], measures: Sequence[Quality], alphas: Sequence[float]
) -> Table:
    columns = ["variant", *SIZE_COLUMNS, "conversion"]
    columns += [f"{q.heading}, alpha {alpha:g}" for q in measures for alpha in alphas]
    rows, sources = [], []
    for each in found:
        cells = [each.architecture.name, *size_cells(each.architecture), each.method]
        made = [next(iter(each.by_alpha.values())).source] * len(cells)
        for quality in measures:
            for alpha in alphas:
                row = each.by_alpha.get(alpha)
                cells.append(
                    number(row.estimate(quality.value), quality.digits) if row else NOT_RUN
                )
                made.append(row.source if row else "")
        rows.append(cells)
        sources.append(made)
    notes = [
        f"Alpha is the share of the parent's updates that the converted model was trained on; "
        f"{CONTROL} merges no heads and is trained on alike.",
        *notes_on(group, found),
    ]
    title = "Conversion method against quality (Ainslie et al. 2023, figure 4)"
    return Table(title, columns, rows, notes, sources)


def _draw(
    figure: Figure,
    found: Sequence[Converted],
    measures: Sequence[Quality],
    alphas: Sequence[float],
) -> None:
    """A line of panels a measure, a column an alpha; a colour an attention."""
    panels = figure.subplots(len(measures), len(alphas), squeeze=False)
    for line, quality in zip(panels, measures, strict=True):
        line[0].set_ylabel(quality.axis)
        for axes, alpha in zip(line, alphas, strict=True):
            axes.set_title(f"alpha {alpha:g}")
            _draw_panel(axes, found, quality, alpha)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")


def _draw_panel(axes: Axes, found: Sequence[Converted], quality: Quality, alpha: float) -> None:
    own = merged(found)
    methods = distinct(each.method for each in own)
    attentions = list(dict.fromkeys(each.architecture for each in own))
    control = Estimate.of(list(values_by_seed(control_of(found, alpha), quality.value).values()))
    if control:
        axes.axhline(control.mean, color=GREY, linestyle="--", linewidth=1.2, label="control")
    for each in own:
        index = attentions.index(each.architecture)
        colour, marker = style(index)
        values = list(values_by_seed(each.by_alpha.get(alpha), quality.value).values())
        mean = Estimate.of(values)
        if mean is None:
            continue
        # Side by side, so that no attention covers another.
        place = methods.index(each.method) + 0.5 * ((index + 0.5) / len(attentions) - 0.5)
        if len(values) > 1:
            axes.scatter([place] * len(values), values, s=12, color=colour, alpha=0.5, linewidths=0)
        is_first = each.method == next(o.method for o in own if o.architecture == each.architecture)
        axes.errorbar(
            [place],
            [mean.mean],
            yerr=mean.deviation,
            color=colour,
            marker=marker,
            markersize=7,
            capsize=3,
            linestyle="none",
            label=each.architecture.name if is_first else None,
        )
    if not axes.has_data():
        say_empty(axes, NOT_RUN)
    axes.set_xticks(range(len(methods)), methods)
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.tick_params(axis="x", rotation=20)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
