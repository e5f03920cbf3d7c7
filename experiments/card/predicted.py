"""Does the model of the machine predict what is measured? A grid of loads within the time."""

from __future__ import annotations

import time

from experiments.card.models import Asked
from experiments.intensity import plans
from experiments.intensity.campaign import Campaign, Settings
from experiments.intensity.machines import find_machine, usable_bytes
from experiments.measure.child import Measure, measure_in_process

LEFT_S = 5.0  # to predict what was not measured


def plan(asked: Asked) -> plans.Plan:
    """Batches and lengths at which now the weights and now the cache bound a step."""
    (multi_head,) = asked.models((8,))
    sizes: dict[str, tuple[int, ...]] = {
        "kv_heads": (8, 1), "batches": (32, 256), "lengths": (128, 512), "beams": (1, 4),
    }  # fmt: skip
    if asked.is_dry:
        sizes = {"kv_heads": (8, 1), "batches": (2,), "lengths": (6,), "beams": (1,)}
    return plans.grid(multi_head, weights=[asked.dtype], cache=asked.dtype, positions=32, **sizes)


def run(asked: Asked, measure: Measure = measure_in_process) -> None:
    """Measure the cheapest cells first, and predict the rest."""
    ends = time.monotonic() + asked.limit_s - LEFT_S
    machine = find_machine(f"here-{asked.device}")
    settings = Settings(
        folder=asked.folder / "predicted",
        machine=machine,
        memory_bytes=usable_bytes(machine, asked.device),
        budget_s=ends - time.monotonic(),
        device=asked.device,
        dtype=asked.dtype,
        threads=asked.threads,
        repeats=1 if asked.is_dry else 3,
    )
    Campaign(plan(asked), settings, measure).run()
