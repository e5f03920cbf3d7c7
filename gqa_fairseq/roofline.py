"""How long a model takes on a machine, at least: the counts of costs.py over the machine's rates.

A part of a pass takes the longer of two times: its bytes over the machine's bandwidth, its
operations over the machine's rate (Williams et al. 2009, the roofline). Parts follow each other,
so their times add up. Nothing is fitted: a prediction is as good as the counts and the rates. The
counts are lower bounds, so the times are too.

In a decode step the layers' matrices, self-attention, cross-attention and the output layer are
such parts. Matrices get a whole batch for one reading; keys and values belong to one sentence. So
the first turn from memory to arithmetic as the batch grows, and the second never do.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

from gqa_fairseq.architecture import Architecture
from gqa_fairseq.costs import (
    Work,
    cache_bytes,
    encoder_matrix_elements,
    encoder_parts,
    positions_kept,
    source_matrix_elements,
    source_work,
    step_matrix_elements,
    step_parts,
    training_parts,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
Bound = Literal["memory", "arithmetic"]


@dataclass(frozen=True)
class Machine:
    """Bytes and operations a second, bytes of memory, and where the numbers come from.

    `flops_per_s` is by the type of what is multiplied; `usual` is the type that models have on it.
    `step_flops_per_s` is that of a step's products, where somebody measured it: they have few rows
    and take their weights from memory, which is in that rate and no longer in the bandwidth.
    `step_overhead_s` is what a decode step takes besides, measured apart; 0 where nobody did.
    """

    name: str
    bytes_per_s: float
    flops_per_s: Mapping[str, float]
    memory_bytes: int
    source: str
    usual: str = "float32"
    step_overhead_s: float = 0.0
    step_flops_per_s: float | None = None


@dataclass(frozen=True)
class Load:
    """What is asked of a model: sentences, tokens of each, hypotheses, and types of elements.

    `source_tokens` and `target_tokens` are S and T, padding and end of sentence included. The
    matrices are of type `weights`, all else of type `cache`: keys and values, activations, norms.
    """

    batch: int
    source_tokens: int
    target_tokens: int
    beam: int = 1
    weights: str = "float32"
    cache: str = "float32"

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.weights]

    @property
    def element_bytes(self) -> int:
        return BYTES[self.cache]


@dataclass(frozen=True)
class Part:
    """A part of a pass: its work, and its two times, of which the longer one counts.

    `seconds` is no less than either: over the steps of a decoding one may bind first and the other
    later. `memory_s` leaves out weights whose reading is in the rate of the step's products.
    """

    name: str
    bytes_moved: int
    flops: int
    memory_s: float
    arithmetic_s: float
    seconds: float

    @property
    def bound(self) -> Bound:
        return "memory" if self.memory_s >= self.arithmetic_s else "arithmetic"


def check_load(architecture: Architecture, load: Load) -> None:
    """Raise ValueError, one line, where a line is longer than the model's positions."""
    for side in ("source", "target"):
        tokens = getattr(load, f"{side}_tokens")
        positions = getattr(architecture, f"max_{side}_positions")
        if positions and tokens > positions:
            raise ValueError(
                f"a {side} of {tokens:,} tokens is longer than the model's {positions:,} "
                "positions: shorten it, or give the model more"
            )


def rate(machine: Machine, kind: str, otherwise: str) -> float:
    """Operations a second in type `kind`.

    8-bit weights that the machine has no rate for are widened as they are read, and multiply in
    type `otherwise`.

    Raises:
        ValueError: the machine has no rate for the type; the line says which it has.
    """
    rates = machine.flops_per_s
    found = rates.get(otherwise if kind == "int8" and kind not in rates else kind)
    if found is None:
        raise ValueError(
            f"{machine.name} has no rate for {kind}: choose one of {', '.join(sorted(rates))}"
        )
    return found


def encoder_seconds(architecture: Architecture, load: Load, machine: Machine) -> list[Part]:
    """Encoding one batch."""
    parts = encoder_parts(
        architecture,
        batch=load.batch,
        source_tokens=load.source_tokens,
        element_bytes=load.element_bytes,
        weight_bytes=load.weight_bytes,
    )
    return _parts([_Run(name, 1, work) for name, work in parts.items()], load, machine)


def training_seconds(architecture: Architecture, load: Load, machine: Machine) -> list[Part]:
    """One update on one batch, all in the type `cache`."""
    parts = training_parts(
        architecture,
        batch=load.batch,
        source_tokens=load.source_tokens,
        target_tokens=load.target_tokens,
        element_bytes=load.element_bytes,
    )
    in_one_type = Load(1, 1, 1, weights=load.cache, cache=load.cache)
    return _parts([_Run(name, 1, work) for name, work in parts.items()], in_one_type, machine)


