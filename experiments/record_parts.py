"""The parts of a record: what each stage of a job found, and what must hold within each part.

Each quantity has its unit in its name. A part that contradicts itself is refused, when it is built
and when it is read.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Meta(ge=0, le=1)]
RawSeconds = Annotated[list[Seconds], Meta(min_length=1)]

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
Engine = Literal["stock", "gqa", "ctranslate2"]
LengthPenalty = Literal["fairseq", "gnmt"]
MemoryKind = Literal["process_rss", "cuda_allocated"]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a record: every float is finite, and `check` finds no contradiction."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{name} is {number}, not a finite number")
        self.check()

    def check(self) -> None:
        """Raise ValueError when fields contradict each other."""


class JobInfo(Part, frozen=True, kw_only=True):
    """Which job this was; `id` hashes the scientific config, the data checksum and the code."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12,64}$")]
    experiment: Text
    variant: Text
    started_utc: Annotated[datetime, Meta(tz=True)]
    wall_s: Seconds


class CodeInfo(Part, frozen=True, kw_only=True):
    """Where the code came from: git's commit (null outside git) and a hash of what matters."""

    commit: Annotated[str, Meta(pattern="^[0-9a-f]{40,64}$")] | None
    dirty: bool | None
    version: Sha256

    def check(self) -> None:
        require((self.commit is None) == (self.dirty is None), "commit and dirty go together")


class Hardware(Part, frozen=True, kw_only=True):
    """The machine. `cores_usable` is what the process may use, `memory_bytes` what it may fill."""

    cpu_model: Text
    cores_usable: Positive
    memory_bytes: Positive
    gpus: list[Text]


class SplitCounts(Part, frozen=True, kw_only=True):
    """Lines (sentence pairs) of one split; `dropped` counts them by reason."""

    read: Count
    kept: Count
    dropped: dict[str, Count]

    def check(self) -> None:
        total = self.kept + sum(self.dropped.values())
        require(total == self.read, f"kept + dropped is {total}, read is {self.read}")


class Overlap(Part, frozen=True, kw_only=True):
    """How much of a held-out split's source side the training text already holds."""

    four_grams_seen_share: Share
    lines_covered_share: Share
    duplicate_lines: Count


class DataInfo(Part, frozen=True, kw_only=True):
    """The prepared corpus. `files` are the sha256 of its files, `overlap` is by held-out split.

    `subsets` are parts of test that are scored by themselves: lines by name, such as
    `test_filtered`. `note` says what else the data is or is not, in data_prep's words.
    """

    name: Text
    source_lang: Text
    target_lang: Text
    vocab_size: Positive
    checksum: Sha256
    files: dict[str, Sha256]
    splits: dict[str, SplitCounts]
    overlap: dict[str, Overlap]
    subsets: dict[str, Positive] = {}
    note: str = ""

    def lines(self, name: str) -> int | None:
        """Lines of a split or subset; None when there is none of that name."""
        if name in self.splits:
            return self.splits[name].read
        return self.subsets.get(name)

    def check(self) -> None:
        require("train" in self.splits, "splits has no train")
        for name, split in self.splits.items():
            require(
                name == "train" or split.kept == split.read,
                f"splits.{name} drops lines: held-out lines are never skipped",
            )
        unknown = sorted(set(self.overlap) - set(self.splits))
        require(not unknown, f"overlap names splits that are not there: {', '.join(unknown)}")
        for name, lines in self.subsets.items():
            require(name.startswith("test_"), f"subsets.{name} is not named as a part of test")
            test = self.splits.get("test")
            require(
                test is not None and lines <= test.read,
                f"subsets.{name} has {lines} lines, more than test",
            )


class ModelInfo(Part, frozen=True, kw_only=True):
    """The built model. `parameters` is counted in it; `residual` is what it has beyond MHA's."""

    arch: Text
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    d_model: Positive
    placement: Literal["all", "decoder"]
    encoder_layers: Positive
    decoder_layers: Positive
    encoder_d_ff: Positive
    decoder_d_ff: Positive
    bias: bool
    parameters: Positive
    parameters_predicted: Positive
    parameters_mha: Positive
    residual: int

    @property
    def variant(self) -> str:
        return variant_name(self.num_heads, self.num_kv_heads, self.placement)

    def check(self) -> None:
        require(
            self.num_kv_heads <= self.num_heads and self.num_heads % self.num_kv_heads == 0,
            f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}",
        )
        require(
            self.residual == self.parameters - self.parameters_mha,
            f"residual {self.residual} is not parameters - parameters_mha",
        )
        require(
            self.parameters == self.parameters_predicted,
            f"parameters {self.parameters} differ from the predicted {self.parameters_predicted}",
        )


