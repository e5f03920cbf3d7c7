"""What do fewer key/value heads save (Ainslie et al. 2023, figure 6)? Time, encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.records.measurement import FixedLengths, Samples, Timing, search_label, speed_up
from experiments.records.speed import fixed_length_timings
from experiments.report.cells import NOT_MEASURED, SIZE_COLUMNS, Table, size_cells, times_as_fast
from experiments.report.exhibits.exhibit import Exhibit, rounds_beyond, us_per_token
from experiments.report.groups import Group
from experiments.report.pictures.drawing import style
from experiments.report.tables import timing_notes
from gqa_fairseq.architecture import Architecture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_POINTS = 3
Timed = tuple[FixedLengths, Timing]


@dataclass(frozen=True)
class Line:
    """Architectures that differ in G and in what pays for it, multi-head first."""

    name: str
    architectures: tuple[Architecture, ...]


def kv_heads(group: Group) -> Exhibit | None:
    """None unless the group's measurement has multi-head attention and two more numbers of G."""
    if group.measurement is None:
        return None
    timed = fixed_length_timings(group.measurement)
    measured = dict.fromkeys(
        row.architecture
        for row in group.rows
        if any(row.samples(timing) is not None for _, timing in timed)
    )
    multi_head = next((own for own in measured if own.is_baseline), None)
    lines = lines_of(list(measured), multi_head) if multi_head else []
    if multi_head is None or not lines:
        return None
    shapes = list(dict.fromkeys(_shape(work) for work, _ in timed))
    searches = list(dict.fromkeys(search_label(work.beam) for work, _ in timed))
    return Exhibit(
        name="kv-heads",
        table=_table(group, multi_head, lines, timed),
        caption="Key/value heads against time, encoder and decoder together: medians, with the "
        "fastest and the slowest round.",
        size_inches=(3.6 * len(searches) + 1.5, 2.9 * len(shapes)),
        draw=lambda figure: _draw(figure, group, lines, timed, shapes, searches),
    )


def lines_of(measured: Sequence[Architecture], multi_head: Architecture) -> list[Line]:
    """Those that have FEWEST_POINTS numbers of key/value heads."""
    by_name: dict[str, list[Architecture]] = {}
    for own in measured:
        if own != multi_head:
            is_alike = _heads(own) == _heads(multi_head)
            start = [multi_head] if is_alike else []
            by_name.setdefault(_line_name(own, multi_head), start).append(own)
    return [
        Line(name, tuple(sorted(found, key=lambda own: -own.num_kv_heads)))
        for name, found in by_name.items()
        if len({own.num_kv_heads for own in found}) >= FEWEST_POINTS
    ]


def _heads(own: Architecture) -> tuple[int, int, int | None]:
    """The decoder's query heads, their width, and their window."""
    return own.decoder_heads.num_heads, own.decoder_heads.head_dim, own.window


def _line_name(own: Architecture, multi_head: Architecture) -> str:
    """What the architecture has beside its number of key/value heads."""
    words = ["all attentions" if own.placement == "all" else "decoder's attentions"]
    num_heads, head_dim, window = _heads(own)
    if (num_heads, head_dim) != _heads(multi_head)[:2]:
        words.append(f"{num_heads} heads of {head_dim}")
    if window is not None:
        words.append(f"window {window}")
    is_kept = own.decoder_d_ff == multi_head.decoder_d_ff
    words.append("d_ff kept" if is_kept else "d_ff matched")
    return ", ".join(words)


def _table(
    group: Group, multi_head: Architecture, lines: Sequence[Line], timed: Sequence[Timed]
) -> Table:
    columns = ["variant", *SIZE_COLUMNS]
    for work, _ in timed:
        what = f"{search_label(work.beam)} {_shape(work)}"
        columns += [f"{what}: µs/token", f"{what}: times as fast as MHA"]
    architectures = dict.fromkeys(own for line in lines for own in line.architectures)
    rows = []
    for own in sorted(architectures, key=lambda own: -own.num_kv_heads):
        cells = [own.name, *size_cells(own)]
        for _, timing in timed:
            samples = samples_of(group, timing, own)
            base = samples_of(group, timing, multi_head)
            ratio = speed_up(base, samples, "total") if base and samples else None
            cells += [
                f"{us_per_token(samples):,.1f}" if samples else NOT_MEASURED,
                times_as_fast(ratio) if ratio else NOT_MEASURED,
            ]
        rows.append(cells)
    notes = [
        "Encoder and decoder together, per output token; sentences x source/target tokens.",
        *timing_notes(group, [timing for _, timing in timed]),
    ]
    title = "Key/value heads against time (Ainslie et al. 2023, figure 6)"
    by_name = {row.architecture.name: row.source for row in reversed(group.rows)}
    return Table(title, columns, rows, notes, [by_name[cells[0]] for cells in rows])


def samples_of(group: Group, timing: Timing, own: Architecture) -> Samples | None:
    """The samples of a row of that architecture: time does not depend on how it was trained."""
    found = (row.samples(timing) for row in group.rows if row.architecture == own)
    return next(filter(None, found), None)


def _shape(work: FixedLengths) -> str:
    return f"{work.batch} x {work.source_tokens:,}/{work.target_tokens:,}"


def _draw(
    figure: Figure,
    group: Group,
    lines: Sequence[Line],
    timed: Sequence[Timed],
    shapes: Sequence[str],
    searches: Sequence[str],
) -> None:
    """A line of panels a shape, a column a search."""
    panels = figure.subplots(len(shapes), len(searches), squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for work, timing in timed:
        search = search_label(work.beam)
        axes = panels[shapes.index(_shape(work))][searches.index(search)]
        axes.set_visible(True)
        axes.set_title(f"{search}, {_shape(work)} tokens")
        for index, line in enumerate(lines):
            _draw_line(axes, group, line, timing, index)
        numbers = sorted({own.num_kv_heads for line in lines for own in line.architectures})
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.margins(x=0.08)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel("key/value heads (G); the most is MHA, 1 is MQA", fontsize=10)
    figure.supylabel("µs per output token, encoder and decoder", fontsize=10)


def _draw_line(axes: Axes, group: Group, line: Line, timing: Timing, index: int) -> None:
    colour, marker = style(index)
    found = {
        own.num_kv_heads: samples
        for own in line.architectures
        if (samples := samples_of(group, timing, own)) is not None
    }
    beyond = [rounds_beyond(samples) for samples in found.values()]
    axes.errorbar(
        list(found),
        [us_per_token(samples) for samples in found.values()],
        yerr=[[each for [each] in side] for side in zip(*beyond, strict=True)],
        color=colour,
        marker=marker,
        markersize=6,
        capsize=3,
        linewidth=1.4,
        label=line.name,
    )
