"""The own attention kernel beside PyTorch's, for one step: one query a hypothesis, G heads of keys.

Every way gets what a step of the search has: lengths, left padding and the beams that descend from
a slot are values on the device. Ways that want a mask get it ready made: what it takes to make is
not in their time. Each way is checked against float64 first. On a card every way is a CUDA graph
over several layers' caches, as in the search, and the ways are replayed in turn.

    own         decoding/gpu/kernels.py
    sdpa        scaled_dot_product_attention with enable_gqa, one query a head
    sdpa rows   the same with beams and the queries of a group as rows, which needs no enable_gqa
    flex        flex_attention, compiled, its mask as a score_mod: it reads every slot in view
    flex blocks the same with a block mask: blocks that nobody reads are left out
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from experiments.card.models import Asked
from experiments.engines.clock import now
from experiments.measure.loop import turns
from experiments.measure.machine import MachineProbe
from experiments.records.card import AttentionCase, AttentionCases, AttentionTimes
from experiments.records.storage import write_json
from gqa_fairseq.decoding.gpu.kernels import grouped_decode_attention

SEED = 0
Way = Callable[["Step", Tensor, Tensor], Tensor]  # keys and values -> [B, W, H * D]


@dataclass(frozen=True)
class Size:
    """One step of one layer. `filled` of `steps` positions are written, or are no padding."""

    kind: str  # self or cross
    batch: int
    beam: int
    kv_heads: int
    heads: int
    head_dim: int
    steps: int
    filled: int

    @property
    def slots(self) -> int:
        return self.steps * self.beam if self.kind == "self" else self.steps


CARD_SIZES = [
    Size(kind, batch, beam, G, 8, 128, steps, filled)
    for kind, batch, beam, steps, filled in (
        ("self", 128, 4, 128, 96),
        ("cross", 128, 4, 128, 100),
        ("self", 128, 1, 128, 96),
        ("self", 32, 1, 256, 200),
    )
    for G in (8, 1)
]
DRY_SIZES = [
    Size("self", 2, 4, 2, 4, 16, 5, 3),
    Size("cross", 2, 4, 1, 4, 16, 19, 12),
    Size("self", 2, 1, 4, 4, 16, 20, 9),
]
CARD_LAYERS, CARD_CALLS, CARD_ROUNDS = 6, 10, 9
DRY_LAYERS, DRY_CALLS, DRY_ROUNDS = 1, 1, 1


class Step:
    """The inputs of one size: random keys and values, and who may read which slot."""

    def __init__(self, size: Size, layers: int, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(SEED)
        B, W, G, H, D, N = (
            size.batch, size.beam, size.kv_heads, size.heads, size.head_dim, size.slots,
        )  # fmt: skip
        self.size = size
        torch.manual_seed(SEED)
        self.query = torch.randn(B, W, H, D, device=device, dtype=dtype)
        self.caches = [
            (
                torch.randn(B, G, N, D, device=device, dtype=dtype),
                torch.randn(B, G, N, D, device=device, dtype=dtype),
            )
            for _ in range(layers)
        ]
        self.start: Tensor | None = None
        self.end: Tensor | None = None
        if size.kind == "self":
            visible = _ancestry(generator, size)  # [B, W, N]
            self.end = torch.full((B,), size.filled * W, dtype=torch.int32, device=device)
        else:
            longest = N - size.filled
            start = torch.randint(0, 2 * longest + 1, (B,), generator=generator).clamp(max=N - 1)
            visible = (torch.arange(N) >= start[:, None])[:, None].expand(B, W, N)
            self.start = start.int().to(device)
        self.visible = visible.to(device)
        self.readers: Tensor | None = None
        if size.kind == "self" and W > 1:
            bits = 2 ** torch.arange(W, dtype=torch.int32)
            self.readers = (visible * bits[:, None]).sum(1, dtype=torch.int32).to(device)
        R = H // G
        # One mask a head, and one a row of a group: row w * R + r is beam w.
        self.by_head = self.visible[:, None]  # [B, 1, W, N]
        self.by_row = self.visible.repeat_interleave(R, dim=1)[:, None]  # [B, 1, W * R, N]

    @property
    def bytes_read(self) -> int:
        """Keys and values of the slots that some beam reads, once."""
        size = self.size
        slots = int(self.visible.any(1).sum())
        return 2 * slots * size.kv_heads * size.head_dim * self.query.element_size()

    def rows(self) -> Tensor:
        """The query as [B, G, W * R, D]."""
        size = self.size
        R = size.heads // size.kv_heads
        split = self.query.view(size.batch, size.beam, size.kv_heads, R, size.head_dim)
        return split.transpose(1, 2).reshape(size.batch, size.kv_heads, -1, size.head_dim)

    def joined(self, out: Tensor) -> Tensor:
        """[B, G, W * R, D] -> [B, W, H * D]."""
        size = self.size
        split = out.view(size.batch, size.kv_heads, size.beam, -1, size.head_dim)
        return split.transpose(1, 2).reshape(size.batch, size.beam, -1)

    def expected(self) -> tuple[Tensor, Tensor]:
        """float64 output [B, W, H * D] of the first layer, and the mean of |values| there."""
        keys, values = (x.double() for x in self.caches[0])
        scores = self.rows().double() @ keys.transpose(2, 3) / math.sqrt(self.size.head_dim)
        probs = scores.masked_fill(~self.by_row, -math.inf).softmax(-1)
        return self.joined(probs @ values), self.joined(probs @ values.abs())


def _ancestry(generator: torch.Generator, size: Size) -> Tensor:
    """Which slots each beam descends from after `filled` steps with random parents."""
    B, W = size.batch, size.beam
    visible = torch.zeros(B, W, size.steps, W, dtype=torch.bool)
    for step in range(size.filled):
        parents = torch.randint(W, (B, W, 1, 1), generator=generator)
        visible = visible.gather(1, parents.expand_as(visible))
        visible[:, :, step].diagonal(dim1=1, dim2=2).fill_(True)
    return visible.flatten(2)


def own(step: Step, keys: Tensor, values: Tensor) -> Tensor:
    return grouped_decode_attention(
        step.query, keys, values, start=step.start, end=step.end, readers=step.readers
    )


def sdpa(step: Step, keys: Tensor, values: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(
        step.query.transpose(1, 2), keys, values, attn_mask=step.by_head, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)


def sdpa_rows(step: Step, keys: Tensor, values: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(step.rows(), keys, values, attn_mask=step.by_row)
    return step.joined(out)


def flex(step: Step, is_compiled: bool, has_blocks: bool) -> Way:
    """flex_attention for one size; compiling it belongs to the first call."""
    attend: Any = flex_attention
    if is_compiled:
        torch._dynamo.reset()  # a function is compiled for few sizes only
        attend = torch.compile(flex_attention, dynamic=False)
    visible = step.visible
    R = step.size.heads // step.size.kv_heads

    def is_read(b: Tensor, h: Tensor, row: Tensor, n: Tensor) -> Tensor:
        return visible[b, row // R, n]

    def scored(score: Tensor, b: Tensor, h: Tensor, row: Tensor, n: Tensor) -> Tensor:
        return torch.where(is_read(b, h, row, n), score, -math.inf)

    options: dict[str, Any] = {"score_mod": scored}
    if has_blocks:
        size = step.size
        options = {
            "block_mask": create_block_mask(
                is_read, size.batch, None, size.beam * R, size.slots, device=str(visible.device)
            )
        }

    def way(step: Step, keys: Tensor, values: Tensor) -> Tensor:
        return step.joined(attend(step.rows(), keys, values, **options))

    return way


def ways_of(step: Step, is_compiled: bool) -> Iterator[tuple[str, Callable[[], Way]]]:
    """By name; what must be prepared for a size is made when it is asked for."""
    yield "own", lambda: own
    yield "sdpa", lambda: sdpa
    yield "sdpa rows", lambda: sdpa_rows
    yield "flex", lambda: flex(step, is_compiled, has_blocks=False)
    yield "flex blocks", lambda: flex(step, is_compiled, has_blocks=True)


def compared(size: Size, asked: Asked, ends: float) -> AttentionCase:
    """All ways on one size, in turn; what a way raises is why it is refused."""
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    layers, calls, rounds = CARD_LAYERS, CARD_CALLS, CARD_ROUNDS
    if asked.is_dry:
        layers, calls, rounds = DRY_LAYERS, DRY_CALLS, DRY_ROUNDS
    step = Step(size, layers, device, dtype)
    ready: dict[str, Callable[[], None]] = {}
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, make in ways_of(step, is_compiled=not asked.is_dry):
        if time.monotonic() > ends:
            refused[name] = "the time is over"
            continue
        try:
            way = make()
            errors[name] = _error(step, way(step, *step.caches[0]))
            ready[name] = _repeated(step, way, calls, device)
        except Exception as error:  # of a library, which raises many kinds
            refused[name] = (str(error) or type(error).__name__).splitlines()[0][:200]
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    for count in range(-1, rounds):  # the first round is warm-up
        for i in turns(len(names), max(0, count)) if names else []:
            started = now(device)
            ready[names[i]]()
            if count >= 0:
                seconds[names[i]].append((now(device) - started) / (layers * calls))
    return AttentionCase(
        kind="self" if size.kind == "self" else "cross",
        batch=size.batch,
        beam=size.beam,
        heads=size.heads,
        kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        slots=size.slots,
        bytes_read=step.bytes_read,
        ways=[
            *(
                AttentionTimes(name=name, seconds=seconds[name], error=errors[name])
                for name in names
            ),
            *(AttentionTimes(name=name, refused=why) for name, why in refused.items()),
        ],
    )


def _error(step: Step, out: Tensor) -> float:
    """The largest difference from float64 over the mean of |values|; raises where it is wrong."""
    expected, size = step.expected()
    error = float(((out.double() - expected).abs() / size).max())
    # The probabilities and the result are rounded to the dtype; the rest is float32.
    if not error <= max(4 * torch.finfo(step.query.dtype).eps, 1e-5):
        raise ValueError(f"wrong by {error:.1e} of the mean of |values|")
    return error


def _repeated(step: Step, way: Way, calls: int, device: torch.device) -> Callable[[], None]:
    """`calls` calls on each layer's cache: on a card one graph."""

    def all_calls() -> None:
        for _ in range(calls):
            for keys, values in step.caches:
                way(step, keys, values)

    if device.type != "cuda":
        return all_calls
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_calls()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_calls()
    return graph.replay


def run(asked: Asked) -> None:
    """Compare on each size; the record is written anew after each."""
    if asked.is_dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    ends = time.monotonic() + asked.limit_s - 10
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    probe = MachineProbe(device, dtype)
    read, cases = [], []
    for size in DRY_SIZES if asked.is_dry else CARD_SIZES:
        if time.monotonic() > ends:
            break
        cases.append(compared(size, asked, ends))
        read.append(probe.read_bytes_per_s())
        record = AttentionCases(**asked.stamp(), read_bytes_per_s=read, cases=cases)
        write_json(asked.folder / "kernels.json", record)
        print("\n".join(lines_of(cases[-1], read[-1])), flush=True)


def lines_of(case: AttentionCase, bytes_per_s: float) -> list[str]:
    """The case, and of each way its microseconds, its share of the bandwidth and its error."""
    lines = [case.name]
    for way in case.ways:
        if way.refused:
            lines.append(f"  {way.name:<12} refused: {way.refused}")
            continue
        took = case.median_s(way)
        share = case.bytes_read / took / bytes_per_s
        lines.append(f"  {way.name:<12} {1e6 * took:9.1f} µs {share:6.0%} {way.error:.1e}")
    return lines
