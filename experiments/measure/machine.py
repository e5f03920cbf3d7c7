"""What the machine can do: how fast it reads memory and multiplies matrices.

Measured where and when the contenders are, between their rounds, so that a share of it means
something. On its own,

    python -m experiments.measure.machine cpu

prints the best of a few rounds as JSON, for predictions (experiments/intensity).
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from experiments.engines.clock import now
from gqa_fairseq.decoding.cpu.native import operators_for
from gqa_fairseq.decoding.int8 import int8_multiply
from gqa_fairseq.decoding.step import Projection

# Far larger than any processor's caches.
_READ_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
_MATRIX_ROWS = {"cpu": 2048, "cuda": 8192}
_STREAM_BYTES = {"cpu": 128 * 2**20, "cuda": 2**29}  # of weights that are taken in turn


class MachineProbe:
    """Reads one large float32 array, and multiplies two square matrices of `dtype`.

    With `has_int8` it also multiplies one of them with its weights in 8 bits, by the operator of
    decoding/int8.py, on a CPU; with `of_steps` also few rows by many matrices in turn, in 8 bits
    where `has_int8`. Decoding reads far more than it writes, so reading is what is measured. The
    number of threads is torch's, as for the contenders.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        has_int8: bool = False,
        of_steps: bool = False,
    ) -> None:
        self.device = device
        self.array = torch.ones(_READ_BYTES[device.type] // 4, device=device)
        rows = _MATRIX_ROWS[device.type]
        self.left = torch.rand(rows, rows, device=device, dtype=dtype)
        self.right = torch.rand(rows, rows, device=device, dtype=dtype)
        self.int8 = int8_multiply(self.right, None, is_relu=False) if has_int8 else None
        self.products = self._of_a_step() if of_steps else []

    def _of_a_step(self) -> list[Projection]:
        is_int8 = self.int8 is not None
        one = self.right.numel() * (1 if is_int8 else self.right.element_size())
        linear = nn.Linear(1, 1, bias=False)
        linear.weight = nn.Parameter(self.right, requires_grad=False)
        native = None if is_int8 else operators_for(self.right)
        count = max(1, _STREAM_BYTES[self.device.type] // one)
        return [Projection(linear, native=native, is_int8=is_int8) for _ in range(count)]

    def read_bytes_per_s(self) -> float:
        """One pass over the array."""
        started = now(self.device)
        self.array.sum()
        return self.array.nbytes / (now(self.device) - started)

    def flops_per_s(self) -> float:
        """One product; a multiplication and an addition are two operations."""
        started = now(self.device)
        self.left @ self.right
        return self._flops / (now(self.device) - started)

    def int8_flops_per_s(self) -> float | None:
        """The same product with 8-bit weights, its input rounded in it; None without `has_int8`."""
        if self.int8 is None:
            return None
        started = now(self.device)
        self.int8(self.left, None)
        return self._flops / (now(self.device) - started)

    def step_flops_per_s(self, rows: int) -> float | None:
        """Products of so many rows by weights from memory; None where nobody asked for them.

        The operators are those of a decoding step (decoding/step.py). One pass comes before the
        clock, since a step of a search comes after others: the first pass is slower by a twentieth.
        """
        if not self.products:
            return None
        x = self.left[:1].expand(rows, -1).contiguous()
        for multiply in self.products:
            multiply(x)
        started = now(self.device)
        for multiply in self.products:
            multiply(x)
        flops = len(self.products) * 2 * rows * self.left.shape[0] ** 2
        return flops / (now(self.device) - started)

    @property
    def _flops(self) -> int:
        return 2 * self.left.shape[0] ** 3


def best(device: torch.device, rounds: int = 10) -> dict[str, object]:
    """The best of a few rounds: `bytes_per_s`, `flops_per_s` by type, and a GPU's `memory`.

    Other load on the machine only slows a round.
    """
    types = [torch.float32, torch.bfloat16]
    types += [torch.float16] if device.type == "cuda" else []
    has_int8 = device.type == "cpu"
    probes = {
        dtype: MachineProbe(device, dtype, has_int8 and dtype == torch.float32) for dtype in types
    }
    read = int8 = 0.0
    rates = dict.fromkeys(types, 0.0)
    for _ in range(rounds):
        read = max(read, probes[torch.float32].read_bytes_per_s())
        int8 = max(int8, probes[torch.float32].int8_flops_per_s() or 0.0)
        rates = {dtype: max(rates[dtype], probes[dtype].flops_per_s()) for dtype in types}
    memory = (
        torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    )
    by_name = {str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()}
    by_name |= {"int8": int8} if has_int8 else {}
    return {"bytes_per_s": read, "flops_per_s": by_name, "memory": memory}


if __name__ == "__main__":
    print(json.dumps(best(torch.device(sys.argv[1]))))
