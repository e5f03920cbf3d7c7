"""A decoding step's operators for a CPU in float32, in C++, compiled at their first use.

They need an x86-64 processor with AVX2 or AVX-512 and g++ 11 or later (`$CXX`). Without them
PyTorch's operators do the same more slowly, and the log says what is missing. The compiled library
is kept in `$XDG_CACHE_HOME/gqa_fairseq` (`~/.cache`), one for each source, compiler and instruction
set.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BEAM = 32  # one bit for each beam says whether it sees a slot
INSTRUCTION_SETS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}  # PyTorch's names, g++'s
_FOLDER = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_FUNCTIONS = {
    "gqa_pack": [c_void_p] * 2 + [c_int64] * 2,
    "gqa_product": [c_void_p] * 4 + [c_int64],
    "gqa_norm": [c_void_p] * 3 + [c_int64],
    "gqa_attend": [c_void_p],
    "gqa_layer": [c_void_p] * 5,
    "gqa_log_softmax": [c_void_p] + [c_int64] * 2,
    "gqa_top_k": [c_void_p] + [c_int64] * 3 + [c_void_p] * 2,
}


# The structures of operators.h and layer.cpp, field by field.


class Attention(ctypes.Structure):
    """A cache as one step reads it."""

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


class _Product(ctypes.Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("is_relu", c_int64),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("width", c_int64),
        ("epsilon", c_float),
    )


NORMS = ("self_norm", "source_norm", "ffn_norm")
PRODUCTS = ("self_qkv", "self_out", "source_q", "source_out", "fc1", "fc2")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in NORMS),
        *((name, _Product) for name in PRODUCTS),
        ("is_pre_norm", c_int64),
    )


class Product:
    """x -> relu(x W^T + b) for weights [out, in] and perhaps a bias [out], packed once.

    The sum for a row does not depend on the other rows or on the number of threads.
    """

    def __init__(
        self, library: ctypes.CDLL, weight: Tensor, bias: Tensor | None, is_relu: bool
    ) -> None:
        weight = weight.detach().contiguous()
        outputs, inputs = weight.shape
        self._multiply = library.gqa_product
        self._packed = torch.empty(library.gqa_packed_size(outputs, inputs))
        self._bias = None if bias is None else bias.detach().contiguous()
        library.gqa_pack(weight.data_ptr(), self._packed.data_ptr(), outputs, inputs)
        self.structure = _Product(
            packed=self._packed.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            outputs=outputs,
            inputs=inputs,
            is_relu=is_relu,
        )

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out]; `plus` [..., out] is added before ReLU."""
        x = x.contiguous()
        plus = None if plus is None else plus.contiguous()
        y = torch.empty(*x.shape[:-1], self.structure.outputs)
        self._multiply(
            ctypes.byref(self.structure),
            x.data_ptr(),
            None if plus is None else plus.data_ptr(),
            y.data_ptr(),
            x.numel() // self.structure.inputs,
        )
        return y


