"""What a job may be told: the strict schema of the resolved Hydra config, with units and ranges.

conf/ holds the values, this file their meaning. Whatever is unknown or contradicts itself is
refused here, before any work.
"""

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from experiments.errors import ExperimentError
from experiments.record_parts import LengthPenalty, variant_name

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

# How much larger a batch may be with its padding and its longer side than its target tokens. Where
# few lines are of similar length it is most: 44 batches of the sample corpus need 1.33.
PADDED_PER_TARGET_TOKEN = 1.5


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the config; unknown keys are errors."""


class AttentionConfig(Section, frozen=True, kw_only=True):
    """The variant (gqa_fairseq.architecture.Variant); null is the multi-head baseline's value."""

    num_kv_heads: Positive
    placement: Placement
    num_heads: Positive | None
    head_dim: Positive | None
    window: Positive | None
    d_ff: FeedForward


class ModelConfig(Section, frozen=True, kw_only=True):
    """The multi-head baseline's shape; the plugin derives the variant's d_ff from `mha_d_ff`.

    Positions are learned and one embedding matrix serves source, target and output. Source and
    target have at most `max_positions` tokens, end of sentence included.
    """

    num_heads: Positive
    d_model: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    mha_d_ff: Positive
    bias: bool
    norm_before: bool
    max_positions: Positive


class TrainConfig(Section, frozen=True, kw_only=True):
    """Training; `tokens_per_update` is the mean number of target tokens, over all devices.

    These are real tokens: the end of a sentence counts, padding does not. After the warm-up the
    learning rate falls with the inverse square root of the update. The mean of the last
    `average_checkpoints`, one a validation, is evaluated; null: the last one alone.
    """

    max_updates: Positive
    tokens_per_update: Positive
    learning_rate: PositiveFloat
    warmup_updates: Positive
    adam_betas: tuple[Probability, Probability]
    weight_decay: NonNegativeFloat
    clip_norm: NonNegativeFloat
    label_smoothing: Probability
    dropout: Probability
    attention_dropout: Probability
    activation_dropout: Probability
    log_every_updates: Positive
    validate_every_updates: Positive
    average_checkpoints: Annotated[int, Meta(ge=2)] | None


class DecodeConfig(Section, frozen=True, kw_only=True):
    """Translation of dev and test; `engine` is whose search does it.

    Both are translated greedily, and test with `beam` once more for each of `length_penalties`
    (their formulas: `record_parts.ModelScore`), which all use `length_alpha`.
    """

    engine: Literal["gqa", "stock"]
    beam: Annotated[int, Meta(ge=2)]
    length_penalties: Annotated[list[LengthPenalty], Meta(min_length=1)]
    length_alpha: NonNegativeFloat
    max_len_a: NonNegativeFloat
    max_len_b: NonNegative
    batch_sentences: Positive

    def __post_init__(self) -> None:
        if len(set(self.length_penalties)) < len(self.length_penalties):
            raise ValueError("decode.length_penalties names one twice (remove it)")
        if self.engine == "stock" and "gnmt" in self.length_penalties:
            raise ValueError(
                "decode.engine=stock has no gnmt length penalty "
                "(use decode.engine=gqa or decode.length_penalties=[fairseq])"
            )


class MeasureConfig(Section, frozen=True, kw_only=True):
    """Speed at fixed lengths; a shape is [source tokens, target tokens], end of sentence included.

    All variants of a sweep take turns, `repeats` times after `warmup_runs`.
    """

    batch: Positive
    shapes: Annotated[list[tuple[Positive, Positive]], Meta(min_length=1)]
    warmup_runs: Positive
    repeats: Annotated[int, Meta(ge=3)]
    training_batch: Positive
    training_repeats: Annotated[int, Meta(ge=3)]

    def __post_init__(self) -> None:
        doubled = sorted({shape for shape in self.shapes if self.shapes.count(shape) > 1})
        if doubled:
            raise ValueError(f"measure.shapes has {list(doubled[0])} twice (remove one)")


class HardwareConfig(Section, frozen=True, kw_only=True):
    """What to compute on; `threads` null is all cores that the process may use.

    `max_tokens_per_device` is what fits a device's memory at once: lines times the longest side of
    one of them. There are `devices` in each of `nodes` machines; with several, `master` is where
    they meet (HOST:PORT of the first), and `node_rank` says which one this is.
    """

    device: Literal["cpu", "cuda"]
    devices: Positive
    threads: Positive | None
    precision: Literal["fp32", "bf16", "fp16"]
    max_tokens_per_device: Positive
    nodes: Positive
    node_rank: NonNegative
    master: Annotated[str, Meta(pattern="^[^:/ ]+:[0-9]+$")] | None


class TrackingConfig(Section, frozen=True, kw_only=True):
    """Whether wandb shows the job, beside its files."""

    mode: Literal["none", "offline", "online"]


class PathsConfig(Section, frozen=True, kw_only=True):
    """Folders that prepared data and runs go to."""

    data: str
    runs: str


