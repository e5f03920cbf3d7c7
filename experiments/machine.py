"""What the machine can do: how fast it reads memory and multiplies matrices, and the clock.

Measured where and when the engines are, between their runs, so that a share of it means something.
"""

from __future__ import annotations

import time

import torch

# Far larger than any processor's caches.
_READ_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
_MATRIX_ROWS = {"cpu": 2048, "cuda": 8192}


def now(device: torch.device) -> float:
    """Seconds on a steady clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class MachineProbe:
    """Reads one large float32 array, and multiplies two square matrices of `dtype`.

    Decoding reads far more than it writes, so reading is what is measured. The number of threads
    is torch's, as for the engines.
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
