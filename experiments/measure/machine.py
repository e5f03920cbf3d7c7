"""What the machine can do: how fast it reads memory and multiplies matrices.

Measured where and when the contenders are, between their rounds, so that a share of it means
something. On its own,

    python -m experiments.measure.machine cpu

prints the medians of a few rounds as JSON, for predictions (experiments/intensity).
"""

from __future__ import annotations

import json
import statistics
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


def medians(device: torch.device, rounds: int = 5) -> dict[str, object]:
    """`bytes_per_s`, and `flops_per_s` by type, after one round that warms up."""
    types = [torch.float32, torch.bfloat16]
    types += [torch.float16] if device.type == "cuda" else []
    probes = {dtype: MachineProbe(device, dtype) for dtype in types}
    reads: list[float] = []
    products: dict[torch.dtype, list[float]] = {dtype: [] for dtype in types}
    for _ in range(rounds + 1):
        reads.append(probes[torch.float32].read_bytes_per_s())
        for dtype, probe in probes.items():
            products[dtype].append(probe.flops_per_s())
    rates = {str(d).removeprefix("torch."): statistics.median(v[1:]) for d, v in products.items()}
    memory = (
        torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    )
    return {"bytes_per_s": statistics.median(reads[1:]), "flops_per_s": rates, "memory": memory}


if __name__ == "__main__":
    print(json.dumps(medians(torch.device(sys.argv[1]))))