class Norm:
    """A layer norm over the last dimension; it keeps the module's weights as they are."""

    def __init__(self, library: ctypes.CDLL, norm: nn.LayerNorm) -> None:
        self._normalize = library.gqa_norm
        self._weights = norm.weight.detach(), norm.bias.detach()
        weight, bias = (weight.data_ptr() for weight in self._weights)
        width = self._weights[0].numel()
        self.structure = _Norm(weight=weight, bias=bias, width=width, epsilon=norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        x = x.contiguous()
        y = torch.empty_like(x)
        rows = x.numel() // self.structure.width
        self._normalize(ctypes.byref(self.structure), x.data_ptr(), y.data_ptr(), rows)
        return y


class Layer:
    """A whole decoder layer of one step: norms and products by the names in NORMS and PRODUCTS."""

    def __init__(
        self,
        library: ctypes.CDLL,
        norms: dict[str, Norm],
        products: dict[str, Product],
        is_pre_norm: bool,
    ) -> None:
        self._run = library.gqa_layer
        self._parts = norms, products  # they own the weights
        structures = {name: part.structure for name, part in (norms | products).items()}
        self.structure = _Layer(**structures, is_pre_norm=is_pre_norm)

    def __call__(self, x: Tensor, own: Attention, source: Attention) -> Tensor:
        """[B * W, C] -> [B * W, C]; the new keys and values go where `own` says."""
        x = x.contiguous()
        y = torch.empty_like(x)
        own_at, source_at = ctypes.byref(own), ctypes.byref(source)
        self._run(ctypes.byref(self.structure), own_at, source_at, x.data_ptr(), y.data_ptr())
        return y


class Operators:
    """The compiled operators; tensors are float32 on the CPU, and contiguous unless stated.

    `instructions` is the processor's instruction set that they are compiled for.
    """

    def __init__(self, instructions: str) -> None:
        self.instructions = instructions
        # PyTorch has loaded OpenMP's functions for the whole process, so the library uses
        # PyTorch's threads.
        self._library = ctypes.CDLL(str(build(instructions)))
        self._library.gqa_packed_size.restype = c_int64
        self._library.gqa_packed_size.argtypes = [c_int64, c_int64]
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = None, arguments
        self.product = functools.partial(Product, self._library)
        self.norm = functools.partial(Norm, self._library)
        self.layer = functools.partial(Layer, self._library)

    @staticmethod
    def can_attend(beam: int, head_dim: int) -> bool:
        """Whether `attend` has code for it."""
        return beam <= MAX_BEAM and head_dim % 4 == 0

    @staticmethod
    def attention(
        keys: Tensor,
        values: Tensor,
        slots: int,
        mask: Tensor | None,
        shape: tuple[int, int, int],
        new_slot: int = 0,
    ) -> Attention:
        """A cache for `attend` or a Layer; the tensors must outlive it.

        Args:
            keys, values: [>= B, G, >= slots, D] with the same strides, slots contiguous.
            slots: how many are in use; those that no beam sees are not read.
            mask: [B, W or 1, slots], 0 or -inf; the last dimension contiguous.
            shape: (B, W, H).
            new_slot: the first of the W slots of the step's own keys and values, if it has any.
        """
        B, W, H = shape
        work = Attention(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            sentence_stride=keys.stride(0),
            head_stride=keys.stride(1),
            new_slot=new_slot,
            B=B,
            W=W,
            H=H,
            G=keys.shape[1],
            N=slots,
            D=keys.shape[3],
        )
        if mask is not None:
            work.mask = mask.data_ptr()
            work.mask_rows = mask.shape[1]
            work.mask_sentence_stride, work.mask_row_stride = mask.stride(0), mask.stride(1)
        return work

    def attend(
        self, work: Attention, query: Tensor, new: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """attention.attend_cached of a query [B, W, H, D], not scaled: [B, W, H * D].

        `new` are the step's keys and values [B, W, G, D], for a cache that is growing: they are
        written first. Heads are contiguous, beams and sentences evenly spaced, in all three alike.
        """
        out = torch.empty(*query.shape[:2], query.shape[2] * query.shape[3])
        work.query, work.query_stride, work.out = query.data_ptr(), query.stride(1), out.data_ptr()
        if new is not None:
            work.new_keys, work.new_values = new[0].data_ptr(), new[1].data_ptr()
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
    return compiled(Operators, "decoding")


def compiled(make: Callable[[str], T], work: str) -> T | None:
    """`make` of this processor's instruction set, or None and a line in the log about `work`."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in INSTRUCTION_SETS:
        logger.info("%s with PyTorch's operators: the processor has no AVX2", work)
        return None
    try:
        return make(capability)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or "").splitlines()
        cause = next((line for line in lines if "error" in line), str(error))
        logger.warning(
            "%s with PyTorch's operators, which are slower: the native ones, which need g++ "
            "11 or later, could not be built: %s",
            work,
            cause,
        )
        return None


def operators_for(weight: Tensor) -> Operators | None:
    """The operators if they can multiply by this weight."""
    is_theirs = weight.device.type == "cpu" and weight.dtype == torch.float32
    return operators() if is_theirs else None


def operators_name(weight: Tensor) -> str:
    """The operators of a step with this weight, such as `native AVX512` or `PyTorch`."""
    native = operators_for(weight)
    return "PyTorch" if native is None else f"native {native.instructions}"


def build(instructions: str, folder: Path = _FOLDER) -> Path:
    """Compiles a folder's operators for one of INSTRUCTION_SETS, unless that was done before.

    They may include the headers of this folder. Returns the library.

    Raises:
        OSError: no compiler, or no place for the library.
        subprocess.CalledProcessError: the compiler failed; `stderr` has its messages.
    """
    compiler = os.environ.get("CXX", "g++").split()  # such as `ccache g++`
    version = _output(*compiler, "--version")
    command = [*compiler, *_FLAGS, f"-march={INSTRUCTION_SETS[instructions]}"]
    key = hashlib.sha256(" ".join([version, *command]).encode())
    sources = sorted(folder.glob("*.cpp"))
    for path in [*sources, *sorted({*folder.glob("*.h"), *_FOLDER.glob("*.h")})]:
        key.update(path.read_bytes())
    library = _cache() / f"native-{key.hexdigest()[:16]}.so"
    if not library.exists():
        logger.info("compiling operators, once: some seconds")
        with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
            made = Path(temporary) / library.name
            _output(*command, f"-I{_FOLDER}", *map(str, sources), "-o", str(made))
            made.replace(library)  # whole or not at all: other processes may compile it too
    return library


def _cache() -> Path:
    """The folder for libraries, which is made; a temporary one of this user where there is no home.

    A library runs in this process: a temporary folder that another user can write is not taken.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "gqa_fairseq"
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("native-*.so")) or os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # a home that nobody may write, or none at all
        pass
    folder = Path(tempfile.gettempdir(), f"gqa_fairseq-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone: set XDG_CACHE_HOME")
    return folder


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