def decoder_seconds(architecture: Architecture, load: Load, machine: Machine) -> list[Part]:
    """Decoding one batch: the source's keys and values, and a step for each target token.

    Equal to adding up the steps one by one, without doing so.
    """
    parts = _parts(list(_decoding(architecture, load)), load, machine)
    overhead = load.target_tokens * machine.step_overhead_s
    if overhead:
        parts.append(Part("overhead", 0, 0, 0.0, 0.0, overhead))
    return parts


def step_seconds(architecture: Architecture, load: Load, machine: Machine) -> float:
    """The last step of a decoding, which reads the most."""
    works = step_parts(
        architecture,
        batch=load.batch,
        beam=load.beam,
        source_tokens=load.source_tokens,
        length=load.target_tokens,
        element_bytes=load.element_bytes,
        weight_bytes=load.weight_bytes,
    )
    runs = [_Run(name, 1, work, is_step=True) for name, work in works.items()]
    parts = _parts(runs, load, machine)
    return total_seconds(parts) + machine.step_overhead_s


def total_seconds(parts: list[Part]) -> float:
    return sum(part.seconds for part in parts)


class _Run(NamedTuple):
    """`steps` works after each other: the first is `first`, each has `growth` more.

    `is_step`: of a decoding step, whose products have few rows.
    """

    part: str
    steps: int
    first: Work
    growth: Work = Work()
    is_step: bool = False


def _decoding(architecture: Architecture, load: Load) -> Iterator[_Run]:
    """Steps grow by one position each until the window is full, and then stay."""
    sizes = {
        "batch": load.batch,
        "source_tokens": load.source_tokens,
        "element_bytes": load.element_bytes,
        "weight_bytes": load.weight_bytes,
    }
    yield _Run("source", 1, source_work(architecture, **sizes))
    growing = positions_kept(load.target_tokens, architecture.window)
    first, second, last = (
        step_parts(architecture, beam=load.beam, length=length, **sizes)
        for length in (1, 2, growing)
    )
    for name, work in first.items():
        yield _Run(name, growing, work, _less(second[name], work), is_step=True)
        if load.target_tokens > growing:
            yield _Run(name, load.target_tokens - growing, last[name], is_step=True)


def _less(work: Work, other: Work) -> Work:
    parts = {
        name: size - other.bytes_by_part.get(name, 0) for name, size in work.bytes_by_part.items()
    }
    return Work(parts, work.flops - other.flops)


@dataclass
class _Sum:
    bytes_moved: int = 0
    bytes_waited_for: int = 0
    flops: int = 0
    seconds: float = 0.0
    per_flop: float = field(default=0.0)


def _parts(runs: list[_Run], load: Load, machine: Machine) -> list[Part]:
    """Runs of one part become one."""
    per_byte = 1 / machine.bytes_per_s
    matrices = rate(machine, load.weights, load.cache)
    attention = rate(machine, load.cache, load.cache)
    few_rows = machine.step_flops_per_s or matrices
    sums: dict[str, _Sum] = {}
    for run in runs:
        is_attention = run.part.endswith("attention")
        per_flop = 1 / (attention if is_attention else few_rows if run.is_step else matrices)
        waited_for = run.first.bytes_moved
        if run.is_step and not is_attention and machine.step_flops_per_s:
            waited_for -= run.first.bytes_by_part["weights"]
        one = sums.setdefault(run.part, _Sum(per_flop=per_flop))
        grown = run.steps * (run.steps - 1) // 2
        one.bytes_moved += run.steps * run.first.bytes_moved + grown * run.growth.bytes_moved
        one.bytes_waited_for += run.steps * waited_for + grown * run.growth.bytes_moved
        one.flops += run.steps * run.first.flops + grown * run.growth.flops
        one.seconds += sum_of_longer(
            (per_byte * waited_for, per_byte * run.growth.bytes_moved),
            (per_flop * run.first.flops, per_flop * run.growth.flops),
            run.steps,
        )
    return [
        Part(
            name,
            one.bytes_moved,
            one.flops,
            one.bytes_waited_for * per_byte,
            one.flops * one.per_flop,
            one.seconds,
        )
        for name, one in sums.items()
    ]


def sum_of_longer(a: tuple[float, float], b: tuple[float, float], count: int) -> float:
    """The sum over i < `count` of the larger of two lines, each (at 0, growth a step)."""

    def total(line: tuple[float, float], first: int, end: int) -> float:
        n = end - first
        return n * line[0] + line[1] * (n * (first + end - 1) / 2)

    low, high = (a, b) if a[0] < b[0] or (a[0] == b[0] and a[1] < b[1]) else (b, a)
    # `high` leads at first; where `low` grows faster it leads from the crossing on.
    lead = count
    if low[1] > high[1]:
        lead = min(count, int((high[0] - low[0]) / (low[1] - high[1])) + 1)
    return total(high, 0, lead) + total(low, lead, count)


