"""The parts, by worth: what each answers, how long it may take, and the line of its record."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.card.models import flops_of_an_update, predicted_peak_bytes
from experiments.errors import ExperimentError
from experiments.intensity.campaign import read_cells
from experiments.intensity.cells import CLOSE, closeness
from experiments.records.card import (
    AttentionCases,
    Checks,
    Profiles,
    SideBySide,
    read_card_record,
)
from experiments.records.measurement import (
    FixedLengths,
    Measurement,
    Samples,
    Timing,
    TrainingUpdates,
    read_measurement,
    search_label,
    speed_up,
)


@dataclass(frozen=True)
class Part:
    """`record` is its file, or folder, below the card's; `found` makes of it the summary's line."""

    name: str
    answers: str
    limit_s: float
    record: str
    found: Callable[[Path], str]

    @property
    def module(self) -> str:
        """Whose `run` carries it out."""
        return f"experiments.card.{self.name.replace('-', '_')}"


def _of_decoding(path: Path) -> str:
    return "; ".join(_decoding_figures(read_measurement(path)))


def _decoding_figures(measured: Measurement) -> Iterator[str]:
    """Of each workload: over stock, MQA over MHA against the prediction, steps over roofline."""
    for timing in measured.timings:
        workload = timing.workload
        assert isinstance(workload, FixedLengths)
        multi_head, single = _ends(timing)
        said = []
        stock = next((s for s in timing.samples if s.contender.engine == "stock"), None)
        if stock and (over_stock := speed_up(stock, multi_head, "total")):
            said.append(f"{over_stock.median:.1f} x stock (5)")
        if single is not multi_head and (share := _of_prediction(timing, multi_head, single)):
            said.append(f"MQA/MHA {share:.2f} of predicted (0.9)")
        if over := _over_roofline(timing):
            said.append(f"{over:.2f} x roofline (1.2)")
        yield f"{search_label(workload.beam)} batch {workload.batch}: {', '.join(said)}"


def _ends(timing: Timing) -> tuple[Samples, Samples]:
    """The plugin's models with the most and the fewest key/value heads."""
    own = [s for s in timing.samples if s.contender.engine == "gqa"]
    by_heads = sorted(own, key=lambda s: s.contender.architecture.num_kv_heads)
    return by_heads[-1], by_heads[0]


def _of_prediction(timing: Timing, multi_head: Samples, single: Samples) -> float | None:
    """The decoder's measured speed-up over what the counted bytes and operations predict."""
    measured = speed_up(multi_head, single, "decoder")
    before, after = timing.roofline(multi_head), timing.roofline(single)
    if measured is None or before is None or after is None:
        return None
    return measured.median / (before[0] / after[0])


def _over_roofline(timing: Timing) -> float | None:
    """The plugin's decoder over its least time; of its models the worst."""
    found = [
        statistics.median(raw) / least[0]
        for samples in timing.samples
        if samples.contender.engine == "gqa"
        and (raw := samples.raw_s("decoder"))
        and (least := timing.roofline(samples))
    ]
    return max(found, default=None)


def _of_memory(path: Path) -> str:
    """Measured peak over the predicted one."""
    measured = read_measurement(path)
    said = []
    for timing in measured.timings:
        for samples in timing.samples:
            assert isinstance(timing.workload, FixedLengths)
            assert samples.peak_memory_bytes is not None
            own = samples.contender.architecture
            predicted = predicted_peak_bytes(own, timing.workload, measured.dtype)
            said.append(
                f"{search_label(timing.workload.beam)} G = {own.num_kv_heads} "
                f"{samples.peak_memory_bytes / predicted:.2f}"
            )
    return f"peak over predicted: {', '.join(said)} (0.95 to 1.05)"


def _of_prediction_cells(folder: Path) -> str:
    records = read_cells(folder).values()
    if not records:
        raise ExperimentError("no cell was measured within the time")
    close, count = closeness(records)
    errors = [one.error for record in records for one in record.predictions]
    worst = max((error for error in errors if error is not None), key=abs)
    return f"{close} of {count} predictions within {CLOSE:.0%}, the worst {worst:+.0%}"


def _of_training(path: Path) -> str:
    """Operations of an update over time and measured rate; over stock; over its products alone."""
    (timing,) = read_measurement(path).timings
    assert isinstance(timing.workload, TrainingUpdates)
    own = [s for s in timing.samples if s.contender.engine == "fairseq"]
    first = next(s for s in own if s.contender.architecture.is_multi_head)
    flops = flops_of_an_update(first.contender.architecture, timing.workload)
    reached = flops / statistics.median(first.total_s)
    share = reached / statistics.median(timing.matrix_flops_per_s)
    said = [f"{share:.0%} of the measured rate (40 %)"]
    if (stock := timing.of(first.contender.architecture.name, "stock")) and (
        over := speed_up(stock, first, "total")
    ):
        said.append(f"{over.median:.2f} x stock (1.5)")
    return ", ".join(said)


def _of_record(
    kind: type[Checks] | type[AttentionCases] | type[SideBySide] | type[Profiles],
) -> Callable[[Path], str]:
    return lambda path: read_card_record(path, kind).found


PARTS = (
    Part(
        "correctness",
        "are the kernel, the search, its graphs, half precision and an update right?",
        200,
        "correctness.json",
        _of_record(Checks),
    ),
    Part(
        "decoding",
        "how fast are beam 4 and greedy at the paper's shape, G = 8, 4, 2, 1, beside stock?",
        240,
        "decoding.json",
        _of_decoding,
    ),
    Part(
        "predicted",
        "does the machine's model predict what is measured?",
        180,
        "predicted",
        _of_prediction_cells,
    ),
    Part(
        "kernels",
        "where is the own attention kernel faster than PyTorch's?",
        150,
        "kernels.json",
        _of_record(AttentionCases),
    ),
    Part(
        "training",
        "how near is an update to the card's rate, and how much faster than stock's?",
        100,
        "training.json",
        _of_training,
    ),
    Part(
        "seeds",
        "are many small trainings side by side faster than one after the other?",
        80,
        "seeds.json",
        _of_record(SideBySide),
    ),
    Part(
        "profile",
        "where does a step's time go?",
        80,
        "profile.json",
        _of_record(Profiles),
    ),
    Part(
        "memory",
        "is the peak memory of decoding what is predicted?",
        100,
        "memory.json",
        _of_memory,
    ),
)
BY_NAME = {part.name: part for part in PARTS}
