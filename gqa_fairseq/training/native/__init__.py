"""What a training update does beside its products, in C++ for a CPU in float32.

Compiled at their first use, as the operators of decoding are (decoding/cpu/native).
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from gqa_fairseq.decoding.cpu.native import build, compiled

RANDOM_BITS = 16  # that decide whether dropout keeps an element


class _Sentences(ctypes.Structure):
    """The structure of attention.cpp, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "values")),
        *((name, c_int64) for name in ("query_stride", "key_stride")),
        *((name, c_void_p) for name in ("query_begin", "key_begin", "highest", "shares", "out")),
        *((name, c_void_p) for name in ("d_out", "d_queries", "d_keys", "d_values")),
        *((name, c_int64) for name in ("B", "H", "G", "D", "is_causal", "window")),
        ("scale", c_float),
    )


class TrainingOperators:
    """The compiled operators; tensors are float32 on the CPU and contiguous."""

    def __init__(self, instructions: str) -> None:
        self._library = ctypes.CDLL(str(build(instructions, Path(__file__).parent)))
        for name, arguments in {
            "gqa_sentences": [c_void_p],
            "gqa_dropout": [c_void_p] * 3 + [c_int64, c_uint64, c_int64],
            "gqa_smoothed_loss": [c_void_p] * 2 + [c_int64] * 2 + [c_float] * 2 + [c_void_p],
        }.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = None, arguments

    def sentences(self, **fields: Tensor | int | float | None) -> None:
        """Attention or its gradient over packed sentences: the fields of `Sentences`."""
        values = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in fields.items()}
        self._library.gqa_sentences(ctypes.byref(_Sentences(**values)))

    def dropout(self, x: Tensor, plus: Tensor | None, p: float, seed: int) -> Tensor:
        """plus + dropout(x), or dropout(x): elements are dropped by `seed` alone.

        The probability is p to 16 bits, and what is kept is scaled by exactly that.
        """
        y = torch.empty_like(x)
        added = None if plus is None else plus.data_ptr()
        threshold = round(p * 2**RANDOM_BITS)
        self._library.gqa_dropout(x.data_ptr(), added, y.data_ptr(), x.numel(), seed, threshold)
        return y

    def smoothed_loss_(self, logits: Tensor, targets: Tensor, right: float, other: float) -> Tensor:
        """Losses of logits [N, V], which become their gradient; targets [N] int64.

        The gradient is softmax(logits), minus `other` everywhere and `right` more at the target.

        Returns:
            [N, 2] nats: -log p of the target, and the sum of -log p over the vocabulary.
        """
        sums = torch.empty(logits.shape[0], 2)
        self._library.gqa_smoothed_loss(
            logits.data_ptr(), targets.data_ptr(), *logits.shape, right, other, sums.data_ptr()
        )
        return sums


@functools.cache
def _operators() -> TrainingOperators | None:
    return compiled(TrainingOperators, "training")


def operators_for(weight: Tensor) -> TrainingOperators | None:
    """The operators if they can work with this weight, and this processor with them."""
    is_theirs = weight.device.type == "cpu" and weight.dtype == torch.float32
    return _operators() if is_theirs else None
