"""The Triton kernels compiled for an H200 without one: run by test_kernels.py.

The interpreter accepts programs that the compiler does not. Triton brings NVIDIA's assembler with
it, so a machine without a GPU can build the very code that a GPU would run.
"""

from __future__ import annotations

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gqa_fairseq.decoding.gpu.kernels import tile_sizes
from gqa_fairseq.decoding.gpu.triton_kernels import attend_part, combine_parts

H200 = GPUTarget("cuda", 90, 32)
SHARED_MEMORY_BYTES = 227 * 1024  # that one program may take
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def compiled(kernel, types: dict[str, str], constants: dict[str, object], num_warps: int):
    """The kernel as a launch with aligned tensors specializes it; other arguments are int32."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = ("q_b", "q_w", "q_h", "k_b", "k_g", "k_n", "v_b", "v_g", "v_n")
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, type_) in enumerate(signature.items())
        if type_.startswith("*") or name in aligned
    }
    values = {(names.index(n),): value for n, value in constants.items()}
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=H200, options={"num_warps": num_warps, "num_stages": 2})


@pytest.mark.parametrize(
    ("dtype", "G", "W", "D", "splits"),
    [("bf16", 8, 1, 128, 1), ("bf16", 1, 4, 128, 3), ("fp16", 2, 4, 64, 1), ("fp32", 1, 1, 64, 2)],
)
def test_attention_compiles(dtype: str, G: int, W: int, D: int, splits: int) -> None:
    R = 8 // G
    rows, block = tile_sizes(W * R, D, ELEMENT_BYTES[dtype])
    types = dict.fromkeys(("query", "keys", "values", "out"), "*" + dtype)
    types |= {"end": "*i32", "scale": "fp32"}
    constants = {"G": G, "R": R, "D": D, "ROWS": rows, "BLOCK": block, "SPLITS": splits}
    constants |= {"start": None, "q_d": 1, "k_d": 1, "v_d": 1, "DOT": triton.language.dtype(dtype)}
    if splits > 1:
        types |= {"out": "*fp32", "stats": "*fp32"}
    else:
        constants["stats"] = None
    if W > 1:
        types["readers"] = "*i32"
        constants["r_n"] = 1
    else:
        constants |= {"readers": None, "W": 1}
    kernel = compiled(attend_part, types, constants, 2 * ELEMENT_BYTES[dtype])
    assert "cubin" in kernel.asm
    assert kernel.metadata.shared <= SHARED_MEMORY_BYTES
    # Keys and values travel 16 bytes a thread, past the registers, while the last tile is used.
    assert "cp.async.cg.shared.global" in kernel.asm["ptx"]


def test_combination_compiles() -> None:
    types = {"parts": "*fp32", "stats": "*fp32", "out": "*bf16"}
    constants = {"D": 128, "SPLITS": 3, "SPLITS_PADDED": 4}
    assert "cubin" in compiled(combine_parts, types, constants, 1).asm
