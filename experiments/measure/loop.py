"""The one timing loop: competitors do the same workload in turn, and the clock is read around each.

A round has every competitor once, and the machine's probe after them. Ratios are made within a
round, so a machine that slows down slows both sides. What drifts within a round would still favour
who comes first, so each order is followed by its reverse, which cancels a steady drift from every
pair, and each two rounds start with the next competitor, so that nobody is always the first after
the probe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from experiments.engines.clock import now
from experiments.errors import ExperimentError
from experiments.measure.machine import MachineProbe
from experiments.measure.memory import Peak
from experiments.records.measurement import (
    Contender,
    RealText,
    Samples,
    Timing,
    TrainingText,
    Workload,
)
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.costs import Work

Best = list[list[int]]


class Competitor(ABC):
    """A contender at one workload."""

    contender: Contender
    encoder_s: float | None = None  # seconds of the last run; None: not told apart
    kv_cache_bytes: int | None = None
    peak: Peak | None = None

    @abstractmethod
    def run(self) -> None:
        """Do the workload once: this is what is timed."""

    @abstractmethod
    def tokens(self) -> int:
        """Target tokens of the last run; raises ExperimentError where a check finds it wrong."""

    def best(self) -> Best | None:
        """The best hypothesis of each sentence in the last run; None where there is none."""
        return None

    def is_comparable(self) -> bool:
        """Whether its hypotheses should equal another's."""
        return True

    def work(self) -> Work:
        """Bytes and operations of the last run as they are counted; none where they are not."""
        return Work()


def measure(
    competitors: Sequence[Competitor],
    workload: Workload,
    probe: MachineProbe,
    *,
    warmup_runs: int,
    repeats: int,
    bleu: Callable[[Best], float] | None = None,
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> Timing:
    """All competitors `repeats` times in turn, after `warmup_runs` rounds that do not count.

    `bleu` scores the best hypotheses in the order of the sentences. `on_round` is told how many
    rounds are done, of how many.

    Raises:
        ExperimentError: a competitor gave another number of tokens than the workload forces, or
            than before.
    """
    expected = [_forced_tokens(workload)] * len(competitors)
    total_s: list[list[float]] = [[] for _ in competitors]
    encoder_s: list[list[float]] = [[] for _ in competitors]
    read, flops, int8, of_steps = [], [], [], []
    rows = getattr(workload, "beam", 1) * getattr(workload, "batch", 1)
    for count in range(warmup_runs + repeats):
        is_counted = count >= warmup_runs
        for i in turns(len(competitors), count):
            own = competitors[i]
            started = now(probe.device)
            own.run()
            seconds = now(probe.device) - started
            tokens = own.tokens()
            if expected[i] not in (None, tokens):
                raise ExperimentError(f"{own.contender.name}: {tokens} tokens, not {expected[i]}")
            expected[i] = tokens
            if is_counted:
                total_s[i].append(seconds)
                encoder_s[i] += [] if own.encoder_s is None else [own.encoder_s]
        rates = probe.read_bytes_per_s(), probe.flops_per_s()
        more = probe.int8_flops_per_s(), probe.step_flops_per_s(rows)
        if is_counted:
            read.append(rates[0])
            flops.append(rates[1])
            int8 += [] if more[0] is None else [more[0]]
            of_steps += [] if more[1] is None else [more[1]]
        on_round(count + 1, warmup_runs + repeats)
    first: dict[Architecture, Best] = {}
    samples = []
    for i, own in enumerate(competitors):
        best, work = own.best(), own.work()
        differing = None
        if best is not None and own.is_comparable():
            other = first.setdefault(own.contender.architecture, best)
            differing = sum(a != b for a, b in zip(best, other, strict=True))
        samples.append(
            Samples(
                contender=own.contender,
                tokens_produced=expected[i] or 0,
                total_s=total_s[i],
                encoder_s=encoder_s[i] or None,
                bytes_by_part=work.bytes_by_part,
                flops=work.flops or None,
                kv_cache_bytes=own.kv_cache_bytes,
                peak_memory_bytes=own.peak.size_bytes if own.peak else None,
                peak_memory_kind=own.peak.kind if own.peak else None,
                differing=differing,
                bleu=bleu(best) if bleu and best is not None else None,
            )
        )
    return Timing(
        workload=workload,
        warmup_runs=warmup_runs,
        samples=samples,
        read_bytes_per_s=read,
        matrix_flops_per_s=flops,
        int8_flops_per_s=int8,
        step_flops_per_s=of_steps,
    )


def turns(competitors: int, count: int) -> list[int]:
    """Whose turn it is in round `count`, first to last."""
    start = count // 2 % competitors
    order = [(start + i) % competitors for i in range(competitors)]
    return order if count % 2 == 0 else order[::-1]


def _forced_tokens(workload: Workload) -> int | None:
    if isinstance(workload, TrainingText):
        return workload.target_tokens
    return None if isinstance(workload, RealText) else workload.batch * workload.target_tokens
