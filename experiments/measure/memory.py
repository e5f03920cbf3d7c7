"""Peak memory: of a fresh process in which one contender is alone, while it does a workload once.

On a CPU it is the resident memory of the process, so Python, torch and the weights are in it;
on a GPU what torch allocated there. Building the model is over before the count starts.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.records.checked import MemoryKind
from experiments.tied import tie_to

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Peak:
    """The largest memory in bytes, and which memory that is."""

    size_bytes: int
    kind: MemoryKind


def in_fresh_process(
    name: str, peaks_of: Callable[..., list[Peak]], arguments: tuple[Any, ...], workloads: Sequence
) -> list[Peak]:
    """The peak of each workload: `peaks_of(*arguments, workloads)` in a new process.

    That process ends with this one.

    Where the system cannot start the count again (`can_restart_peak`), `peaks_of` returns the first
    workload's peak alone, and the next one gets a new process.

    Raises:
        ExperimentError: the process was ended, as by a system that is out of memory.
    """
    context = multiprocessing.get_context("spawn")
    peaks: list[Peak] = []
    while len(peaks) < len(workloads):
        try:
            with ProcessPoolExecutor(1, context, tie_to, (os.getpid(),)) as pool:
                rest = list(workloads[len(peaks) :])
                peaks += pool.submit(peaks_of, *arguments, rest).result()
        except BrokenProcessPool:
            raise ExperimentError(
                f"{name}: the process that measures memory ended: out of memory?"
            ) from None
    return peaks


def can_restart_peak(device: str) -> bool:
    """Whether one process can measure several peaks."""
    return device == "cuda" or _restart_resident_peak()


def peak_of(run: Callable[[], None], device: str) -> Peak:
    """The peak while `run` runs; of the whole process where the count cannot start again."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        return Peak(torch.cuda.max_memory_allocated(), "cuda_allocated")
    _return_freed_memory()
    has_restarted = _restart_resident_peak()
    run()
    if has_restarted:
        lines = (_PROC / "status").read_text(encoding="ascii").split("\n")
        kib = next(line for line in lines if line.startswith("VmHWM")).split()[1]
        return Peak(int(kib) * 1024, "process_rss")
    # The kernel gives KiB on Linux and bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process_rss")


def _restart_resident_peak() -> bool:
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _return_freed_memory() -> None:
    """Else what an earlier workload freed may stay with the C library, and count as resident."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
