"""The answer on one screen, and the papers' formulas beside the exact counts."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from experiments.intensity.answer import Answer, row_of
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.intensity import (
    BUSY_RATIO,
    Layer,
    incremental_counts,
    incremental_ratio,
    training_counts,
    training_ratio,
)
from gqa_fairseq.roofline import Part

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def about(answer: Answer) -> list[str]:
    """What the numbers are of: the model, the load and the machine, a line each."""
    own, load, machine = answer.architecture, answer.load, answer.machine
    heads = own.decoder_heads
    window = f", window {own.window}" if own.window else ""
    search = "greedy" if load.beam == 1 else f"beam {load.beam}"
    rates = ", ".join(f"{kind} {_si(r)}FLOP/s" for kind, r in machine.flops_per_s.items())
    return [
        f"model    {answer.model}: {own.encoder_layers} + {own.decoder_layers} layers, width "
        f"{own.d_model:,}, {heads.num_heads} heads x {heads.head_dim}, d_ff {own.decoder_d_ff:,}"
        f"{window}, {own.vocab_size:,} words, {own.parameters:,} parameters",
        f"load     {load.batch:,} sentences, {load.source_tokens:,} source and "
        f"{load.target_tokens:,} target tokens, {search}; weights {load.weights}, cache "
        f"{load.cache}",
        f"machine  {machine.name}: {_si(machine.bytes_per_s)}B/s, {rates}, "
        f"{_si(machine.memory_bytes)}B ({machine.source})",
    ]


def speed_table(answer: Answer) -> Table:
    """A row for every number of key/value heads: time, its ceilings, memory."""
    table = _table(
        f"Predicted at least, heads changed in {answer.placement}, d_ff {answer.feed_forward}",
        "KV heads", "d_ff", "encoder ms", "decoder ms", "µs/token", "times as fast",
        "as batch grows", "as lines grow", "train step ms", "KV cache", "fits",
        "KV = weights at batch", "or at target",
    )  # fmt: skip
    for row in answer.rows:
        table.add_row(
            f"{row.num_kv_heads}{' *' if row.num_kv_heads == answer.chosen else ''}",
            f"{row.architecture.decoder_d_ff:,}",
            _ms(row.encoder_s),
            _ms(row.decoder_s),
            f"{row.decoder_us_per_token:,.3g}",
            f"{row.speed_up:.2f}",
            f"{row.batch_ceiling:.2f}",
            f"{row.length_ceiling:.2f}",
            _ms(row.training_s),
            f"{_si(row.kv_bytes)}B",
            f"{row.largest_batch:,}",
            f"{row.equal_batch:,.3g}",
            f"{row.equal_target:,.0f}",
        )
    return table


def parts_table(answer: Answer) -> Table:
    """Why: what multi-head and the chosen number move and compute, and what each part waits for."""
    sides = [answer.rows[-1]]
    if answer.chosen != sides[0].num_kv_heads:
        sides.append(row_of(answer.chosen, answer.rows))
    headings = [
        f"{side.num_kv_heads} KV: {what}"
        for side in sides
        for what in ("bytes", "operations", "ms", "waits for")
    ]
    table = _table("Why: one batch, and one update of training on it", "part", *headings)
    for phase in ("encoder", "decoder", "training"):
        parts = [{part.name: part for part in getattr(side, phase)} for side in sides]
        for name in parts[0]:
            label = f"{phase}: {name.replace('_', ' ')}"
            table.add_row(label, *(cell for side in parts for cell in _part_cells(side[name])))
    return table


def _part_cells(part: Part) -> Iterable[str]:
    binds = part.bound if part.bytes_moved else "-"
    return f"{_si(part.bytes_moved)}B", _si(part.flops), _ms(part.seconds), binds


def ratios(answer: Answer) -> str:
    """The papers' ratios in a line; empty where they do not apply."""
    found, d, n = answer.ratios, answer.architecture.d_model, answer.load.target_tokens
    if found is None:
        return ""
    beyond = "" if n <= d else f"; they assume n <= d, and here n = {n:,} is beyond d = {d:,}"
    return (
        f"The papers' memory over arithmetic, above {BUSY_RATIO} of which an accelerator waits: "
        f"training 1/k + 1/(bn) = {found.training:.3f}, decoding n/d + 1/b = "
        f"{found.multi_head:.3f}, with {answer.chosen} KV n G/(d h) + 1/b = {found.chosen:.3f}"
        f"{beyond}."
    )


def formulas_table(architecture: Architecture, batch: int) -> Table:
    """The papers' ratios and the exact ones of one layer, up to and beyond n = d."""
    d, h = architecture.d_model, architecture.decoder_heads.num_heads
    table = _table(
        f"Elements over multiplications of one attention layer: b = {batch:,}, d = {d:,}, "
        f"h = {h}",
        "pass", "G", "n", "formula", "exact, without attention's operations", "exact",
    )  # fmt: skip
    lengths = [max(1, d // 16), max(1, d // 4), d, 4 * d, 64 * d]
    for G in dict.fromkeys((h, 1)):
        for n in lengths:
            layer = Layer(batch, n, d, h, G)
            counts = incremental_counts(layer)
            table.add_row(
                "incremental", str(G), _times_d(n, d), f"{incremental_ratio(layer):.4f}",
                f"{float(counts.ratio_of_projections):.4f}", f"{float(counts.ratio):.4f}",
            )  # fmt: skip
    for n in lengths[:3]:
        layer = Layer(batch, n, d, h, h)
        counts = training_counts(layer)
        table.add_row(
            "training", str(h), _times_d(n, d), f"{training_ratio(layer):.4f}",
            f"{float(counts.ratio_of_projections):.4f}", f"{float(counts.ratio):.4f}",
        )  # fmt: skip
    return table


def _times_d(n: int, d: int) -> str:
    return f"{n:,} = {'d' if n == d else f'{n // d} d' if n > d else f'd/{d // n}'}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    for heading in headings:
        is_text = heading in ("part", "pass") or heading.endswith("waits for")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return table


def _si(value: float) -> str:
    """Three digits with a decimal prefix, such as `1.61 G`."""
    for size, prefix in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
