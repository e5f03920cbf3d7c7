"""How much memory? The peak of one model alone in a fresh process, beside its prediction."""

from __future__ import annotations

from experiments.card.decoding import DRY_SEARCHES, SEARCHES, record
from experiments.card.models import Asked
from experiments.measure.child import Measure, measure_in_process
from experiments.measure.request import Request, RequestedContender


def request(asked: Asked) -> Request:
    """Beam search and greedy, multi-head and multi-query."""
    searches = (DRY_SEARCHES if asked.is_dry else SEARCHES)[:2]
    return Request(
        contenders=[
            RequestedContender(architecture=own, engine="gqa") for own in asked.models((8, 1))
        ],
        searches=searches,
        repeats=1,
        memory=True,
        device=asked.device,
        dtype=asked.dtype,
        threads=asked.threads,
    )


def run(asked: Asked, measure: Measure = measure_in_process) -> None:
    """Measure both searches."""
    record(asked.folder / "memory.json", request(asked), measure)
