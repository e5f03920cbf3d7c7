"""How long must a converted model be trained on (Ainslie et al. 2023, figure 5)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.report.cells import NOT_APPLICABLE, Table, number
from experiments.report.exhibits.exhibit import Exhibit
from experiments.report.exhibits.uptrained import (
    CONTROL,
    Converted,
    Quality,
    alphas_of,
    control_of,
    converted,
    difference,
    merged,
    notes_on,
    qualities,
    seeds_of,
)
from experiments.report.groups import Estimate, Group, Row
from experiments.report.made_by import distinct
from experiments.report.pictures.drawing import GREY, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def alpha(group: Group) -> Exhibit | None:
    """None where the group has no converted model at two alphas."""
    found = converted(group)
    if not any(len(each.by_alpha) > 1 for each in merged(found)):
        return None
    measures = qualities(group)
    attentions = list(dict.fromkeys(each.architecture for each in merged(found)))
    return Exhibit(
        name="alpha",
        table=_table(group, found, measures),
        caption="Share of the parent's updates against quality: means, with the standard deviation "
        "over seeds; the dashed line is the model that was converted, trained on alike.",
        size_inches=(max(6.0, 3.6 * len(attentions)) + 1.5, 3.2 * len(measures)),
        draw=lambda figure: _draw(figure, found, measures),
    )


def _table(group: Group, found: Sequence[Converted], measures: Sequence[Quality]) -> Table:
    loss = measures[0]
    columns = ["variant", "conversion", "alpha", "updates more", "seeds"]
    for quality in measures:
        columns += [quality.heading, f"{quality.heading}: minus control"]
    columns.append("dev loss: closed of what it was behind at alpha 0")
    rows = []
    for each in found:
        for share, row in each.by_alpha.items():
            control = None if each.method == CONTROL else control_of(found, share)
            cells = [
                each.architecture.name,
                each.method,
                f"{share:g}",
                _updates(row),
                seeds_of(row),
            ]
            for quality in measures:
                behind = Estimate.of(list(difference(row, control, quality.value).values()))
                cells += [
                    number(row.estimate(quality.value), quality.digits),
                    _signed(behind, quality.digits),
                ]
            closed = Estimate.of(_closed(found, each, share, loss)) if share else None
            rows.append([*cells, _percent(closed)])
    notes = [
        f"The control ({CONTROL}) is the same parent with its heads as they were, trained on "
        "alike; differences are between runs of one seed. What a model is behind is its dev loss "
        "above the control's of the same alpha.",
        *notes_on(group, found),
    ]
    title = "Share of updates against quality (Ainslie et al. 2023, figure 5)"
    sources = [row.source for each in found for row in each.by_alpha.values()]
    return Table(title, columns, rows, notes, sources)


def _updates(row: Row) -> str:
    """One number, or one a parent."""
    return ", ".join(
        distinct(f"{record.uptraining.updates:,}" for record in row.records if record.uptraining)
    )


def _closed(
    found: Sequence[Converted], each: Converted, share: float, loss: Quality
) -> list[float]:
    """1 - (what is left) / (what it was behind at alpha 0), a value a seed."""
    start = each.by_alpha.get(0.0)
    if start is None or each.method == CONTROL:
        return []
    before = difference(start, control_of(found, 0.0), loss.value)
    after = difference(each.by_alpha[share], control_of(found, share), loss.value)
    return [1 - after[seed] / before[seed] for seed in after if before.get(seed)]


def _signed(found: Estimate | None, digits: int) -> str:
    if found is None:
        return NOT_APPLICABLE
    text = number(found, digits)
    return text if text.startswith("-") else f"+{text}"


def _percent(found: Estimate | None) -> str:
    if found is None:
        return NOT_APPLICABLE
    deviation = "" if found.deviation is None else f" ± {found.deviation:.0%}"
    return f"{found.mean:.0%}{deviation}"


def _draw(figure: Figure, found: Sequence[Converted], measures: Sequence[Quality]) -> None:
    """A line of panels a measure, a column an attention; a colour a method."""
    attentions = list(dict.fromkeys(each.architecture for each in merged(found)))
    methods = distinct(each.method for each in merged(found))
    panels = figure.subplots(len(measures), len(attentions), squeeze=False, sharey="row")
    for line, quality in zip(panels, measures, strict=True):
        line[0].set_ylabel(quality.axis)
        for axes, attention in zip(line, attentions, strict=True):
            axes.set_title(attention.name)
            axes.set_xticks(alphas_of(found))
            for each in found:
                if each.method == CONTROL:
                    _draw_line(axes, each, quality, GREY, "x")
                elif each.architecture == attention:
                    _draw_line(axes, each, quality, *style(methods.index(each.method)))
    handles = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside right center")
    figure.supxlabel("alpha: updates more, as a share of the parent's", fontsize=10)


def _draw_line(axes: Axes, each: Converted, quality: Quality, colour: str, marker: str) -> None:
    points = {
        share: mean
        for share, row in each.by_alpha.items()
        if (mean := row.estimate(quality.value)) is not None
    }
    if not points:
        return
    deviations = [mean.deviation for mean in points.values()]
    axes.errorbar(
        list(points),
        [mean.mean for mean in points.values()],
        yerr=[each or 0.0 for each in deviations] if any(deviations) else None,
        color=colour,
        marker=marker,
        markersize=5,
        capsize=3,
        linewidth=1.4,
        linestyle="--" if each.method == CONTROL else "-",
        label="control" if each.method == CONTROL else each.method,
    )
