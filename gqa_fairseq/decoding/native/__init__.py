"""A decoding step's operators for a CPU in float32: C++, compiled when first wanted.

They need an x86-64 processor with AVX2 or AVX-512 and g++ 11 or later. Without them PyTorch's
operators do the same, more slowly, and the log says what is missing. The compiled library is kept
in `$XDG_CACHE_HOME/gqa_fairseq` (`~/.cache`), one for each source, compiler and instruction set.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

MAX_BEAM = 32  # who sees a slot is one bit a beam
INSTRUCTION_SETS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}  # PyTorch's names, g++'s
_SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
_READ = [*_SOURCES, *sorted(Path(__file__).parent.glob("*.h"))]
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_FUNCTIONS = {
    "gqa_pack": [c_void_p] * 2 + [c_int64] * 2,
    "gqa_linear": [c_void_p] * 5 + [c_int64] * 4,
    "gqa_attend": [c_void_p],
    "gqa_layer_norm": [c_void_p] * 3 + [c_float, c_void_p] + [c_int64] * 2,
    "gqa_log_softmax": [c_void_p] + [c_int64] * 2,
    "gqa_top_k": [c_void_p] + [c_int64] * 3 + [c_void_p] * 2,
}


class _Attention(ctypes.Structure):
    """attention.cpp's, field by field."""

    _fields_ = (
        ("query", c_void_p),
        ("query_stride", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("sentence_stride", c_int64),
        ("head_stride", c_int64),
        ("mask", c_void_p),
        ("mask_rows", c_int64),
        ("mask_sentence_stride", c_int64),
        ("mask_row_stride", c_int64),
        ("new_keys", c_void_p),
        ("new_values", c_void_p),
        ("new_slot", c_int64),
        ("out", c_void_p),
        *((name, c_int64) for name in "BWHGND"),
    )


class Operators:
    """The compiled operators; tensors are float32 on the CPU, and contiguous unless it is said.

    `instructions` is the processor's instruction set that they are compiled for.
    """

    def __init__(self, instructions: str) -> None:
        self.instructions = instructions
        # OpenMP's functions are those of PyTorch, which has loaded them for all to see: the
        # library shares PyTorch's threads.
        self._library = ctypes.CDLL(str(build(instructions)))
        self._library.gqa_packed_size.restype = c_int64
        self._library.gqa_packed_size.argtypes = [c_int64, c_int64]
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = None, arguments

    def pack(self, weight: Tensor) -> Tensor:
        """Weights [out, in] as `linear` reads them."""
        weight = weight.detach().contiguous()
        packed = torch.empty(self._library.gqa_packed_size(*weight.shape))
        self._library.gqa_pack(weight.data_ptr(), packed.data_ptr(), *weight.shape)
        return packed

    def linear(
        self,
        x: Tensor,
        packed: Tensor,
        outputs: int,
        bias: Tensor | None = None,
        plus: Tensor | None = None,
        is_relu: bool = False,
    ) -> Tensor:
        """relu(x W^T + bias + plus): x [..., in], bias [out], plus [..., out] -> [..., out].

        The sum for a row does not depend on the other rows or on the number of threads.
        """
        x = x.contiguous()
        plus = None if plus is None else plus.contiguous()
        inputs = x.shape[-1]
        y = torch.empty(*x.shape[:-1], outputs)
        self._library.gqa_linear(
            x.data_ptr(),
            packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if plus is None else plus.data_ptr(),
            y.data_ptr(),
            x.numel() // inputs,
            outputs,
            inputs,
            is_relu,
        )
        return y

    def layer_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """norm(x) over the last dimension of x [..., C]; `norm` has a weight and a bias."""
        x = x.contiguous()
        y = torch.empty_like(x)
        self._library.gqa_layer_norm(
            x.data_ptr(),
            norm.weight.data_ptr(),
            norm.bias.data_ptr(),
            norm.eps,
            y.data_ptr(),
            x.numel() // x.shape[-1],
            x.shape[-1],
        )
        return y

    @staticmethod
    def can_attend(beam: int, head_dim: int) -> bool:
        """Whether `attend` has code for it."""
        return beam <= MAX_BEAM and head_dim % 4 == 0

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: int,
        mask: Tensor | None,
        new: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """attention.attend_cached over the first `slots` slots; what nobody sees is not read.

        Args:
            query: [B, W, H, D], not scaled; heads contiguous, beams and sentences evenly spaced.
            keys, values: [>= B, G, >= slots, D] with the same strides, slots contiguous.
            mask: [B, W or 1, slots], 0 or -inf; the last dimension contiguous.
            new: keys and values [B, W, G, D] spaced as the query, which go into the last W slots
                before they are read.

        Returns:
            [B, W, H * D].
        """
        B, W, H, D = query.shape
        out = torch.empty(B, W, H * D)
        work = _Attention(
            query=query.data_ptr(),
            query_stride=query.stride(1),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            sentence_stride=keys.stride(0),
            head_stride=keys.stride(1),
            out=out.data_ptr(),
            B=B,
            W=W,
            H=H,
            G=keys.shape[1],
            N=slots,
            D=D,
        )
        if mask is not None:
            work.mask = mask.data_ptr()
            work.mask_rows = mask.shape[1]
            work.mask_sentence_stride, work.mask_row_stride = mask.stride(0), mask.stride(1)
        if new is not None:
            work.new_keys, work.new_values = new[0].data_ptr(), new[1].data_ptr()
            work.new_slot = slots - W
        self._library.gqa_attend(ctypes.byref(work))
        return out

    def log_softmax_(self, x: Tensor) -> Tensor:
        """x [rows, V] becomes its logarithmic softmax, in place."""
        self._library.gqa_log_softmax(x.data_ptr(), *x.shape)
        return x

    def top_k(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """torch.topk of x [rows, V], k <= V: values and int64 indices; never a NaN."""
        x = x.contiguous()
        rows, width = x.shape
        values, indices = torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64)
        self._library.gqa_top_k(x.data_ptr(), rows, width, k, values.data_ptr(), indices.data_ptr())
        return values, indices


@functools.cache
def operators() -> Operators | None:
    """The operators for this processor, or None where it or the compiler is missing."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in INSTRUCTION_SETS:
        logger.info("decoding with PyTorch's operators: the processor has no AVX2")
        return None
    try:
        return Operators(capability)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "decoding with PyTorch's operators, which are slower: g++ 11 or later is needed (%s)",
            said.strip().splitlines()[-1],
        )
        return None


def operators_for(weight: Tensor) -> Operators | None:
    """The operators if they can multiply by this weight."""
    is_theirs = weight.device.type == "cpu" and weight.dtype == torch.float32
    return operators() if is_theirs else None


def operators_name(weight: Tensor) -> str:
    """Whose operators a step with this weight takes: such as `native AVX512`, or `PyTorch`."""
    native = operators_for(weight)
    return "PyTorch" if native is None else f"native {native.instructions}"


def build(instructions: str) -> Path:
    """Compiles for one of INSTRUCTION_SETS, unless that was done before; returns the library.

    Raises:
        OSError: no compiler, or no place for the library.
        subprocess.CalledProcessError: the compiler failed; `stderr` has its messages.
    """
    compiler = os.environ.get("CXX", "g++")
    version = _output(compiler, "--version")
    command = [*compiler.split(), *_FLAGS, f"-march={INSTRUCTION_SETS[instructions]}"]
    key = hashlib.sha256(" ".join([version, *command]).encode())
    for path in _READ:
        key.update(path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    library = home / "gqa_fairseq" / f"native-{key.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            _output(*command, *map(str, _SOURCES), "-o", str(made))
            made.replace(library)  # whole or not at all: other processes may be at it
    return library


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