class TrainPoint(Part, frozen=True, kw_only=True):
    """One point of the training curve; `target_tokens` and `wall_s` count from the start."""

    update: Count
    train_nll_nats_per_token: float | None
    dev_nll_nats_per_token: float | None
    learning_rate: float | None
    target_tokens: Count
    wall_s: Seconds

    def check(self) -> None:
        require(
            (self.train_nll_nats_per_token, self.dev_nll_nats_per_token) != (None, None),
            "a point of the curve needs a train or a dev loss",
        )


class Training(Part, frozen=True, kw_only=True):
    """What training did.

    `target_tokens` are real ones, padding not counted; `target_tokens_per_update_wanted` is null
    where the config asked for none. `wall_s` is the whole command (after an interruption, the one
    that finished). `update_wall_s` is what the updates alone take at the rate of those that no
    start, validation or checkpoint slowed; `us_per_target_token` is that rate.
    `peak_memory_bytes` is the largest of the processes. `averaged_updates` are the updates of the
    checkpoints whose mean was evaluated; empty where it was the last checkpoint.
    """

    device: Device
    precision: Precision
    processes: Positive
    curve: Annotated[list[TrainPoint], Meta(min_length=1)]
    updates: Positive
    target_tokens: Positive
    target_tokens_per_update: float
    target_tokens_per_update_wanted: Positive | None
    wall_s: Seconds
    update_wall_s: Seconds
    us_per_target_token: float
    peak_memory_bytes: Positive
    peak_memory_kind: MemoryKind
    averaged_updates: list[Positive] = []

    def check(self) -> None:
        updates = [point.update for point in self.curve]
        require(
            all(a < b for a, b in itertools.pairwise(updates)),
            "curve's updates do not increase",
        )
        require(updates[-1] <= self.updates, "curve goes beyond the number of updates")
        _require_close("target_tokens_per_update", self, self.target_tokens / self.updates)
        _require_close("us_per_target_token", self, 1e6 * self.update_wall_s / self.target_tokens)


class Score(Part, frozen=True, kw_only=True):
    """One sacrebleu score of one hypotheses file; `tokenize` is null for chrF.

    `split` is a name of `DataInfo.splits` or `DataInfo.subsets`; `signature` is sacrebleu's, in
    full. The sha256 is that of the whole file, of which a subset's score takes some lines.
    """

    split: Text
    metric: Literal["bleu", "chrf"]
    tokenize: Text | None
    value_0_100: Annotated[float, Meta(ge=0, le=100)]
    signature: Text
    lines: Positive
    hypotheses_sha256: Sha256

    def check(self) -> None:
        require(
            (self.tokenize is None) == (self.metric == "chrf"),
            "tokenize belongs to bleu and to bleu alone",
        )
        require(
            self.tokenize is None or f"tok:{self.tokenize}" in self.signature.split("|"),
            f"the signature does not say tok:{self.tokenize}",
        )


class BaselineScore(Score, frozen=True, kw_only=True):
    """A score of what needs no model: the copied source, or the nearest training line's target."""

    baseline: Literal["copy", "nearest"]


class ModelScore(Score, frozen=True, kw_only=True):
    """A score of the model's translation.

    `length_penalty` is the formula: `fairseq` divides by length ** alpha, `gnmt` by
    ((5 + length) / 6) ** alpha (Wu et al. 2016). Greedy search has one hypothesis, so there the
    formula changes nothing.
    """

    beam: Positive
    engine: Engine
    length_penalty: LengthPenalty
    length_alpha: float

    @property
    def search(self) -> str:
        """`greedy`, `beam4` or `beam4_gnmt`."""
        return search_name(self.beam, self.length_penalty)


class Evaluation(Part, frozen=True, kw_only=True):
    """Quality. The loss counts subword tokens of this vocabulary, end of sentence included."""

    dev_nll_nats_per_token: float
    dev_perplexity: float
    dev_target_tokens: Positive
    scores: list[ModelScore]
    baselines: list[BaselineScore]

    def check(self) -> None:
        _require_close("dev_perplexity", self, math.exp(self.dev_nll_nats_per_token))
        model = [
            (s.split, s.metric, s.tokenize, s.beam, s.engine, s.length_penalty, s.length_alpha)
            for s in self.scores
        ]
        require(len(model) == len(set(model)), "scores has the same score twice")
        base = [(s.split, s.metric, s.tokenize, s.baseline) for s in self.baselines]
        require(len(base) == len(set(base)), "baselines has the same score twice")


