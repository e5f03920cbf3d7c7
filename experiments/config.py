"""What a job may be told: the strict schema of the resolved Hydra config, with units and ranges.

conf/ holds the values, this file their meaning. Whatever is unknown or contradicts itself is
refused here, before any work.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from data_prep.spec import DataSpec
from experiments.errors import ExperimentError
from experiments.records.parts import (
    LengthPenalty,
    Precision,
    SearchEngine,
    Share,
    updates_more,
)
from gqa_fairseq.architecture import (
    Architecture,
    ConversionMethod,
    FeedForward,
    Placement,
    Variant,
)
from gqa_fairseq.decoding.options import Option
from gqa_fairseq.decoding.rules import OPTIONS
from gqa_fairseq.parity import Baseline

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
AtLeastTwo = Annotated[int, Meta(ge=2)]
# Beyond this a number is a mistake, and infinity is above it.
LARGEST = 1e9
LARGEST_SEED = 2**32 - 1  # numpy takes no more
PositiveFloat = Annotated[float, Meta(gt=0, le=LARGEST)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=LARGEST)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Folder = Annotated[str, Meta(min_length=1)]
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

    @property
    def variant(self) -> Variant:
        """The same as the plugin's value."""
        return Variant(**{name: getattr(self, name) for name in self.__struct_fields__})


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

    def baseline(self, dictionary_size: int) -> Baseline:
        """The multi-head model with as many words as the dictionary has."""
        return Baseline(
            d_model=self.d_model,
            num_heads=self.num_heads,
            mha_d_ff=self.mha_d_ff,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            bias=self.bias,
            pre_norm=self.norm_before,
            vocab_size=dictionary_size,
            max_source_positions=self.max_positions,
            max_target_positions=self.max_positions,
        )


class TrainConfig(Section, frozen=True, kw_only=True):
    """Training; `tokens_per_update` is the mean number of target tokens, over all devices.

    These are real tokens: the end of a sentence counts, padding does not. After the warm-up the
    learning rate falls with the inverse square root of the update. The mean of the last
    `average_checkpoints`, one a validation, is evaluated; null: the last one alone.
    `implementation` is whose loss and Adam it is: `fairseq`, or the plugin's, `gqa`, which are
    faster and draw other random numbers for dropout (gqa_fairseq/training).
    """

    implementation: Literal["fairseq", "gqa"] = "fairseq"  # as in the configs of earlier jobs
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
    average_checkpoints: AtLeastTwo | None


class UptrainConfig(Section, frozen=True, kw_only=True):
    """A trained model that is converted to the variant's heads and trained on.

    `method` makes the heads (gqa_fairseq/checkpoints/conversion.py); null: the model is trained
    from scratch. `parent` is what is converted: null is the multi-head model of the same config,
    else the path of a checkpoint or the folder of a job. Training goes on for shares of the
    parent's updates, `points`, and the model is kept at each; the job is about the one after
    `alpha` of them, or about the converted model itself, which is 0.
    """

    method: ConversionMethod | None
    alpha: Share
    points: Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=1)]
    parent: Folder | None

    def __post_init__(self) -> None:
        if sorted(set(self.points)) != self.points:
            raise ValueError(f"uptrain.points={self.points} must increase")
        if self.method is None and (self.alpha or self.parent is not None):
            raise ValueError(
                "uptrain.alpha and uptrain.parent are about a trained model (choose "
                "uptrain=converted, or a uptrain.method)"
            )
        if self.alpha not in (0, *self.points):
            raise ValueError(
                f"uptrain.alpha={self.alpha:g} is neither 0 nor one of uptrain.points="
                f"{self.points} (choose one of these, or add it to the points)"
            )

    def updates(self, parent_updates: int) -> list[int]:
        """Updates after the parent's at each of `points`; raises ValueError when all are too few.

        fairseq times no first update of a process, and each point ends one.
        """
        found = [updates_more(point, parent_updates) for point in self.points]
        if max(b - a for a, b in pairwise([0, *found])) < 2:
            raise ValueError(
                f"uptrain.points={self.points} of {parent_updates:,} updates are {found}: an "
                "update by itself cannot be timed (have 2 in one of them)"
            )
        return found


