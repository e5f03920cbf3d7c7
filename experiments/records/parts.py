"""The parts of a job's record: what each stage found, and what must hold within each part.

Each quantity has its unit in its name. A part that contradicts itself is refused, when it is built
and when it is read.
"""

import itertools
import math
import statistics
from datetime import datetime
from fractions import Fraction
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from experiments.metrics import METRICS
from experiments.records.checked import (
    Checked,
    Count,
    Device,
    MemoryKind,
    Positive,
    Seconds,
    Sha256,
    Text,
    require,
    require_close,
)
from gqa_fairseq.architecture import ConversionMethod

Precision = Literal["fp32", "fp16", "bf16"]
SearchEngine = Literal["stock", "gqa"]
LengthPenalty = Literal["fairseq", "gnmt"]
ModelFree = Literal["copy", "nearest"]
Share = Annotated[float, Meta(ge=0, le=1)]
CLOCK_S = 2.0  # fairseq's clock has whole seconds, so that a line may seem this much longer
# What was done to the heads; `identity`: there are as many as before.
Conversion = ConversionMethod | Literal["identity"]
# Translations that need no model: the source itself, and that of the nearest training line.
MODEL_FREE: dict[ModelFree, str] = {"copy": "copied source", "nearest": "nearest training line"}
# What a score may exceed its metric's range by: sacrebleu's sums are rounded.
ROUNDING = 1e-9


class CodeInfo(Checked, frozen=True, kw_only=True):
    """Where the code came from: git's commit (null outside git) and a digest of tracked files."""

    commit: Annotated[str, Meta(pattern="^[0-9a-f]{40,64}$")] | None
    dirty: bool | None
    digest: Sha256

    def check(self) -> None:
        require((self.commit is None) == (self.dirty is None), "commit and dirty go together")

    @property
    def label(self) -> str:
        """Such as `05328bd` or `05328bd with changes`."""
        if self.commit is None:
            return f"code {self.digest[:7]}"
        return self.commit[:7] + (" with changes" if self.dirty else "")


class Hardware(Checked, frozen=True, kw_only=True):
    """The machine. `cores_usable` is what the process may use, `memory_bytes` what it may fill."""

    cpu_model: Text
    cores_usable: Positive
    memory_bytes: Positive
    gpus: list[Text]


class Provenance(Checked, frozen=True, kw_only=True):
    """What made a result. None of it decides whether the result counts; differences are named."""

    code: CodeInfo
    versions: dict[str, str]
    hardware: Hardware
    threads: Positive


class StageInfo(Checked, frozen=True, kw_only=True):
    """A stage that is done: its identity, what made it, and what it took.

    `wall_s` adds up all tries, `tries` counts them.
    """

    name: Text
    key: Sha256
    recipe: Positive
    provenance: Provenance
    started_utc: Annotated[datetime, Meta(tz=True)]
    wall_s: Seconds
    tries: Positive


class JobInfo(Checked, frozen=True, kw_only=True):
    """Which job this was; `id` is the key of its last stage, `wall_s` that of all its stages."""

    id: Sha256
    experiment: Text
    started_utc: Annotated[datetime, Meta(tz=True)]
    wall_s: Seconds


class TrainPoint(Checked, frozen=True, kw_only=True):
    """One point of the training curve; `target_tokens` and `wall_s` count from the start.

    The train loss and `grad_norm` are means over the updates since the point before. `grad_norm` is
    the L2 norm, before it is clipped, of the gradient of the loss that is trained on (nats per
    target token, smoothed labels included); null where it was not logged, as in older records.
    """

    update: Count
    train_nll_nats_per_token: float | None
    dev_nll_nats_per_token: float | None
    learning_rate: float | None
    target_tokens: Count
    wall_s: Seconds
    grad_norm: Annotated[float, Meta(ge=0)] | None = None

    def check(self) -> None:
        require(
            (self.train_nll_nats_per_token, self.dev_nll_nats_per_token) != (None, None),
            "a point of the curve needs a train or a dev loss",
        )


class Training(Checked, frozen=True, kw_only=True):
    """What training did: of an uptrained model the updates after its conversion, counted from 1.

    `target_tokens` are real ones, padding not counted; `target_tokens_per_update_wanted` is the
    config's, null where a checkpoint's own recipe asks for no number. `update_wall_s` is what the
    updates alone take at the rate of those that no start, validation or checkpoint slowed;
    `us_per_target_token` is that rate, pauses in between included. `peak_memory_bytes` is the
    largest of the processes. `averaged_updates` are the updates of the checkpoints whose mean was
    evaluated; empty where it was the last checkpoint.
    """

    device: Device
    precision: Precision
    processes: Positive
    curve: Annotated[list[TrainPoint], Meta(min_length=1)]
    updates: Positive
    target_tokens: Positive
    target_tokens_per_update: float
    target_tokens_per_update_wanted: Positive | None
    update_wall_s: Seconds
    us_per_target_token: float
    peak_memory_bytes: Positive
    peak_memory_kind: MemoryKind
    averaged_updates: list[Positive] = msgspec.field(default_factory=list)

    def check(self) -> None:
        check_curve(self.curve, self.updates)
        require_close("target_tokens_per_update", self, self.target_tokens / self.updates)
        require_close("us_per_target_token", self, 1e6 * self.update_wall_s / self.target_tokens)

    @property
    def running_us_per_target_token(self) -> float:
        """`us_per_target_token` without the lines of the log in which training stood still.

        Such a line took more than twice what a line takes (the median), because the process was
        paused or its machine had other work. The rate is then that of the other lines of the curve.
        """
        steps = [
            (point.wall_s - before.wall_s, point.target_tokens - before.target_tokens)
            for before, point in itertools.pairwise(self.curve)
            if before.dev_nll_nats_per_token is None and point.target_tokens > before.target_tokens
        ]
        typical = statistics.median(seconds / tokens for seconds, tokens in steps) if steps else 0.0
        ran = [(s, n) for s, n in steps if s <= 2 * typical * n + CLOCK_S]
        if not typical or len(ran) == len(steps):
            return self.us_per_target_token
        return 1e6 * sum(s for s, _ in ran) / sum(n for _, n in ran)


