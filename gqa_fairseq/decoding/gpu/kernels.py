"""Decode attention on a GPU: one launch reads the compact cache once.

attention.attend_cached computes the same with two matrix products and a softmax; between them the
scores travel through device memory, and padding is read and hidden by a mask. Here one program
takes the W * R queries of a sentence's group as the rows of its matrix products and walks over
the slots with an online softmax in float32 (Dao et al. 2022, section 3.1), so keys and values are
read once, whatever the beam and the number of query heads (Shazeer 2019, section 3). Slots outside
a sentence's [start, end) are not read, and of the slots that a tile covers only those that some
beam descends from: late in a beam search most steps have one ancestor left, not W.

B * G programs do not fill a GPU when G = 1 and the batch is small: the slots are then split over
several programs, whose sums are combined afterwards ("flash decoding", Dao et al. 2023).

`start`, `end` and `readers` are tensors on the device. The host never waits for their values, so a
CUDA graph can be captured once and replayed while the cache fills. Legend: see attention.py.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# One tile of keys or of values. Triton keeps two to three of them a program in an H200's 227 KB of
# shared memory (compiled for it: 38 to 45 KB), and registers leave room for three to five programs.
_TILE_BYTES = 16384
# Programs per multiprocessor below which the slots are split.
_PROGRAMS_PER_SM = 2
_INTERPRETED_SMS = 132  # an H200's: the interpreter has none of its own
MAX_BEAM = 31  # bits of `readers`
_LEAST_CAPABILITY = (8, 0)  # of the GPUs that Triton compiles bfloat16 for
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def grouped_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    start: Tensor | None = None,
    end: Tensor | None = None,
    readers: Tensor | None = None,
    splits: int | None = None,
    block: int | None = None,
) -> Tensor:
    """One decoding step over a compact cache, as attention.attend_cached, in one or two launches.

    A query that may read no slot (no reader bit, or start >= end) gives zeros.

    Args:
        query: [B, W, H, D], not scaled; float32, float16 or bfloat16, any strides.
        keys, values: [B, G, N, D] of the same dtype and device, H a multiple of G, any strides:
            views of a buffer. What lies in slots that are not read does not matter.
        start, end: int32 or int64 on the device, [B] or one value for all: sentence b reads the
            slots start[b] <= n < end[b] only. None: from 0, to N. Values outside 0..N are cut,
            never followed. Left padding is a start; the filled part of a buffer is an end.
        readers: int32 [B, N] on the device: beam w reads slot n if bit w is set: 4 bytes
            in place of W floats of the cache's mask. None: all beams read.
        splits: number of parts that the slots are split into; None chooses enough to fill the GPU.
        block: slots of a tile, a power of two >= 16; None chooses by D and dtype.

    Returns:
        [B, W, H * D] in query's dtype; sums are in float32, and the probabilities are rounded to
        that dtype before they meet the values, as in attend_cached.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, D is not a power of two in 16..256, more
            than 31 beams have readers, or the tensors are on a CPU and Triton's interpreter
            (TRITON_INTERPRET=1) is off.
        ModuleNotFoundError: Triton is not installed.
    """
    _check(query, keys, values, start, end, readers)
    B, W, H, D = query.shape
    G, N = keys.shape[1], keys.shape[2]
    rows, fitting_block = tile_sizes(W * H // G, D, query.element_size())
    tiles = -(-(W * H // G) // rows)
    block = fitting_block if block is None else block
    if splits is None:
        splits = choose_splits(B * G * tiles, -(-N // block), _multiprocessors(query.device))
    if splits < 1 or block < 16 or block & (block - 1):
        raise ValueError(f"splits {splits} must be >= 1, block {block} a power of two >= 16")

    import triton  # here, so that the plugin works where Triton is not installed

    from gqa_fairseq.decoding.gpu import triton_kernels

    is_interpreted = triton.knobs.runtime.interpret
    if not query.is_cuda and not is_interpreted:
        raise ValueError(f"the kernel runs on a GPU, not on {query.device}: use attend_cached")
    # The interpreter multiplies bfloat16 by its bit patterns; float32 holds the same values.
    dot = torch.float32 if is_interpreted and query.dtype == torch.bfloat16 else query.dtype
    out = torch.empty((B, W, H * D), dtype=query.dtype, device=query.device)
    parts, stats = out, None
    if splits > 1:
        parts = torch.empty((B * W * H, splits, D), dtype=torch.float32, device=query.device)
        stats = torch.empty((B * W * H, splits, 2), dtype=torch.float32, device=query.device)
    triton_kernels.attend_part[(B * G, splits, tiles)](
        query,
        keys,
        values,
        start,
        end,
        readers,
        parts,
        stats,
        *query.stride(),
        *keys.stride(),
        *values.stride(),
        *(0 if edge is None else edge.expand(B).stride(0) for edge in (start, end)),
        *((0, 0) if readers is None else readers.stride()),
        math.log2(math.e) / math.sqrt(D),
        W,
        N,
        G=G,
        R=H // G,
        D=D,
        ROWS=rows,
        BLOCK=block,
        SPLITS=splits,
        DOT=getattr(triton.language, str(dot).removeprefix("torch.")),
        num_warps=2 * query.element_size(),  # twice as many registers for float32
        num_stages=2,
    )
    if splits > 1:
        triton_kernels.combine_parts[(B * W * H,)](
            parts,
            stats,
            out,
            D=D,
            SPLITS=splits,
            SPLITS_PADDED=_next_power_of_two(splits),
            num_warps=1,
        )
    return out


def has_kernel(device: torch.device, dtype: torch.dtype, D: int) -> bool:
    """Whether grouped_decode_attention runs there: Triton too has to be installed, and to work."""
    if importlib.util.find_spec("triton") is None or dtype not in _DTYPES or not _is_head_dim(D):
        return False
    import triton

    if triton.knobs.runtime.interpret or device.type != "cuda":
        return triton.knobs.runtime.interpret
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY and _can_launch()


@functools.cache
def _can_launch() -> bool:
    """Whether Triton's driver starts; why not goes to the log, once.

    It builds a module at its first use and needs a C compiler and Python's headers for that: many
    machines with a GPU have neither.
    """
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # Triton raises many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("decoding is slower without the attention kernel: Triton: %s", reason)
        return False
    return True


def tile_sizes(query_rows: int, D: int, element_bytes: int) -> tuple[int, int]:
    """Rows and slots of a program's matrix products, both powers of two >= 16.

    If a group has more query rows than a tile, each tile reads the keys and values again. float32
    has no exact matrix unit and needs more registers, so its tiles have fewer rows.
    """
    rows = min(128 // element_bytes, max(16, _next_power_of_two(query_rows)))
    return rows, max(16, min(128, _TILE_BYTES // (D * element_bytes)))


def choose_splits(programs: int, blocks: int, multiprocessors: int) -> int:
    """Parts to read the slots in: as few as give every multiprocessor two programs.

    A part costs a write and a read of float32 sums, so a batch that fills the GPU has one. The
    choice depends on sizes alone: the lengths are on the device.

    Args:
        programs: programs without a split (sentences x kv heads x row tiles).
        blocks: tiles of slots; a part has at least one.
        multiprocessors: of the GPU.
    """
    wanted = -(-_PROGRAMS_PER_SM * multiprocessors // max(1, programs))
    return max(1, min(wanted, blocks))


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    readers: Tensor | None,
) -> None:
    """Raises ValueError on anything that would read or write outside the tensors."""
    if query.dim() != 4 or keys.dim() != 4 or keys.shape != values.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, keys, values))
        raise ValueError(f"expected [B, W, H, D] and twice [B, G, N, D], not {shapes}")
    B, W, H, D = query.shape
    G, N = keys.shape[1], keys.shape[2]
    if keys.shape[0] != B or keys.shape[3] != D or G == 0 or H % G:
        raise ValueError(f"query {tuple(query.shape)} does not fit keys {tuple(keys.shape)}")
    if not _is_head_dim(D):
        raise ValueError(f"head dim {D} is not a power of two in 16..256")
    if query.dtype not in _DTYPES or not query.dtype == keys.dtype == values.dtype:
        raise ValueError(f"{query.dtype}, {keys.dtype}, {values.dtype}: expected one of {_DTYPES}")
    for name, edge in (("start", start), ("end", end)):
        if edge is not None and (
            edge.dtype not in (torch.int32, torch.int64) or edge.shape not in ((), (1,), (B,))
        ):
            shape = tuple(edge.shape)
            raise ValueError(f"{name} {edge.dtype} {shape}: expected int32 or int64 [{B}] or []")
    if readers is not None:
        if readers.dtype != torch.int32 or readers.shape != (B, N):
            shape = tuple(readers.shape)
            raise ValueError(f"readers {readers.dtype} {shape}: expected int32 [{B}, {N}]")
        if W > MAX_BEAM:
            raise ValueError(f"{W} beams do not fit in the {MAX_BEAM} bits of readers")
    others = [x for x in (keys, values, start, end, readers) if x is not None]
    if any(x.device != query.device for x in others):
        raise ValueError(f"all tensors must be on {query.device}, the query's device")


def _is_head_dim(D: int) -> bool:
    return 16 <= D <= 256 and not D & (D - 1)


def _next_power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count