# What a job has whose config says nothing of it.
FROM_SCRATCH = UptrainConfig(method=None, alpha=0.0, points=[1.0], parent=None)


# Options of a search that a job may have, by name. Others are settings of their own, or choose how
# scores depend on lengths, which the record says by `length_penalties` and `length_alpha`.
DECODE_OPTIONS: dict[str, Option] = {
    option.name: option for option in OPTIONS if option.penalty is None
}


class DecodeConfig(Section, frozen=True, kw_only=True, omit_defaults=True):
    """Translation of dev and test; `engine` is whose search does it.

    Both are translated greedily, and test with `beam` once more for each of `length_penalties`
    (their formulas: `records.parts.ModelScore`), which all use `length_alpha`. `options` are others
    of the search, by fairseq's or the plugin's names (gqa_fairseq/decoding/rules.py); those with
    their default are left out. They hold for each of these translations, and for no measurement,
    whose lengths are fixed. Where there are none, files do not name them, as older ones do not.
    """

    engine: SearchEngine
    beam: AtLeastTwo
    length_penalties: Annotated[list[LengthPenalty], Meta(min_length=1)]
    length_alpha: NonNegativeFloat
    max_len_a: NonNegativeFloat
    max_len_b: NonNegative
    batch_sentences: Positive
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if len(set(self.length_penalties)) < len(self.length_penalties):
            raise ValueError("decode.length_penalties names one twice (remove it)")
        if self.engine == "stock" and "gnmt" in self.length_penalties:
            raise ValueError(
                "decode.engine=stock has no gnmt length penalty "
                "(use decode.engine=gqa or decode.length_penalties=[fairseq])"
            )
        found = dict(_options_of(self.options, self.engine))
        msgspec.structs.force_setattr(self, "options", found)
        if found.get("min_len", 0) > self.max_len_b:
            raise ValueError(
                f"decode.options.min_len={found['min_len']} is above decode.max_len_b="
                f"{self.max_len_b}, which may be the longest translation (lower one or raise the "
                "other)"
            )

    @property
    def search_options(self) -> dict[str, Any]:
        """The options as the constructor of the search calls them."""
        return {DECODE_OPTIONS[name].keyword: value for name, value in self.options.items()}


def _options_of(given: dict[str, Any], engine: SearchEngine) -> Iterator[tuple[str, Any]]:
    """Checked options without those that have their default; raises ValueError, one line."""
    for name, value in given.items():
        setting = f"decode.options.{name}"
        option = DECODE_OPTIONS.get(name)
        if option is None:
            choices = ", ".join(DECODE_OPTIONS)
            raise ValueError(f"{setting}: a job has no such option (choose one of {choices})")
        try:
            checked = option.checked(value)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from error
        if checked == option.default:
            continue
        why = "lacks it" if option.is_own else option.stock
        if engine == "stock" and why:
            raise ValueError(
                f"{setting}: decode.engine=stock {why} (use decode.engine=gqa, or leave it out)"
            )
        yield name, checked


class MeasureConfig(Section, frozen=True, kw_only=True):
    """Speed at fixed lengths; a shape is [source tokens, target tokens], end of sentence included.

    A target has at least one token and the end of the sentence. All variants of a sweep take turns,
    `repeats` times after `warmup_runs`.
    """

    batch: Positive
    shapes: Annotated[list[tuple[Positive, AtLeastTwo]], Meta(min_length=1)]
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
    precision: Precision
    max_tokens_per_device: Positive
    nodes: Positive
    node_rank: NonNegative
    master: Annotated[str, Meta(pattern="^[^:/ ]+:[0-9]+$")] | None


class TrackingConfig(Section, frozen=True, kw_only=True):
    """Whether wandb shows the job, beside its files."""

    mode: Literal["none", "offline", "online"]


