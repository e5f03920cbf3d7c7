"""What quality costs in time, across models (Ainslie et al. 2023, figure 3).

A smaller multi-head model is another way to be faster. It has another baseline, so it stands in
another group, and no table of a group shows it; here rows of several groups meet, where one
measurement has them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from experiments.records.measurement import Samples, Timing, search_label, speed_up
from experiments.report.answers import scale
from experiments.report.cells import (
    NOT_MEASURED,
    SIZE_COLUMNS,
    Table,
    number,
    size_cells,
    times_as_fast,
)
from experiments.report.exhibits.exhibit import Exhibit, few, rounds_beyond, us_per_token
from experiments.report.exhibits.uptrained import CONTROL, longest_of, seeds_of
from experiments.report.groups import Group, Row, shared_config
from experiments.report.made_by import made_by
from experiments.report.pictures.drawing import MARKERS, style
from experiments.report.selection import (
    HEADLINE_METRIC,
    Value,
    headline_kind,
    headline_timing,
    score_value,
    searches,
    test_splits,
    timed_shapes,
)
from experiments.report.tables import metric_notes, timing_notes
from gqa_fairseq.architecture import distinct_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FROM_SCRATCH = "from scratch"


# The architecture's name, and how the model was made: its method of conversion, or from scratch.
Made = tuple[str, str]


@dataclass(frozen=True)
class Search:
    """One search: what it scores, and the rows that have a score and a time, with that time.

    `base` is the time of the largest multi-head model.
    """

    beam: int
    timing: Timing
    value: Value
    shown: dict[Made, tuple[Row, Samples]]
    base: Samples


def trade_offs(groups: Sequence[Group]) -> list[Exhibit]:
    """One for all groups of a scale that differ in their models alone and were measured together.

    None where there is one model and nothing was uptrained: the plot of its group shows that.
    """
    together: dict[tuple[bytes, int], list[Group]] = {}
    for group in groups:
        if group.measurement is not None:
            config = {k: v for k, v in shared_config(group.first).items() if k != "model"}
            alike = (scale(group), group.first.data.checksum, config)
            key = msgspec.json.encode(alike, order="deterministic")
            together.setdefault((key, id(group.measurement)), []).append(group)
    found: list[Exhibit] = []
    for members in together.values():
        uptrained = any(row.uptraining for group in members for row in group.rows)
        if (len(members) > 1 or uptrained) and (searched := _searches(members)):
            found.append(_exhibit(members, searched, len(found) + 1))
    return found


def _exhibit(groups: Sequence[Group], searched: Sequence[Search], count: int) -> Exhibit:
    return Exhibit(
        name=f"trade-off-{count}",
        table=_table(groups, searched),
        caption="Quality against time: means over seeds with their standard deviation; times are "
        "medians, with the fastest and the slowest round.",
        size_inches=(4.2 * len(searched) + 2.0, 4.2),
        draw=lambda figure: _draw(figure, groups, searched),
    )


def shown_rows(groups: Sequence[Group]) -> list[Row]:
    """Rows from scratch, and of each attention and method that was uptrained the largest alpha."""
    return longest_of([row for group in groups for row in group.rows])


def _searches(groups: Sequence[Group]) -> list[Search]:
    """Those that two rows at least have a time and a score of, with a multi-head model."""
    rows = shown_rows(groups)
    names = distinct_names(row.architecture for row in rows)
    first, found = groups[0], []
    split = next(iter(test_splits(first)), None)
    for beam in searches(first):
        timing = headline_timing(first, beam)
        kind = headline_kind(first, split, beam) if split else None
        if timing is None or split is None or kind is None:
            continue
        value = score_value(split, kind)
        shown = {
            (names[row.architecture], _how(row)): (row, samples)
            for row in rows
            if (samples := row.samples(timing)) and row.estimate(value)
        }
        baselines = [each for each in shown.values() if each[0].architecture.is_baseline]
        if len(shown) > 1 and baselines:
            _, base = max(baselines, key=lambda each: each[0].architecture.parameters)
            found.append(Search(beam, timing, value, shown, base))
    return found


def _how(row: Row) -> str:
    if row.uptraining is None:
        return FROM_SCRATCH
    how = row.uptraining
    merged = "trained on" if how.method == CONTROL else how.method
    return f"{merged}, alpha {how.alpha:g}"


def _table(groups: Sequence[Group], searched: Sequence[Search]) -> Table:
    split = next(iter(test_splits(groups[0])))
    columns = ["model", "made", *SIZE_COLUMNS, "seeds"]
    for search in searched:
        label = search_label(search.beam)
        columns += [
            f"{split} {HEADLINE_METRIC.label} {label}",
            f"µs/token {label}",
            f"times as fast as the largest MHA {label}",
        ]
    made = {name: row for search in searched for name, (row, _) in search.shown.items()}
    rows = []
    for name, row in made.items():
        cells = [*name, *size_cells(row.architecture), seeds_of(row)]
        for search in searched:
            _, samples = search.shown.get(name, (row, None))
            ratio = speed_up(search.base, samples, "total") if samples else None
            cells += [
                number(row.estimate(search.value), HEADLINE_METRIC.digits),
                f"{us_per_token(samples):,.1f}" if samples else NOT_MEASURED,
                times_as_fast(ratio) if ratio else NOT_MEASURED,
            ]
        rows.append(cells)
    batch, source, target = timed_shapes(groups[0])[0]
    seeds = min(len(row.records) for row in made.values())
    notes = [
        f"Time is of encoder and decoder together, per output token: batch {batch}, source "
        f"{source:,}, target {target:,} tokens.",
        *timing_notes(groups[0], [search.timing for search in searched]),
        f"Scores are mean ± standard deviation over seeds. {few(seeds)}".strip(),
        "Variants of one baseline have its number of parameters, but for those that keep its d_ff; "
        "what was uptrained is another row than what was trained from scratch.",
        *metric_notes(groups[0], split),
        *made_by([record for row in made.values() for record in row.records]),
    ]
    title = "Quality against time (Ainslie et al. 2023, figure 3)"
    return Table(title, columns, rows, notes, [row.source for row in made.values()])


def _draw(figure: Figure, groups: Sequence[Group], searched: Sequence[Search]) -> None:
    """A panel a search: a colour an architecture, a marker how it was made."""
    panels = figure.subplots(1, len(searched), squeeze=False, sharey=True)[0]
    made = list(dict.fromkeys(name for search in searched for name in search.shown))
    names, hows = (list(dict.fromkeys(part)) for part in zip(*made, strict=True))
    for axes, search in zip(panels, searched, strict=True):
        axes.set_title(search_label(search.beam))
        for (name, how), (row, samples) in search.shown.items():
            quality = row.estimate(search.value)
            assert quality is not None
            axes.errorbar(
                [us_per_token(samples)],
                [quality.mean],
                xerr=rounds_beyond(samples),
                yerr=quality.deviation,
                color=style(names.index(name))[0],
                marker=MARKERS[hows.index(how) % len(MARKERS)],
                markersize=8,
                markeredgecolor="white",
                capsize=2,
                elinewidth=1.0,
                linestyle="none",
                label=name if len(hows) == 1 else f"{name}, {how}",
            )
        axes.set_xlim(left=0)
        axes.margins(x=0.08, y=0.12)
    split = next(iter(test_splits(groups[0])))
    metric = HEADLINE_METRIC
    panels[0].set_ylabel(f"{metric.label} on {split} ({metric.lowest:g} to {metric.highest:g})")
    figure.supxlabel("µs per output token, encoder and decoder (left is faster)", fontsize=10)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside right center")
