"""What is to be measured, as a file: the one input of `python -m experiments.measure`.

Whoever asks for a measurement writes it and imports neither torch nor fairseq for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from experiments.engines import ENGINES, find_engine
from experiments.errors import ExperimentError
from experiments.records.checked import Checked, Device, Positive, Sha256, Text
from experiments.records.measurement import FixedLengths, RealText, TrainingUpdates, Workload
from experiments.records.parts import Precision
from gqa_fairseq.architecture import Architecture, distinct_names

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[Precision, Dtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Sentences, source tokens and target tokens, end of sentence included.
FixedShape = tuple[int, int, int]
FixedSearch = tuple[int, int, int, int]  # the same, and a beam
TRAINER = "fairseq"  # the engine of training updates
# Who else can do them: fairseq's own model, loss and Adam, and the products of an update alone.
TRAINERS = (TRAINER, "stock", "products")


class RequestedContender(Checked, frozen=True, kw_only=True):
    """An architecture with an engine.

    `checkpoint` is the file whose weights are used where it has the positions that are needed;
    `data` the folder of the binarized corpus with the dictionary of its model. `jobs` are the ids
    of the jobs whose speed this is. `training_command` is the job's own, from `fairseq-train` on:
    with it training updates can be measured. However many processes it asks for, one is used.
    """

    architecture: Architecture
    engine: Text
    checkpoint: str | None = None
    data: str | None = None
    jobs: list[Sha256] = field(default_factory=list)
    training_command: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.architecture.name}, {self.engine}"


class RequestedText(Checked, frozen=True, kw_only=True):
    """The test set of a prepared data folder, and how it is translated.

    `data` has bin/, text/ and spm.model. The limits of length are fairseq's: a translation has at
    most `max_len_a` * source + `max_len_b` tokens; scores are divided by length ** `length_alpha`.
    """

    name: Text
    data: Text
    source_lang: Text
    target_lang: Text
    batch: Positive
    length_alpha: float
    max_len_a: float
    max_len_b: int


class RequestedTraining(Checked, frozen=True, kw_only=True):
    """Updates on `batch` sentence pairs of these lengths, by each of `trainers`.

    With `text` there is an update on each of `batch` real batches instead, which are evenly spread
    over those of the training command's own text; `text` is its name.
    """

    batch: Positive
    repeats: Positive = 5
    source_tokens: Positive = 128
    target_tokens: Positive = 128
    text: Text | None = None
    trainers: list[str] = field(default_factory=lambda: [TRAINER])


class Request(Checked, frozen=True, kw_only=True):
    """One measurement: every contender on every workload.

    Workloads are each of `shapes`, or `text`, with each of `beams`, then each of `searches`, and
    `training` for the contenders that have a training command. Each is warmed up `warmup_runs`
    times and measured `repeats` times. `memory` asks for peak memory as well, `step_rates` for the
    rate of products of as many rows as a step has.
    """

    contenders: Annotated[list[RequestedContender], Meta(min_length=1)]
    shapes: list[FixedShape] = field(default_factory=list)
    text: RequestedText | None = None
    beams: list[int] = field(default_factory=list)
    searches: list[FixedSearch] = field(default_factory=list)
    training: RequestedTraining | None = None
    warmup_runs: Positive = 1
    repeats: Positive = 5
    memory: bool = True
    step_rates: bool = False
    device: Device
    dtype: Dtype
    threads: Positive


def check_request(request: Request) -> list[str]:
    """Refuse what cannot be measured, before any work.

    Returns:
        One line for each contender that its engine refuses; the others can be measured.

    Raises:
        ExperimentError: one line: nothing to measure, something doubled, an unknown engine, or all
            contenders are refused.
    """
    decodes = bool(request.shapes or request.text)
    trains = request.training and (request.training.text or not request.beams)
    if not (decodes or request.searches or trains):
        raise ExperimentError(
            "shapes is empty: give at least one BATCHxSOURCExTARGET, such as 32x128x64"
        )
    shapes, searches = (
        ["x".join(map(str, shape)) for shape in asked]
        for asked in (request.shapes, request.searches)
    )
    refuse_doubled("shapes", shapes)
    refuse_doubled("searches", searches)
    for shape, (batch, source, target, *beam) in zip(
        [*shapes, *searches], [*request.shapes, *request.searches], strict=True
    ):
        if min(batch, source, *beam) < 1 or target < 2:
            raise ExperimentError(
                f"shapes: {shape}: a batch has at least 1 sentence, a source 1 token and a target "
                "2 tokens (one ends the sentence)"
            )
    if decodes and not request.beams:
        raise ExperimentError("beams is empty: give at least one, such as 4 or 1 (greedy)")
    refuse_doubled("beams", request.beams)
    if min(request.beams, default=1) < 1:
        raise ExperimentError(f"beams: {min(request.beams)} is not a whole number above 0")
    words = min(c.architecture.vocab_size for c in request.contenders)
    if max(request.beams, default=1) >= words:
        raise ExperimentError(
            f"beams: {max(request.beams)} is more than the {words - 1} words to choose from"
        )
    if request.device == "cpu" and request.dtype == "float16":
        raise ExperimentError("dtype: a CPU has no float16 of use (choose float32 or bfloat16)")
    names = distinct_names(c.architecture for c in request.contenders)
    refuse_doubled(
        "contenders", [f"{names[c.architecture]}, {c.engine}" for c in request.contenders]
    )
    for contender in request.contenders:
        find_engine(contender.engine)
        if request.text and not contender.checkpoint:
            raise ExperimentError(f"{contender.name}: real text needs a checkpoint")
        if contender.checkpoint and not contender.data:
            raise ExperimentError(
                f"{contender.name}: a checkpoint without the folder of data that has its dictionary"
            )
    if request.training:
        if request.training.text and request.memory:
            raise ExperimentError("memory is measured at fixed lengths, not on real batches")
        refuse_doubled("trainers", request.training.trainers)
        check_trainers(request.training.trainers)
    refused = [(c, _refusal(c, request)) for c in request.contenders]
    reasons = [f"{c.name}: left out: {reason}" for c, reason in refused if reason]
    if len(reasons) == len(request.contenders):
        causes = "; ".join(dict.fromkeys(reason for _, reason in refused if reason))
        accepted = [
            name
            for name, engine in ENGINES.items()
            if any(
                engine.refusal(c.architecture, request.device, request.dtype) is None
                for c in request.contenders
            )
        ]
        raise ExperimentError(f"nothing to measure: {causes} (choose of {', '.join(accepted)})")
    return reasons


def without_refused(request: Request) -> list[RequestedContender]:
    """The contenders that can be measured."""
    return [c for c in request.contenders if _refusal(c, request) is None]


def decoding_workloads(request: Request, sentences: int = 0, source_tokens: int = 0) -> list[Any]:
    """The workloads of decoding, in order; `sentences` and `source_tokens` are those of `text`."""
    own = [c.architecture for c in request.contenders]
    limits = [n for a in own for n in (a.max_source_positions, a.max_target_positions)]

    def fixed(batch: int, source: int, target: int, beam: int) -> FixedLengths:
        return FixedLengths(
            batch=batch,
            source_tokens=source,
            target_tokens=target,
            beam=beam,
            max_positions=max(source, target, *limits),
        )

    found: list[Workload] = [
        fixed(*shape, beam) for shape in request.shapes for beam in request.beams
    ]
    if request.text:
        found += [
            RealText(
                name=request.text.name,
                batch=request.text.batch,
                sentences=sentences,
                source_tokens=source_tokens,
                beam=beam,
            )
            for beam in request.beams
        ]
    return [*found, *(fixed(*search) for search in request.searches)]


def training_workload(training: RequestedTraining) -> TrainingUpdates:
    return TrainingUpdates(
        batch=training.batch,
        source_tokens=training.source_tokens,
        target_tokens=training.target_tokens,
    )


def weights_of(
    contenders: Sequence[RequestedContender], needed_positions: int
) -> Literal["random", "trained"]:
    """Trained where every contender has a checkpoint with as many positions, else random.

    All or none: where beams come to share their history, time depends on the weights.
    """
    for contender in contenders:
        own = contender.architecture
        positions = min(own.max_source_positions, own.max_target_positions)
        if not contender.checkpoint or positions < needed_positions:
            return "random"
    return "trained"


def with_positions(architecture: Architecture, positions: int) -> Architecture:
    """The same with at least so many positions."""
    return replace(
        architecture,
        max_source_positions=max(architecture.max_source_positions, positions),
        max_target_positions=max(architecture.max_target_positions, positions),
    )


def _refusal(contender: RequestedContender, request: Request) -> str | None:
    engine = find_engine(contender.engine)
    return engine.refusal(contender.architecture, request.device, request.dtype)


def check_trainers(names: Sequence[str]) -> None:
    """Raise ExperimentError, one line, for a trainer that there is not."""
    for name in names:
        if name not in TRAINERS:
            raise ExperimentError(f"trainer {name!r} is unknown: {', '.join(TRAINERS)}")


def refuse_doubled(name: str, values: Sequence[Any]) -> None:
    """Raise ExperimentError, one line, where a value is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise ExperimentError(f"{name}: {value} is there twice (remove one)")