class PathsConfig(Section, frozen=True, kw_only=True):
    """Folders: prepared data, finished stages, records of jobs, measurements, and the report."""

    data: Folder
    stages: Folder
    runs: Folder
    measurements: Folder
    report: Folder


class SuiteConfig(Section, frozen=True, kw_only=True):
    """One job. `rerun` names a stage that is done again, with all that depends on it."""

    attention: AttentionConfig
    model: ModelConfig
    data: DataSpec
    train: TrainConfig
    decode: DecodeConfig
    measure: MeasureConfig
    hardware: HardwareConfig
    tracking: TrackingConfig
    experiment_name: Name
    seed: Annotated[int, Meta(ge=0, le=LARGEST_SEED)]
    rerun: Literal["prepare", "train", "convert", "uptrain", "evaluate", "measure"] | None
    dry_run: bool
    paths: PathsConfig
    uptrain: UptrainConfig = FROM_SCRATCH

    def __post_init__(self) -> None:
        problems = [*self._contradictions()]
        if problems:
            raise ValueError("; ".join(problems))

    def _contradictions(self) -> Iterator[str]:
        """All that does not go together, so that a user hears of it at once."""
        if self.uptrain.parent is None:
            yield from self._contradictions_of_the_model()
        yield from _contradictions_of_uptraining(self)
        yield from _contradictions_of_updates(self.train)
        yield from _contradictions_of_hardware(self.hardware)

    def _contradictions_of_the_model(self) -> Iterator[str]:
        """What the config's own model cannot be, or cannot take."""
        section = "model"
        try:
            baseline = self.model.baseline(self.data.vocab_size + 1)
            section = "attention"
            baseline.resolve(self.attention.variant)
        except ValueError as error:
            yield f"{section}.{error}"
        if self.decode.beam > self.data.vocab_size:
            yield (
                f"decode.beam={self.decode.beam} is more than data.vocab_size="
                f"{self.data.vocab_size} (lower it)"
            )
        longest = self.data.max_pieces + 1  # and the end of the sentence
        if longest > self.model.max_positions:
            yield (
                f"data.max_pieces={self.data.max_pieces} and the end of the sentence exceed "
                f"model.max_positions={self.model.max_positions} (lower one or raise the other)"
            )
        shortest = self.decode.options.get("min_len", 0)
        if shortest >= self.model.max_positions:
            yield (
                f"decode.options.min_len={shortest} and the end of the sentence exceed "
                f"model.max_positions={self.model.max_positions} (lower one or raise the other)"
            )
        if longest > min(self.hardware.max_tokens_per_device, self.train.tokens_per_update):
            yield (
                f"the longest sentence of data.max_pieces={self.data.max_pieces} has more tokens "
                f"than train.tokens_per_update={self.train.tokens_per_update} or "
                f"hardware.max_tokens_per_device={self.hardware.max_tokens_per_device} (raise it)"
            )

    @property
    def architecture(self) -> Architecture:
        """What the variant comes to; raises ValueError, one line, when it cannot be.

        fairseq's dictionary has one symbol more than the SentencePiece vocabulary.
        """
        return self.model.baseline(self.data.vocab_size + 1).resolve(self.attention.variant)

    @property
    def multi_head(self) -> "SuiteConfig":
        """The job whose model is converted: the same, with all heads and from scratch."""
        heads = self.attention.num_heads or self.model.num_heads
        replace = msgspec.structs.replace
        return replace(
            self,
            attention=replace(self.attention, num_kv_heads=heads, placement="all"),
            uptrain=FROM_SCRATCH,
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
    def name(self) -> str:
        """Such as `mqa-seed1`, of a model from scratch."""
        return f"{self.architecture.name}-seed{self.seed}"


def _contradictions_of_uptraining(config: SuiteConfig) -> Iterator[str]:
    """What a model that is converted cannot have."""
    uptrain, attention = config.uptrain, config.attention
    if uptrain.method is None:
        return
    if attention.d_ff != "kept":
        yield f"attention.d_ff={attention.d_ff}: a converted model keeps its d_ff (use kept)"
    if config.hardware.nodes > 1:
        yield (
            f"hardware.nodes={config.hardware.nodes}: a model is trained on by one machine (train "
            "the multi-head model first, and give its folder as uptrain.parent)"
        )
    if uptrain.parent is None:
        try:
            uptrain.updates(config.train.max_updates)
        except ValueError as error:
            yield str(error)


def _contradictions_of_updates(train: TrainConfig) -> Iterator[str]:
    """What does not fit the number of updates."""
    every, updates, validate = (
        train.log_every_updates,
        train.max_updates,
        train.validate_every_updates,
    )
    if updates % every or validate % every:
        yield (
            f"train.log_every_updates={every} must divide train.max_updates={updates} and "
            f"train.validate_every_updates={validate}, so that every token is counted"
        )
    if min(updates, validate) < 2 * every:
        yield (
            f"train.log_every_updates={every} must be at most half of train.max_updates={updates} "
            f"and of train.validate_every_updates={validate}, so that updates are timed without "
            "validation"
        )
    if train.warmup_updates >= updates:
        yield (
            f"train.warmup_updates={train.warmup_updates} must be below train.max_updates={updates}"
        )
    if train.average_checkpoints is not None and updates % validate:
        yield (
            f"train.validate_every_updates={validate} must divide train.max_updates={updates}, so "
            "that the last checkpoint is among those of train.average_checkpoints"
        )
    written = updates // validate
    if train.average_checkpoints is not None and train.average_checkpoints > written:
        yield (
            f"train.average_checkpoints={train.average_checkpoints} is more than the {written} "
            f"checkpoints of train.validate_every_updates={validate}"
        )


def _contradictions_of_hardware(hardware: HardwareConfig) -> Iterator[str]:
    """What the device does not do, and what several machines need."""
    if hardware.device == "cpu":
        if hardware.devices > 1:
            yield "hardware.devices must be 1 on the CPU (use hardware.threads)"
        if hardware.precision == "fp16":
            yield "hardware.precision=fp16 needs a GPU (choose fp32 on a CPU)"
    if hardware.precision == "bf16":
        # fairseq.options.parse_args_and_arch takes --bf16 as --tpu, and then finds no device.
        yield (
            "hardware.precision=bf16 is for TPUs alone in fairseq's training command (choose fp32 "
            "on a CPU and fp16 on a GPU)"
        )
    if hardware.nodes > 1 and hardware.master is None:
        yield f"hardware.nodes={hardware.nodes} machines need hardware.master=HOST:PORT"
    if hardware.node_rank >= hardware.nodes:
        yield (
            f"hardware.node_rank={hardware.node_rank} must be below hardware.nodes="
            f"{hardware.nodes} (unless given it is Slurm's SLURM_NODEID)"
        )


def parse_config(resolved: object) -> SuiteConfig:
    """The checked config of a resolved Hydra config; raises ExperimentError, one line."""
    try:
        return msgspec.convert(resolved, SuiteConfig)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at `$.")
        where = f"{field.rstrip('`')}: " if field else ""
        raise ExperimentError(f"config: {where}{problem}{_choices(field.rstrip('`'))}") from error


def setting_names(kind: type[msgspec.Struct] = SuiteConfig) -> list[str]:
    """The dotted names of all settings of all sections."""
    names = []
    for field in msgspec.structs.fields(kind):
        name, inner = field.encode_name, field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            names += [f"{name}.{below}" for below in setting_names(inner)]
        else:
            names.append(name)
    return names


def _choices(field: str) -> str:
    """The values that a field may have, where it has but a few."""
    kind: object = SuiteConfig
    for name in filter(None, field.split("[")[0].split(".")):
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return ""
        kind = {f.name: f.type for f in msgspec.structs.fields(kind)}.get(name)
    names = list(_literals(kind))
    return f" (choose one of {', '.join(names)})" if names else ""


def _literals(kind: object) -> Iterator[str]:
    """The values of a type that is a Literal, or is made of one: optional, or a list of it."""
    for one in get_args(kind):
        if get_origin(kind) is Literal:
            yield str(one)
        else:
            yield from _literals(one)
