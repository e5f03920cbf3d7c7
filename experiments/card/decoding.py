"""How fast? Searches of fixed lengths, the plugin's models and stock fairseq in turn."""

from __future__ import annotations

from pathlib import Path

from experiments.card.models import Asked
from experiments.measure.child import Measure, measure_in_process
from experiments.measure.request import FixedSearch, Request, RequestedContender
from experiments.records.measurement import write_measurement
from experiments.report.measured import markdown

# Sentences, source and target tokens, and beam. First what leads; then Shazeer's batch on a TPUv2,
# and the lengths and the batch of Ainslie et al. 2023, table 1.
SEARCHES: list[FixedSearch] = [
    (128, 128, 128, 4),
    (128, 128, 128, 1),
    (1024, 128, 128, 1),
    (32, 512, 256, 1),
]
DRY_SEARCHES: list[FixedSearch] = [(2, 6, 5, 4), (2, 6, 5, 1)]
KV_HEADS = (8, 4, 2, 1)


def request(asked: Asked) -> Request:
    """All head counts with the plugin's engine, and the multi-head one with stock's."""
    models = asked.models((8, 1) if asked.is_dry else KV_HEADS)
    multi_head = models[0]
    return Request(
        contenders=[
            *(RequestedContender(architecture=own, engine="gqa") for own in models),
            RequestedContender(architecture=multi_head, engine="stock"),
        ],
        searches=DRY_SEARCHES if asked.is_dry else SEARCHES,
        repeats=1 if asked.is_dry else 5,
        memory=False,
        device=asked.device,
        dtype=asked.dtype,
        threads=asked.threads,
    )


def record(path: Path, request: Request, measure: Measure) -> None:
    """Carry the request out; its record is written anew after each workload, and then shown."""
    measured = measure(request, lambda measured: write_measurement(path, measured))
    print(markdown([measured]))


def run(asked: Asked, measure: Measure = measure_in_process) -> None:
    """Measure all searches."""
    record(asked.folder / "decoding.json", request(asked), measure)
