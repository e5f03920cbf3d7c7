"""What the machine can do: how fast it reads memory and multiplies matrices.

Measured where and when the contenders are, between their rounds, so that a share of it means
something.
"""

from __future__ import annotations

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
