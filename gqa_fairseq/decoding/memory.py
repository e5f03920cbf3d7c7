"""How much memory the keys and values of a batch take, and how much there is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from gqa_fairseq.costs import cache_bytes
from gqa_fairseq.host_memory import available_bytes


class Capacity(NamedTuple):
    """What memory is taken for: rows of sentences, and rows times target and source tokens."""

    rows: int
    targets: int
    sources: int

    def holds(self, other: Capacity) -> bool:
        return all(a >= b for a, b in zip(self, other, strict=True))

    def union(self, other: Capacity) -> Capacity:
        return Capacity(*map(max, self, other))

    def kept_targets(self, window: int | None) -> int:
        """Rows times the target tokens whose keys and values are kept: at most `window` a row."""
        return self.targets if window is None else min(self.targets, self.rows * window)


class BatchShape(NamedTuple):
    """What one batch takes: rows of sentences, and the steps and source tokens of each."""

    rows: int
    steps: int
    source: int

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.rows, self.rows * self.steps, self.rows * self.source)


def predicted_bytes(decoder: Any, beam: int, capacity: Capacity) -> int:
    """Bytes of the cache if every hypothesis grows to the limit, with room for a copy."""
    attention = decoder.layers[0].self_attn
    sizes = cache_bytes(
        batch=1,  # all rows' tokens together
        beam=beam,
        source_tokens=capacity.sources,
        target_tokens=capacity.kept_targets(attention.window),
        layers=len(decoder.layers),
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        bytes_per_element=attention.k_proj.weight.element_size(),
    )
    return sizes["self"] + 2 * sizes["cross"]


def free_bytes(device: torch.device) -> int:
    """Bytes that a search may take there, apart from those that it holds already."""
    if device.type == "cuda":
        # PyTorch keeps what was freed.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return available_bytes()
