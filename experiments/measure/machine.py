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

from experiments.engines.clock import now

# Far larger than any processor's caches.
_READ_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
_MATRIX_ROWS = {"cpu": 2048, "cuda": 8192}


class MachineProbe:
    """Reads one large float32 array, and multiplies two square matrices of `dtype`.

    Decoding reads far more than it writes, so reading is what is measured. The number of threads
    is torch's, as for the contenders.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.array = torch.ones(_READ_BYTES[device.type] // 4, device=device)
        rows = _MATRIX_ROWS[device.type]
        self.left = torch.rand(rows, rows, device=device, dtype=dtype)
        self.right = torch.rand(rows, rows, device=device, dtype=dtype)

    def read_bytes_per_s(self) -> float:
        """One pass over the array."""
        started = now(self.device)
        self.array.sum()
        return self.array.nbytes / (now(self.device) - started)

    def flops_per_s(self) -> float:
        """One product; a multiplication and an addition are two operations."""
        started = now(self.device)
        self.left @ self.right
        return 2 * self.left.shape[0] ** 3 / (now(self.device) - started)


def best(device: torch.device, rounds: int = 10) -> dict[str, object]:
    """The best of a few rounds: `bytes_per_s`, `flops_per_s` by type, and a GPU's `memory`.

    Other load on the machine only slows a round.
    """
    types = [torch.float32, torch.bfloat16]
    types += [torch.float16] if device.type == "cuda" else []
    probes = {dtype: MachineProbe(device, dtype) for dtype in types}
    read = 0.0
    rates = dict.fromkeys(types, 0.0)
    for _ in range(rounds):
        read = max(read, probes[torch.float32].read_bytes_per_s())
        rates = {dtype: max(rates[dtype], probes[dtype].flops_per_s()) for dtype in types}
    memory = (
        torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    )
    by_name = {str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()}
    return {"bytes_per_s": read, "flops_per_s": by_name, "memory": memory}


if __name__ == "__main__":
    print(json.dumps(best(torch.device(sys.argv[1]))))