class Uptraining(Checked, frozen=True, kw_only=True):
    """How a trained model was converted and trained on (Ainslie et al. 2023, section 2.1).

    The parent is the model that was converted, after `parent_updates`: `parent` is the key of its
    train stage or, where it is a file that no job made, that file's sha256. `updates` is the share
    `alpha` of the parent's, rounded up; 0 for a model that was converted and not trained on.
    `identity` merges no heads: the model trained on like the others, which they are compared with.
    """

    method: Conversion
    alpha: Share
    parent_updates: Positive
    updates: Count
    parent: Sha256

    @property
    def label(self) -> str:
        """Such as `svd-product-0.05`."""
        return uptraining_label(self.method, self.alpha)

    def check(self) -> None:
        expected = updates_more(self.alpha, self.parent_updates)
        require(
            self.updates == expected,
            f"updates is {self.updates}, but {self.alpha:g} of {self.parent_updates} is {expected}",
        )


def uptraining_label(method: Conversion, alpha: float) -> str:
    """Such as `svd-product-0.05`: what the name of an uptrained model has beside the heads'."""
    return f"{method}-{alpha:g}"


def updates_more(alpha: float, parent_updates: int) -> int:
    """The share `alpha` of a number of updates, rounded up.

    The share is the decimal number as it is written: 0.1 of 550 is 55, although the nearest float
    to 0.1 is a little more than a tenth.
    """
    return math.ceil(Fraction(repr(float(alpha))) * parent_updates)


def check_curve(curve: list[TrainPoint], updates: int) -> None:
    """Raise ValueError unless the points' updates increase up to `updates`."""
    found = [point.update for point in curve]
    require(all(a < b for a, b in itertools.pairwise(found)), "curve's updates do not increase")
    require(not found or found[-1] <= updates, "curve goes beyond the number of updates")


class Score(Checked, frozen=True, kw_only=True):
    """One score of one file of hypotheses.

    `split` is dev, test or a subset of test such as `test_filtered`; `metric` is a name of
    experiments.metrics, whose table has its range; `signature` is sacrebleu's, in full. The sha256
    is that of the whole file, of which a subset's score takes some lines.
    """

    split: Text
    metric: Text
    value: float
    signature: Text
    lines: Positive
    hypotheses_sha256: Sha256

    def check(self) -> None:
        metric = METRICS.get(self.metric)
        if metric is None:
            raise ValueError(f"metric {self.metric} is none of {', '.join(METRICS)}")
        require(
            metric.lowest - ROUNDING <= self.value <= metric.highest + ROUNDING,
            f"{self.metric} is {self.value}, not within {metric.lowest:g} and {metric.highest:g}",
        )


class ModelFreeScore(Score, frozen=True, kw_only=True):
    """A score of a translation that needs no model; `name` is one of MODEL_FREE."""

    name: ModelFree


class ModelScore(Score, frozen=True, kw_only=True):
    """A score of the model's translation.

    `length_penalty` is the formula: `fairseq` divides by length ** alpha, `gnmt` by
    ((5 + length) / 6) ** alpha (Wu et al. 2016). Greedy search has one hypothesis, so there the
    formula changes nothing.
    """

    beam: Positive
    length_penalty: LengthPenalty
    length_alpha: float

    @property
    def search(self) -> str:
        """`greedy`, `beam4` or `beam4_gnmt`."""
        return search_name(self.beam, self.length_penalty)


class Evaluation(Checked, frozen=True, kw_only=True):
    """Quality. The loss counts subword tokens of this vocabulary, end of sentence included.

    `parameters` are counted in the model that was loaded.
    """

    engine: SearchEngine
    parameters: Positive
    dev_nll_nats_per_token: float
    dev_perplexity: float
    dev_target_tokens: Positive
    scores: list[ModelScore]
    model_free: list[ModelFreeScore]

    def check(self) -> None:
        require_close("dev_perplexity", self, math.exp(self.dev_nll_nats_per_token))
        scores = [
            (s.split, s.metric, s.beam, s.length_penalty, s.length_alpha) for s in self.scores
        ]
        require(len(scores) == len(set(scores)), "scores has the same score twice")
        free = [(s.split, s.metric, s.name) for s in self.model_free]
        require(len(free) == len(set(free)), "model_free has the same score twice")


def search_name(beam: int, length_penalty: LengthPenalty = "fairseq") -> str:
    """`greedy` for one beam, else such as `beam4`, or `beam4_gnmt` with that length penalty."""
    if beam == 1:
        return "greedy"
    return f"beam{beam}" + ("_gnmt" if length_penalty == "gnmt" else "")
