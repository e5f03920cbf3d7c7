"""The predicted speed-up over batch and length, with the line where KV equals weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from experiments.intensity.answer import Answer, row_of
from experiments.report.pictures.drawing import picture
from gqa_fairseq.roofline import decoder_seconds, equal_target, largest_batch, total_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_BATCH, LONGEST = 4096, 8192
_STEPS = 2  # points between a number and its double


def speed_up_picture(answer: Answer) -> bytes:
    """PNG: batches to the right, target lengths upwards, the source in proportion."""
    return picture(lambda figure: _draw(figure, answer), (7.2, 4.6))


def _draw(figure: Figure, answer: Answer) -> None:
    load, machine = answer.load, answer.machine
    own = row_of(answer.chosen, answer.rows).architecture
    multi_head = answer.rows[-1].architecture
    ratio = load.source_tokens / load.target_tokens
    limit = min(LONGEST, multi_head.max_target_positions or LONGEST)
    batches = _doublings(1, max(LARGEST_BATCH, load.batch))
    lengths = _doublings(min(16, limit), max(limit, load.target_tokens))
    speed_ups, fits = [], []
    for length in lengths:
        at = [
            replace(
                load, batch=batch, target_tokens=length, source_tokens=max(1, round(ratio * length))
            )
            for batch in batches
        ]
        speed_ups.append(
            [
                total_seconds(decoder_seconds(multi_head, one, machine))
                / total_seconds(decoder_seconds(own, one, machine))
                for one in at
            ]
        )
        fits.append(largest_batch(multi_head, at[0], machine))
    axes = figure.subplots()
    mesh = axes.pcolormesh(batches, lengths, speed_ups, shading="nearest", cmap="viridis")
    figure.colorbar(
        mesh, label=f"times as fast, {answer.chosen} over {multi_head.num_kv_heads} KV heads"
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(batches[0], batches[-1])
    axes.set_ylim(lengths[0], lengths[-1])
    equal = [float(equal_target(multi_head, replace(load, batch=batch))) for batch in batches]
    axes.plot(batches, equal, color="white", label="multi-head KV = weights")
    axes.plot(fits, lengths, color="white", linestyle=":", label="multi-head fills the memory")
    axes.plot([load.batch], [load.target_tokens], "o", color="#D55E00", label="the load")
    axes.set_xlabel("batch (sentences)")
    axes.set_ylabel(
        "target tokens" + (f" (source: {ratio:.3g} times)" if ratio != 1 else ", source alike")
    )
    axes.set_title(f"{answer.model} on {machine.name}, predicted", fontsize="medium")
    axes.legend(loc="lower left", facecolor="#555555", labelcolor="white", framealpha=0.8)


def _doublings(first: int, last: int) -> list[int]:
    """Whole numbers from `first` to `last`, evenly on a logarithmic scale."""
    count = max(1, round(_STEPS * math.log2(last / first)))
    points = (first * (last / first) ** (i / count) for i in range(count + 1))
    return sorted({round(point) for point in points})