class SuiteConfig(Section, frozen=True, kw_only=True):
    """One job."""

    attention: AttentionConfig
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    decode: DecodeConfig
    benchmark: BenchmarkConfig
    hardware: HardwareConfig
    tracking: TrackingConfig
    experiment_name: Name
    seed: NonNegative
    force: bool
    dry_run: bool
    paths: PathsConfig

    def __post_init__(self) -> None:
        heads, kv_heads = self.model.num_heads, self.attention.num_kv_heads
        if heads % kv_heads:
            divisors = [g for g in range(1, heads + 1) if heads % g == 0]
            raise ValueError(
                f"attention.num_kv_heads={kv_heads} does not divide model.num_heads={heads} "
                f"(choose one of {', '.join(map(str, divisors))})"
            )
        if self.model.d_model % heads:
            raise ValueError(
                f"model.num_heads={heads} does not divide model.d_model={self.model.d_model}"
            )
        longest = self.data.max_pieces + 1  # and the end of the sentence
        if longest > self.model.max_positions:
            raise ValueError(
                f"data.max_pieces={self.data.max_pieces} and the end of the sentence exceed "
                f"model.max_positions={self.model.max_positions} (lower one or raise the other)"
            )
        if longest > min(self.hardware.max_tokens_per_device, self.train.tokens_per_update):
            raise ValueError(
                f"the longest sentence of data.max_pieces={self.data.max_pieces} has more tokens "
                f"than train.tokens_per_update={self.train.tokens_per_update} or "
                f"hardware.max_tokens_per_device={self.hardware.max_tokens_per_device} (raise it)"
            )
        train = self.train
        every = train.log_every_updates
        if train.max_updates % every or train.validate_every_updates % every:
            raise ValueError(
                f"train.log_every_updates={every} must divide train.max_updates="
                f"{train.max_updates} and train.validate_every_updates="
                f"{train.validate_every_updates}, so that every token is counted"
            )
        if train.warmup_updates >= train.max_updates:
            raise ValueError(
                f"train.warmup_updates={train.warmup_updates} must be below train.max_updates="
                f"{train.max_updates}"
            )
        if min(train.max_updates, train.validate_every_updates) < 2 * every:
            raise ValueError(
                f"train.log_every_updates={every} must be at most half of train.max_updates and of "
                "train.validate_every_updates, so that updates are timed without validation"
            )
        if train.average_checkpoints is not None:
            written = -(-train.max_updates // train.validate_every_updates)
            if train.average_checkpoints > written:
                raise ValueError(
                    f"train.average_checkpoints={train.average_checkpoints} is more than the "
                    f"{written} checkpoints of train.validate_every_updates="
                    f"{train.validate_every_updates}"
                )
        hardware = self.hardware
        if hardware.device == "cpu" and hardware.devices > 1:
            raise ValueError("hardware.devices must be 1 on the CPU (use hardware.threads)")
        if hardware.nodes > 1 and hardware.master is None:
            raise ValueError(
                f"hardware.nodes={hardware.nodes} machines need hardware.master=HOST:PORT"
            )
        if hardware.node_rank >= hardware.nodes:
            raise ValueError(
                f"hardware.node_rank={hardware.node_rank} must be below hardware.nodes="
                f"{hardware.nodes} (unless given it is Slurm's SLURM_NODEID)"
            )

    @property
    def update_freq(self) -> int:
        """Batches of a device whose gradients make one update, so that each fits its memory."""
        capacity = int(self.hardware.max_tokens_per_device / PADDED_PER_TARGET_TOKEN)
        return -(-self.train.tokens_per_update // max(1, self.world_size * capacity))

    @property
    def target_tokens_per_batch(self) -> float:
        """Mean target tokens that a device gets at once."""
        return self.train.tokens_per_update / (self.world_size * self.update_freq)

    @property
    def padded_tokens_per_batch(self) -> int:
        """Tokens of a large batch of a device with its padding: lines times its longest side."""
        padded = int(PADDED_PER_TARGET_TOKEN * self.target_tokens_per_batch)
        return min(self.hardware.max_tokens_per_device, padded)

    @property
    def world_size(self) -> int:
        """Devices of all machines together."""
        return self.hardware.nodes * self.hardware.devices

    @property
    def variant(self) -> str:
        """Such as `mha`, `gqa4` or `mqa-dec`."""
        attention = self.attention
        return variant_name(self.model.num_heads, attention.num_kv_heads, attention.placement)


def parse_config(resolved: object) -> SuiteConfig:
    """The checked config of a resolved Hydra config; raises ExperimentError, one line."""
    try:
        return msgspec.convert(resolved, SuiteConfig)
    except msgspec.ValidationError as error:
        raise ExperimentError(f"config: {error}") from error


# Which of several machines this is and where they meet: they do the same job.
MACHINE_ROLE_KEYS = ("node_rank", "master")


def scientific_config(config: SuiteConfig) -> dict[str, Any]:
    """What the result depends on: no folders, no tracking, no names, not where the data is from."""
    kept = msgspec.to_builtins(config)
    for key in ("paths", "tracking", "force", "dry_run", "experiment_name"):
        del kept[key]
    for key in MACHINE_ROLE_KEYS:
        del kept["hardware"][key]
    for key in DATA_ORIGIN_KEYS:
        del kept["data"][key]
    return kept


def job_id(config: SuiteConfig, data_checksum: str, code_version: str) -> str:
    """sha256 of the scientific config, the data and the code: the same id, the same result."""
    parts = {
        "config": scientific_config(config),
        "data": data_checksum,
        "code": code_version,
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()
