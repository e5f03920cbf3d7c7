"""The clock of every measurement."""

import time

import torch


def now(device: torch.device) -> float:
    """Seconds on a steady clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
