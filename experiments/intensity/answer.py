"""The answer for one model, load and machine: a row for every number of key/value heads."""

from __future__ import annotations

import math

import msgspec

from experiments.errors import ExperimentError
from gqa_fairseq.architecture import Architecture, FeedForward, Placement
from gqa_fairseq.intensity import Layer, incremental_ratio, training_ratio
from gqa_fairseq.parity import regrouped
from gqa_fairseq.roofline import (
    Load,
    Machine,
    Part,
    decoder_seconds,
    decoding_per_sentence,
    decoding_per_square,
    encoder_seconds,
    equal_batch,
    equal_target,
    kv_bytes,
    largest_batch,
    memory_of_weights,
    step_weight_bytes,
    total_seconds,
    training_seconds,
)

# From which speed-up of decoding on it pays, and below which nobody would notice.
PAYS, NOTICED = 1.25, 1.05


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One number of key/value heads. Times are of one batch, `speed_up`s over multi-head.

    `batch_ceiling` is the limit of `speed_up` for large batches of the same lengths,
    `length_ceiling` for long lines of the same proportion. At `equal_batch`, and at
    `equal_target` tokens with the source in proportion, the last step reads as many bytes of keys
    and values as of weights.
    """

    num_kv_heads: int
    architecture: Architecture
    encoder: list[Part]
    decoder: list[Part]
    training: list[Part]
    encoder_s: float
    decoder_s: float
    training_s: float
    decoder_us_per_token: float
    speed_up: float
    speed_up_with_encoder: float
    training_speed_up: float
    batch_ceiling: float
    length_ceiling: float
    weight_bytes: int
    self_kv_bytes: int
    cross_kv_bytes: int
    step_weight_bytes: int
    equal_batch: float
    equal_target: float
    largest_batch: int

    @property
    def kv_bytes(self) -> int:
        return self.self_kv_bytes + self.cross_kv_bytes

    def share_of_bytes(self, *names: str) -> float:
        """What parts of decoding read of all that it reads."""
        total = sum(part.bytes_moved for part in self.decoder)
        return sum(part.bytes_moved for part in self.decoder if part.name in names) / total


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """The papers' memory over arithmetic (gqa_fairseq/intensity.py); n is the target's length."""

    training: float
    multi_head: float
    chosen: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` from one key/value head to as many as query heads; `chosen` is asked about.

    `ratios` are null for heads that together are not as wide as the model: the papers' are.
    """

    model: str
    architecture: Architecture
    load: Load
    machine: Machine
    placement: Placement
    feed_forward: FeedForward
    chosen: int
    rows: list[Row]
    ratios: Ratios | None
    verdict: str


def row_of(num_kv_heads: int, rows: list[Row]) -> Row:
    return next(row for row in rows if row.num_kv_heads == num_kv_heads)


def answer(
    model: str,
    architecture: Architecture,
    load: Load,
    machine: Machine,
    *,
    placement: Placement | None = None,
    feed_forward: FeedForward = "matched",
    chosen: int | None = None,
) -> Answer:
    """Predict every number of key/value heads that divides the heads.

    Unset, `placement` is the model's own, `all` for a multi-head one; and `chosen` is its own
    number, 1 for a multi-head one.

    Raises:
        ValueError: one line that says what cannot be.
    """
    placement = placement or architecture.placement
    numbers = kv_head_numbers(architecture, placement)
    if chosen is None:
        own = architecture.num_kv_heads
        chosen = own if own in numbers[:-1] else numbers[0]
    if chosen not in numbers:
        raise ValueError(
            f"--kv-heads {chosen} does not divide the heads: choose one of "
            f"{', '.join(map(str, numbers))}"
        )
    variants = [regrouped(architecture, G, placement, feed_forward) for G in numbers]
    rows = [_row(variant, variants[-1], load, machine) for variant in variants]
    return Answer(
        model=model,
        architecture=architecture,
        load=load,
        machine=machine,
        placement=placement,
        feed_forward=feed_forward,
        chosen=chosen,
        rows=rows,
        ratios=_ratios(architecture, load, chosen),
        verdict=verdict(row_of(chosen, rows), rows[-1], load, machine),
    )


def _ratios(architecture: Architecture, load: Load, chosen: int) -> Ratios | None:
    heads = architecture.decoder_heads
    if heads.query_width != architecture.d_model:
        return None
    sizes = (load.batch, load.target_tokens, architecture.d_model, heads.num_heads)
    multi_head, fewer = (Layer(*sizes, G) for G in (heads.num_heads, chosen))
    return Ratios(
        training=training_ratio(multi_head),
        multi_head=incremental_ratio(multi_head),
        chosen=incremental_ratio(fewer),
    )