def decoding_per_sentence(architecture: Architecture, load: Load, machine: Machine) -> float:
    """Seconds that one more sentence adds in the limit of large batches: weights cost nothing.

    All works grow by the same amount with each sentence, so the amount is the limit of a batch's
    work over its sentences.
    """
    two, one = (
        list(_decoding(architecture, _with(load, batch=load.batch + more))) for more in (1, 0)
    )
    more = [
        _Run(a.part, a.steps, _less(a.first, b.first), _less(a.growth, b.growth))
        for a, b in zip(two, one, strict=True)
    ]
    return total_seconds(_parts(more, load, machine))


def decoding_per_square(architecture: Architecture, load: Load, machine: Machine) -> float:
    """The limit of a batch's seconds over T^2 as T grows, with S in the same proportion to it.

    What grows with T^2 is attention: to T positions in each of T steps (without a window), and to
    the source.
    """
    sizes = {
        "batch": load.batch,
        "beam": load.beam,
        "element_bytes": load.element_bytes,
        "weight_bytes": load.weight_bytes,
    }
    at = [
        step_parts(architecture, source_tokens=source, length=length, **sizes)
        for source, length in ((1, 1), (2, 2))
    ]
    per_source = load.source_tokens / load.target_tokens
    shares = {"cross_attention": per_source}
    if architecture.window is None:
        shares["self_attention"] = 0.5
    runs = [_Run(name, 1, _less(at[1][name], at[0][name])) for name in shares]
    return sum(shares[part.name] * part.seconds for part in _parts(runs, load, machine))


def step_weight_bytes(architecture: Architecture, load: Load) -> int:
    """Bytes of weights that each decode step reads."""
    parts = step_parts(
        architecture,
        batch=1,
        beam=1,
        source_tokens=1,
        length=1,
        element_bytes=load.element_bytes,
        weight_bytes=load.weight_bytes,
    )
    return sum(work.bytes_by_part.get("weights", 0) for work in parts.values())


def kv_bytes(architecture: Architecture, load: Load) -> dict[str, int]:
    """Bytes of keys and values, `self` and `cross`, that the last step reads."""
    heads = architecture.decoder_heads
    return cache_bytes(
        batch=load.batch,
        beam=load.beam,
        source_tokens=load.source_tokens,
        target_tokens=load.target_tokens,
        layers=architecture.decoder_layers,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        bytes_per_element=load.element_bytes,
        window=architecture.window,
    )


def equal_batch(architecture: Architecture, load: Load) -> Fraction:
    """The batch at which the last step reads as many bytes of keys and values as of weights."""
    each = sum(kv_bytes(architecture, _with(load, batch=1)).values())
    return Fraction(step_weight_bytes(architecture, load), each)


def equal_target(architecture: Architecture, load: Load) -> Fraction:
    """The target length at which they are equal, with a source in the load's proportion to it.

    A window holds fewer positions; the source alone grows then.
    """
    one = _with(load, source_tokens=1, target_tokens=1)
    per_position = sum(kv_bytes(architecture, _with(one, beam=1)).values()) // 2
    positions = Fraction(step_weight_bytes(architecture, load), per_position)  # of all sentences
    per_target = load.beam + Fraction(load.source_tokens, load.target_tokens)
    target = positions / per_target
    window = architecture.window
    if window is not None and target > window:
        left = positions - load.beam * window
        target = left * Fraction(load.target_tokens, load.source_tokens)
    return target


def memory_of_weights(architecture: Architecture, load: Load) -> int:
    """Bytes of all weights in memory.

    Where matrices have a type of their own, an output layer that shares its words with a table of
    embeddings is kept twice.
    """
    products = (
        step_matrix_elements(architecture)
        + source_matrix_elements(architecture)
        + encoder_matrix_elements(architecture)
    )
    others = architecture.parameters - products
    if load.weights != load.cache and architecture.embeddings < 3:
        others += architecture.vocab_size * architecture.d_model
    return products * load.weight_bytes + others * load.element_bytes


def memory_per_sentence(architecture: Architecture, load: Load) -> int:
    """Bytes that one sentence keeps at the last step: cache, encoder's output, scores of words."""
    kept = sum(kv_bytes(architecture, _with(load, batch=1)).values())
    source = load.source_tokens * architecture.d_model
    scores = load.beam * architecture.vocab_size
    return kept + (source + scores) * load.element_bytes


def largest_batch(architecture: Architecture, load: Load, machine: Machine) -> int:
    """Sentences that fit beside the weights; 0 where not even one does."""
    left = machine.memory_bytes - memory_of_weights(architecture, load)
    return max(0, left // memory_per_sentence(architecture, load))


def _with(load: Load, **changes: int) -> Load:
    return Load(**(vars(load) | changes))
