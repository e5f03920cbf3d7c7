"""Runs a file of tests in its own process: Triton decides at import what it does with kernels."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


def run_tests(file: str, **environment: str) -> None:
    """Runs pytest over one file of tests/ in its own process, and shows what fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def readers_of(mask: Tensor) -> Tensor:
    """Ancestry as an additive mask [B, W, N] (0 or -inf) -> the kernel's `readers` int32 [B, N]."""
    bits = 2 ** torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device)
    return ((mask > -math.inf) * bits[:, None]).sum(1, dtype=torch.int32)