def kv_head_numbers(architecture: Architecture, placement: Placement) -> list[int]:
    """The numbers of key/value heads that divide the heads of all attentions that change."""
    heads = architecture.decoder_heads.num_heads
    common = math.gcd(heads, architecture.encoder_heads.num_heads) if placement == "all" else heads
    return [G for G in range(1, common + 1) if common % G == 0]


def _row(own: Architecture, multi_head: Architecture, load: Load, machine: Machine) -> Row:
    encoder, decoder, training = _passes(own, load, machine)
    took = [total_seconds(parts) for parts in (encoder, decoder, training)]
    before = [total_seconds(parts) for parts in _passes(multi_head, load, machine)]
    cached = kv_bytes(own, load)
    ceilings = [
        limit(multi_head, load, machine) / limit(own, load, machine)
        for limit in (decoding_per_sentence, decoding_per_square)
    ]
    return Row(
        num_kv_heads=own.num_kv_heads,
        architecture=own,
        encoder=encoder,
        decoder=decoder,
        training=training,
        encoder_s=took[0],
        decoder_s=took[1],
        training_s=took[2],
        decoder_us_per_token=1e6 * took[1] / (load.batch * load.target_tokens),
        speed_up=before[1] / took[1],
        speed_up_with_encoder=(before[0] + before[1]) / (took[0] + took[1]),
        training_speed_up=before[2] / took[2],
        batch_ceiling=ceilings[0],
        length_ceiling=ceilings[1],
        weight_bytes=memory_of_weights(own, load),
        self_kv_bytes=cached["self"],
        cross_kv_bytes=cached["cross"],
        step_weight_bytes=step_weight_bytes(own, load),
        equal_batch=float(equal_batch(own, load)),
        equal_target=float(equal_target(own, load)),
        largest_batch=largest_batch(own, load, machine),
    )


def _passes(
    architecture: Architecture, load: Load, machine: Machine
) -> tuple[list[Part], list[Part], list[Part]]:
    """Encoding, decoding and training."""
    return (
        encoder_seconds(architecture, load, machine),
        decoder_seconds(architecture, load, machine),
        training_seconds(architecture, load, machine),
    )


def verdict(row: Row, multi_head: Row, load: Load, machine: Machine) -> str:
    """One sentence: whether to bother, what it gains, and why."""
    if row.num_kv_heads == multi_head.num_kv_heads:
        return "The model is multi-head already: --kv-heads asks about fewer key/value heads."
    kv = multi_head.share_of_bytes("self_attention", "cross_attention")
    moved = sum(part.bytes_moved for part in multi_head.decoder)
    weights = load.target_tokens * multi_head.step_weight_bytes / moved
    gain = row.speed_up
    word = "It pays" if gain >= PAYS else "It gains little" if gain >= NOTICED else "Do not bother"
    heads = "1 key/value head" if row.num_kv_heads == 1 else f"{row.num_kv_heads} key/value heads"
    makes = "makes" if row.num_kv_heads == 1 else "make"
    busy = sum(part.seconds for part in multi_head.decoder if part.bound == "arithmetic")
    busy /= multi_head.decoder_s
    bound = f", and arithmetic takes {busy:.0%} of the time" if busy >= 0.05 else ""
    return (
        f"{word}: at batch {load.batch:,} the weights are {weights:.0%} and keys and values "
        f"{kv:.0%} of what multi-head decoding moves{bound}, so {heads} instead of "
        f"{multi_head.num_kv_heads} {makes} it {gain:.2f} times as fast on {machine.name} "
        f"({row.batch_ceiling:.2f} in the limit of large batches) "
        f"{_what_fits(row, multi_head, load)}."
    )


def _what_fits(row: Row, multi_head: Row, load: Load) -> str:
    if not row.largest_batch:
        return "but not one sentence fits this machine's memory"
    fits = (
        f"and lets batches of {row.largest_batch:,} instead of {multi_head.largest_batch:,} "
        "sentences fit"
    )
    if load.batch > row.largest_batch:
        return f"{fits}, but not of {load.batch:,}"
    if load.batch > multi_head.largest_batch:
        return f"{fits}, and so the {load.batch:,} that were asked for"
    return fits


def asked_load(
    batch: int, source: int, target: int, beam: int, weights: str | None, cache: str | None,
    machine: Machine,
) -> Load:  # fmt: skip
    """Types that are not given are those that the machine's models usually have."""
    weights = weights or machine.usual
    cache = cache or (machine.usual if weights == "int8" else weights)
    if cache == "int8":
        raise ExperimentError(
            "--cache int8: keys and values in 8 bits are not predicted: choose float32, bfloat16 "
            "or float16"
        )
    return Load(batch, source, target, beam, weights, cache)