class Timing(Part, frozen=True, kw_only=True):
    """Decoding at one fixed shape.

    A run decodes `batch` sources of `source_tokens` to `target_tokens` each: `tokens_produced` is
    their product and counts one hypothesis a sentence, whatever the beam. `encoder_s` and
    `decoder_s` are all the timed runs, in order; the microseconds per produced token are their
    medians. `kv_cache_bytes` counts self- and cross-attention at the full length.
    """

    engine: Engine
    beam: Positive
    batch: Positive
    source_tokens: Positive
    target_tokens: Positive
    tokens_produced: Positive
    warmup_runs: Count
    encoder_s: RawSeconds
    decoder_s: RawSeconds
    encoder_us_per_token: float
    decoder_us_per_token: float
    kv_cache_bytes: Positive

    @property
    def search(self) -> str:
        """`greedy` or `beam4`."""
        return search_name(self.beam)

    def check(self) -> None:
        require(
            self.tokens_produced == self.batch * self.target_tokens,
            f"tokens_produced is {self.tokens_produced}, not batch * target_tokens",
        )
        require(
            len(self.encoder_s) == len(self.decoder_s),
            "encoder_s and decoder_s have different numbers of runs",
        )
        for side, raw_s in (("encoder", self.encoder_s), ("decoder", self.decoder_s)):
            expected = median_us_per_token(raw_s, self.tokens_produced)
            _require_close(f"{side}_us_per_token", self, expected)


class TrainingTiming(Part, frozen=True, kw_only=True):
    """Training updates at one fixed shape: forward, backward and optimizer, in `update_s` raw."""

    batch: Positive
    source_tokens: Positive
    target_tokens: Positive
    warmup_runs: Count
    update_s: RawSeconds
    us_per_target_token: float

    def check(self) -> None:
        expected = median_us_per_token(self.update_s, self.batch * self.target_tokens)
        _require_close("us_per_target_token", self, expected)


class Benchmark(Part, frozen=True, kw_only=True):
    """Speed and memory, in a process of its own for each variant.

    `peak_memory_bytes` is decoding's: taken before the training updates are timed.

    `operators` are whose a decoding step takes (gqa_fairseq/decoding/native).
    `max_positions` is what the timed model allows, which a long shape may need beyond the trained
    model's; `weights` says whether the timed weights are the trained ones.
    """

    device: Device
    precision: Precision
    threads: Positive
    operators: str = "PyTorch"
    weights: Literal["trained", "random"]
    max_positions: Positive
    timings: list[Timing]
    training: TrainingTiming | None
    peak_memory_bytes: Positive
    peak_memory_kind: MemoryKind

    def check(self) -> None:
        keys = [(t.engine, t.beam, t.batch, t.source_tokens, t.target_tokens) for t in self.timings]
        require(len(keys) == len(set(keys)), "timings has the same shape twice")


def variant_name(num_heads: int, num_kv_heads: int, placement: Literal["all", "decoder"]) -> str:
    """`mha`, `gqa4`, `mqa`; with `-dec` where only the decoder's attention is grouped."""
    if num_kv_heads == num_heads:
        return "mha"
    name = "mqa" if num_kv_heads == 1 else f"gqa{num_kv_heads}"
    return name + ("-dec" if placement == "decoder" else "")


def search_name(beam: int, length_penalty: LengthPenalty = "fairseq") -> str:
    """`greedy` for one beam, else such as `beam4`, or `beam4_gnmt` with that length penalty."""
    if beam == 1:
        return "greedy"
    return f"beam{beam}" + ("_gnmt" if length_penalty == "gnmt" else "")


def median_us_per_token(raw_s: Sequence[float], tokens: int) -> float:
    """Median of the raw seconds of a run that gives `tokens`, in microseconds per token."""
    return 1e6 * statistics.median(raw_s) / tokens


def require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _require_close(field: str, part: Part, expected: float) -> None:
    value = getattr(part, field)
    require(
        math.isclose(value, expected, rel_tol=1e-6),
        f"{field} is {value:g}, but the other fields give {expected:g}",
    )
