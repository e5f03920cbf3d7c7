"""One measurement from the request to the record."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch

from experiments.engines import find_engine
from experiments.errors import ExperimentError
from experiments.measure.decoding import Decoder
from experiments.measure.loop import Competitor, measure
from experiments.measure.machine import MachineProbe
from experiments.measure.memory import Peak, can_restart_peak, in_fresh_process, peak_of
from experiments.measure.request import (
    TRAINER,
    Request,
    RequestedContender,
    decoding_workloads,
    training_workload,
    weights_of,
    without_refused,
)
from experiments.measure.training import Training, Updates, competitors, real_updates
from experiments.measure.workloads import Text, load_text
from experiments.records import provenance
from experiments.records.measurement import (
    FixedLengths,
    Measurement,
    RealText,
    Timing,
    TrainingText,
    TrainingUpdates,
    Workload,
)
from gqa_fairseq.architecture import Architecture
from gqa_fairseq.decoding.cpu.native import operators_name

# Title of the workload, rounds done, rounds in all.
OnRound = Callable[[str, int, int], None]
# By architecture, engine and workload.
Peaks = dict[tuple[Architecture, str, Workload], Peak]


def run_request(
    request: Request,
    on_timing: Callable[[Measurement], None] = lambda measurement: None,
    on_round: OnRound = lambda title, done, rounds: None,
) -> Measurement:
    """Measure every contender that its engine does not refuse on every workload.

    `on_timing` gets what is measured so far, after every workload.

    Raises:
        ExperimentError: no such device, a checkpoint or corpus that cannot be read, out of memory,
            or a check that failed: the number of tokens, the size of the cache.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise ExperimentError("no CUDA device is there (use --device cpu)")
    quieten_fairseq()
    torch.set_num_threads(request.threads)
    device, dtype = torch.device(request.device), getattr(torch, request.dtype)
    made_by = provenance.made_by(request.threads)
    contenders = without_refused(request)
    text = load_text(request.text) if request.text else None
    decoding = _decoding_workloads(request, text)
    training: Updates | None = training_workload(request.training) if request.training else None
    trained = _one_each_architecture(contenders) if training else []
    # Memory first: this process does not hold a model yet.
    peaks = _peaks(request, contenders, decoding, trained, training) if request.memory else {}
    has_int8 = any(find_engine(c.engine).weight_bytes == 1 for c in contenders)
    probe = MachineProbe(device, dtype, has_int8, request.step_rates)
    timings: list[Timing] = []

    def time(competitors: Sequence[Competitor], workload: Workload, repeats: int) -> None:
        for competitor in competitors:
            own = competitor.contender
            competitor.peak = peaks.get((own.architecture, own.engine, workload))
        timing = measure(
            competitors,
            workload,
            probe,
            warmup_runs=request.warmup_runs,
            repeats=repeats,
            bleu=text.bleu if text and isinstance(workload, RealText) else None,
            on_round=lambda done, rounds: on_round(workload.title, done, rounds),
        )
        timings.append(timing)
        on_timing(result())

    def result() -> Measurement:
        return Measurement(
            created_utc=datetime.now(UTC),
            provenance=made_by,
            device=request.device,
            dtype=request.dtype,
            operators=operators_name(torch.empty(0, device=device, dtype=dtype)),
            timings=timings,
        )

    decoders = [Decoder(c, device, dtype, is_alone=False) for c in contenders]
    try:
        for workload in decoding:
            weights = weights_of(contenders, _needed_positions(workload))
            # No name keeps them: their memory goes before the next ones take theirs.
            time([d.take(workload, weights, text) for d in decoders], workload, request.repeats)
    finally:
        for decoder in decoders:
            decoder.close()
    if training and request.training:
        gc.collect()
        updates, batches = training, None
        if request.training.text:
            updates, batches = real_updates(
                trained[0], request.training.text, request.training.batch
            )
        trainers = competitors(trained, request.training.trainers, updates, batches)
        time(trainers, updates, request.training.repeats)
    return result()


def quieten_fairseq() -> None:
    """Else it has a line for every dictionary."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)


def _decoding_workloads(request: Request, text: Text | None) -> list[FixedLengths | RealText]:
    if text is None:
        return decoding_workloads(request)
    return decoding_workloads(request, text.sentences, text.source_tokens)


def _needed_positions(workload: FixedLengths | RealText) -> int:
    """0 for real text: what is prepared for a model fits it."""
    if isinstance(workload, RealText):
        return 0
    return max(workload.source_tokens, workload.target_tokens)


def _one_each_architecture(contenders: Sequence[RequestedContender]) -> list[RequestedContender]:
    """Those with a training command, the first of each architecture."""
    found: dict[Architecture, RequestedContender] = {}
    for contender in contenders:
        if contender.training_command:
            found.setdefault(contender.architecture, contender)
    return list(found.values())


def _peaks(
    request: Request,
    contenders: Sequence[RequestedContender],
    decoding: Sequence[FixedLengths | RealText],
    trained: Sequence[RequestedContender],
    training: Updates | None,
) -> Peaks:
    """One fresh process a contender, which goes through all workloads, training last."""
    found: Peaks = {}
    for asked in contenders:
        workloads: list[Workload] = list(decoding)
        if not find_engine(asked.engine).sees_memory(request.device):
            workloads = []
        if training and asked in trained:
            workloads.append(training)
        arguments = (request, asked)
        peaks = in_fresh_process(asked.name, _peaks_here, arguments, workloads)
        for workload, peak in zip(workloads, peaks, strict=True):
            is_training = not isinstance(workload, FixedLengths | RealText)
            engine = TRAINER if is_training else asked.engine
            found[asked.architecture, engine, workload] = peak
    return found


def _peaks_here(
    request: Request, asked: RequestedContender, workloads: Sequence[Workload]
) -> list[Peak]:
    """Runs in the fresh process, on all workloads or on as many as it can tell apart."""
    quieten_fairseq()
    torch.set_num_threads(request.threads)
    contenders = without_refused(request)
    decoder = Decoder(
        asked, torch.device(request.device), getattr(torch, request.dtype), is_alone=True
    )
    text = load_text(request.text) if request.text else None

    def ready(workload: Workload) -> Competitor:
        if isinstance(workload, TrainingUpdates | TrainingText):
            decoder.close()
            return Training(asked, workload)
        return decoder.take(workload, weights_of(contenders, _needed_positions(workload)), text)

    told_apart = workloads if can_restart_peak(request.device) else workloads[:1]
    peaks = [peak_of(ready(workload).run, request.device) for workload in told_apart]
    decoder.close()
    return peaks
