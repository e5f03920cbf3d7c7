"""The counts of costs.py against the tensors that decoding really holds, and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from plugin_models import HEADS, build, dictionary, random_lines, source_batch

from gqa_fairseq.architecture import Architecture, Heads, Variant
from gqa_fairseq.costs import (
    Work,
    cache_bytes,
    decoding_work,
    encoder_matrix_elements,
    encoder_parts,
    encoder_vector_elements,
    source_matrix_elements,
    source_vector_elements,
    source_work,
    step_matrix_elements,
    step_vector_elements,
    step_work,
    training_memory_bytes,
    training_parts,
)
from gqa_fairseq.decoding.int8 import Int8Linear, quantize_int8
from gqa_fairseq.decoding.step import DecoderStep, Projection
from gqa_fairseq.models.gqa_transformer import architecture_of
from gqa_fairseq.parity import Baseline

torch.set_num_threads(1)

# An encoder of other widths, which cost a decoder nothing.
TOY = Architecture(
    name="toy",
    d_model=4,
    encoder_heads=Heads(2, 2, 2),
    decoder_heads=Heads(2, 2, 1),
    window=None,
    encoder_layers=3,
    decoder_layers=1,
    encoder_d_ff=99,
    decoder_d_ff=3,
    bias=False,
    pre_norm=True,
    vocab_size=5,
    max_source_positions=11,
    max_target_positions=13,
)
POST_NORM = {"encoder_normalize_before": False, "decoder_normalize_before": False}
VARIANTS = [
    {"num_kv_heads": 1},
    {"num_kv_heads": 2, "use_bias": True},
    {"num_kv_heads": HEADS, "use_bias": True, **POST_NORM},
    {"num_kv_heads": 4, "attention_placement": "decoder", "decoder_layers": 3},
    {"num_kv_heads": 2, "decoder_head_dim": 6, "encoder_head_dim": 2, "use_bias": True},
]


def test_one_step_by_hand() -> None:
    matrices = (4 * (4 + 2 * 2) + 3 * 4 * 4 + 2 * 4 * 3) + 5 * 4
    assert step_matrix_elements(TOY) == matrices == 124
    work = step_work(TOY, batch=2, beam=3, source_tokens=7, length=5, element_bytes=4)
    assert work.bytes_by_part == {
        "weights": 4 * (124 + 3 * 2 * 4 + 2 * 4),
        "self_kv": 4 * (2 * 2 * 3 * 2 * 5 + 2 * 2 * 3 * 2),  # 15 slots a sentence, 3 are new
        "source_kv": 4 * 2 * 2 * 2 * 7,  # no beam in it
        "logits": 4 * 2 * 6 * 5,
        "embeddings": 4 * 6 * 4,
    }
    # Each of 6 rows: the matrices, and scores and sums of 2 heads over 15 + 7 slots of width 2.
    assert work.flops == 2 * 6 * 124 + 6 * 2 * (2 * 2 * 22 * 2)
    assert work.bytes_moved == sum(work.bytes_by_part.values())


def test_a_window_caps_what_a_step_reads() -> None:
    local = replace(TOY, window=3)
    size: dict[str, Any] = {"batch": 2, "beam": 3, "source_tokens": 7, "element_bytes": 4}
    for length in (1, 3):  # the window holds all
        assert step_work(local, length=length, **size) == step_work(TOY, length=length, **size)
    for length in (4, 100):  # nine slots a sentence, of which this step wrote three
        work = step_work(local, length=length, **size)
        assert work.bytes_by_part["self_kv"] == 4 * (2 * 2 * 3 * 2 * 3 + 2 * 2 * 3 * 2)
        assert work.flops == 2 * 6 * 124 + 6 * 2 * (2 * 2 * (9 + 7) * 2)
        cached = cache_bytes(
            batch=2,
            beam=3,
            source_tokens=7,
            target_tokens=length,
            layers=1,
            num_kv_heads=1,
            head_dim=2,
            bytes_per_element=4,
            window=3,
        )
        assert cached == {"self": 4 * 2 * 2 * 3 * 2 * 3, "cross": 4 * 2 * 2 * 2 * 7}


def test_the_source_by_hand() -> None:
    work = source_work(TOY, batch=2, source_tokens=7, element_bytes=4)
    assert work.bytes_by_part == {
        "weights": 4 * (2 * 4 * 2),
        "source_kv": 4 * (2 * 7 * 4 + 2 * 2 * 7 * 2),
    }
    assert work.flops == 2 * (2 * 7) * (2 * 4 * 2)


def test_biases_count_where_they_are_read() -> None:
    without = replace(TOY, decoder_layers=2)
    with_bias = replace(without, bias=True)
    # q, k, v; the outputs of both attentions and the query of the second; fc1; fc2.
    more = (4 + 2 + 2) + 3 * 4 + 3 + 4
    assert step_vector_elements(with_bias) - step_vector_elements(without) == 2 * more
    assert source_vector_elements(without) == 0
    assert source_vector_elements(with_bias) == 2 * (2 + 2)
    for matrices in (step_matrix_elements, source_matrix_elements):
        assert matrices(with_bias) == matrices(without)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: f"G{v['num_kv_heads']}")
def test_weights_are_those_of_the_model(options: dict[str, Any]) -> None:
    model = build(dictionary(), **options)
    built = architecture_of(model, "built")
    held = sum(p.numel() for p in model.decoder.parameters())
    positions = model.decoder.embed_positions.weight.numel()
    counts = (
        step_matrix_elements,
        step_vector_elements,
        source_matrix_elements,
        source_vector_elements,
    )
    assert sum(count(built) for count in counts) == held - positions


def projections(step: DecoderStep) -> list[Projection]:
    """All that a step multiplies by."""
    parts = [step.output, *(part for layer in step.layers for part in vars(layer).values())]
    return [part for part in parts if isinstance(part, Projection)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: f"G{v['num_kv_heads']}")
def test_matrices_are_those_of_a_step_packed_or_not(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = build(dictionary(), **options).to(dtype)
    matrices = [part.shape for part in projections(DecoderStep(model.decoder))]
    built = architecture_of(model, "built")
    assert sum(matrix.numel() for matrix in matrices) == step_matrix_elements(built)


def matrix_bytes(multiply: Any) -> int:
    """Bytes of the matrix that is packed inside a product in 8 bits."""
    packed = multiply.__closure__[multiply.__code__.co_freevars.index("packed")].cell_contents
    weight, _ = packed.unpack()
    return weight.numel() * weight.element_size()


@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: f"G{v['num_kv_heads']}")
def test_in_8_bits_every_matrix_takes_a_byte_an_element_and_nothing_else_does(
    options: dict[str, Any],
) -> None:
    """The output layer and the source's projections are in 8 bits too; norms and biases are not."""
    model = build(dictionary(), **options)
    built = architecture_of(model, "built")
    quantize_int8(model)
    step = [matrix_bytes(part.multiply) for part in projections(DecoderStep(model.decoder))]
    source = [
        matrix_bytes(module._multiply)
        for module in model.decoder.modules()
        if isinstance(module, Int8Linear)
    ]
    size: dict[str, Any] = {"batch": 4, "source_tokens": 6, "element_bytes": 4}
    work = step_work(built, **size, beam=2, length=3, weight_bytes=1)
    assert work.bytes_by_part["weights"] == sum(step) + 4 * step_vector_elements(built)
    before = source_work(built, **size, weight_bytes=1)
    assert before.bytes_by_part["weights"] == sum(source) + 4 * source_vector_elements(built)
    in_float = step_work(built, **size, beam=2, length=3)
    assert in_float.flops == work.flops
    assert in_float.bytes_by_part | {"weights": 0} == work.bytes_by_part | {"weights": 0}


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 4, HEADS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [None, 2])
def test_a_step_reads_the_whole_cache_once(
    beam: int, kv_heads: int, dtype: torch.dtype, window: int | None
) -> None:
    vocabulary = dictionary()
    model = build(vocabulary, num_kv_heads=kv_heads, decoder_window=window).to(dtype)
    net_input = source_batch(random_lines(4, vocabulary), vocabulary)["net_input"]
    batch, source_tokens = net_input["src_tokens"].shape
    cache = model.decoder.start_cache(model.encoder(**net_input), beam)
    built = architecture_of(model, "built")
    tokens = torch.full((batch, beam, 1), vocabulary.eos())
    for length in range(1, 5):
        logits = model.decoder.next_logits(tokens, cache)
        tokens = torch.cat((tokens, tokens[:, :, :1]), 2)
        size = {"batch": batch, "beam": beam, "source_tokens": source_tokens}
        work = step_work(built, **size, length=length, element_bytes=dtype.itemsize)
        parts = work.bytes_by_part
        written = cache.nbytes["self"] // min(length, window or length)
        assert parts["self_kv"] == cache.nbytes["self"] + written
        assert parts["source_kv"] == cache.nbytes["cross"]
        assert parts["logits"] == 2 * logits.nbytes


@pytest.mark.parametrize("weight_bytes", [None, 1])
def test_sentences_that_leave_cost_nothing_more(weight_bytes: int | None) -> None:
    size: dict[str, Any] = {"source_tokens": 6, "element_bytes": 4, "weight_bytes": weight_bytes}
    work = decoding_work(TOY, beam=2, steps=[3, 1, 2], **size)
    expected = source_work(TOY, batch=3, **size)
    for length, left in ((1, 3), (2, 2), (3, 1)):
        expected += step_work(TOY, batch=left, beam=2, length=length, **size)
    assert work == expected
    matrices = 3 * step_matrix_elements(TOY) + source_matrix_elements(TOY)
    vectors = 3 * step_vector_elements(TOY)
    assert work.bytes_by_part["weights"] == (weight_bytes or 4) * matrices + 4 * vectors


def test_multi_query_moves_less_by_its_keys_and_values_alone() -> None:
    """Shazeer 2019, section 3.1: K and V shrink by the number of heads, nothing else changes."""
    wide = replace(TOY, decoder_heads=Heads(2, 2, 2))
    size = {"batch": 4, "beam": 1, "source_tokens": 9, "length": 8, "element_bytes": 4}
    mha, mqa = (step_work(shape, **size).bytes_by_part for shape in (wide, TOY))
    for part in ("self_kv", "source_kv"):
        assert mha[part] == 2 * mqa[part]
    for part in ("logits", "embeddings"):
        assert mha[part] == mqa[part]
    kept = cache_bytes(
        batch=4, beam=1, source_tokens=9, target_tokens=8, layers=1, num_kv_heads=2, head_dim=2,
        bytes_per_element=4,
    )  # fmt: skip
    assert mha["source_kv"] == kept["cross"]


def test_works_add_up_part_by_part() -> None:
    total = Work({"a": 1, "b": 2}, 3) + Work({"b": 5, "c": 7}, 11)
    assert total == Work({"a": 1, "b": 7, "c": 7}, 14)


def test_cache_bytes_by_hand() -> None:
    """Paper's shape, G = 1, fp16: 2 x 6 layers x 128 x 2 bytes a position."""
    shape = {"batch": 64, "beam": 4, "source_tokens": 128, "target_tokens": 128, "layers": 6}
    shape |= {"head_dim": 128, "bytes_per_element": 2}
    one = cache_bytes(**shape, num_kv_heads=1)
    assert one == {"self": 64 * 4 * 128 * 3072, "cross": 64 * 128 * 3072}
    assert cache_bytes(**shape, num_kv_heads=8) == {part: 8 * size for part, size in one.items()}


def test_training_memory_by_hand() -> None:
    """The paper's MQA at 4,096 padded tokens, in fp32 and in 16 bits."""
    paper = Baseline(vocab_size=32_001, max_source_positions=256, max_target_positions=256)
    mqa = paper.resolve(Variant(num_kv_heads=1))
    layers = 6 * (10 * 1024 + 2 * 5440) + 6 * (16 * 1024 + 2 * 5440)
    assert training_memory_bytes(mqa, "fp32", 4096) == (
        16 * mqa.parameters,
        4096 * (4 * layers + 32_001 * (2 * 4 + 8)),
    )
    for precision in ("bf16", "fp16"):
        assert training_memory_bytes(mqa, precision, 4096) == (
            20 * mqa.parameters,
            4096 * (2 * layers + 32_001 * (2 * 2 + 8)),
        )


def test_training_memory_counts_the_d_ff_of_each_side() -> None:
    toy, tokens = replace(TOY, encoder_layers=1), 10
    _, activations = training_memory_bytes(toy, "fp32", tokens)
    for side in ("encoder", "decoder"):
        wider = replace(toy, **{f"{side}_d_ff": getattr(toy, f"{side}_d_ff") + 1})
        assert training_memory_bytes(wider, "fp32", tokens) == (
            16 * wider.parameters,
            activations + tokens * 4 * 2,
        )


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="'int4' is unknown: choose one of fp32, bf16, fp16"):
        training_memory_bytes(TOY, "int4", 1)


def test_encoding_by_hand() -> None:
    """3 layers of width 4, 2 heads x 2 with as many of keys, d_ff 99; 2 sentences of 7."""
    matrices = 3 * (4 * 4 * 4 + 2 * 4 * 99)
    assert encoder_matrix_elements(TOY) == matrices
    assert encoder_vector_elements(TOY) == 3 * 2 * 2 * 4 + 2 * 4
    work = encoder_parts(TOY, batch=2, source_tokens=7, element_bytes=4)
    products = (4 + 12) + (4 + 4) + (4 + 99) + (99 + 4)
    assert work["layers"] == Work(
        {
            "weights": 4 * (matrices + 56),
            "activations": 4 * 3 * 14 * (products + 2 * 4),
            "embeddings": 4 * 2 * 14 * 4,
        },
        2 * 14 * matrices,
    )
    # Queries, keys, values and sums of width 4; 7 scores and 7 products for each of 14 queries.
    assert work["self_attention"] == Work(
        {"activations": 4 * 3 * 14 * 4 * 4}, 3 * 14 * 7 * 2 * (2 * 4)
    )
    in_8_bits = encoder_parts(TOY, batch=2, source_tokens=7, element_bytes=4, weight_bytes=1)
    assert in_8_bits["layers"].bytes_by_part["weights"] == matrices + 4 * 56
    assert in_8_bits["self_attention"] == work["self_attention"]


def test_training_by_hand() -> None:
    """3 source and 2 target tokens; the decoder has one layer, one key/value head and d_ff 3."""
    toy = replace(TOY, encoder_layers=1)
    parts = training_parts(toy, batch=1, source_tokens=3, target_tokens=2, element_bytes=4)
    encoder = [(3, 4, 12), (3, 4, 4), (3, 4, 99), (3, 99, 4)]
    own = [(2, 4, 8), (2, 4, 4), (2, 4, 4), (3, 4, 4), (2, 4, 4), (2, 4, 3), (2, 3, 4)]
    products = encoder + own
    assert parts["layers"].flops == 3 * sum(2 * rows * i * o for rows, i, o in products)
    moved = sum(rows * (3 * i + 2 * o) for rows, i, o in products)
    residuals = 2 * (2 * 3 * 4) + 2 * (3 * 2 * 4)
    assert parts["layers"].bytes_by_part["activations"] == 4 * (moved + residuals)
    assert parts["layers"].bytes_by_part["embeddings"] == 4 * 4 * (3 + 2) * 4
    # Queries and sums are 4 wide, keys and values 4 in the encoder, 2 in the decoder.
    attended = 2 * (3 * 4 + 3 * 4) + 2 * (2 * 4 + 2 * 2) + 2 * (2 * 4 + 3 * 2)
    seen = 3 * 3 + (1 + 2) + 2 * 3
    assert parts["attention"] == Work({"activations": 4 * 3 * attended}, 3 * 4 * 4 * seen)
    assert parts["output"].bytes_by_part == {
        "weights": 4 * 3 * 5 * 4,
        "activations": 4 * 3 * 2 * 4,
        "logits": 4 * 4 * 2 * 5,
    }
    assert parts["output"].flops == 3 * 2 * 2 * 4 * 5
    # Gradient, weight and two moments read; weight and moments written.
    assert parts["optimizer"] == Work({"optimizer": toy.parameters * 4 * 7})
    half = training_parts(toy, batch=1, source_tokens=3, target_tokens=2, element_bytes=2)
    assert half["optimizer"] == Work({"optimizer": toy.parameters * (6 * 4 + 2 + 2)})


def test_training_with_a_window_sees_fewer_pairs() -> None:
    size: dict[str, Any] = {"batch": 2, "source_tokens": 3, "element_bytes": 4}
    for target in (1, 3, 8):
        pairs = sum(min(t, 3) for t in range(1, target + 1))
        local, full = (
            training_parts(replace(TOY, window=window), target_tokens=target, **size)["attention"]
            for window in (3, None)
        )
        less = target * (target + 1) // 2 - pairs
        assert full.flops - local.flops == 3 * 4 * 2 * 4 * less
        assert full.bytes_by_part == local.bytes_by_part


@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: f"G{v['num_kv_heads']}")
def test_encoding_and_training_use_the_weights_and_products_of_the_model(
    options: dict[str, Any],
) -> None:
    """Counted in a forward pass over whole sequences; training has three times its operations."""
    vocabulary = dictionary()
    model = build(vocabulary, **options)
    built = architecture_of(model, "built")
    net_input = source_batch(random_lines(4, vocabulary), vocabulary)["net_input"]
    batch, source_tokens = net_input["src_tokens"].shape
    flops = dict.fromkeys(("encoder", "decoder"), 0)
    for side in flops:
        for module in getattr(model, side).modules():
            if isinstance(module, torch.nn.Linear):

                def count(linear: Any, given: Any, _: Any, side: str = side) -> None:
                    rows = given[0].numel() // linear.in_features
                    flops[side] += 2 * rows * linear.weight.numel()

                module.register_forward_hook(count)
    model(**net_input | {"prev_output_tokens": torch.full((batch, 5), vocabulary.eos())})
    size: dict[str, Any] = {"batch": batch, "source_tokens": source_tokens, "element_bytes": 4}
    encoding = encoder_parts(built, **size)["layers"]
    assert encoding.flops == flops["encoder"]
    training = training_parts(built, **size, target_tokens=5)
    assert training["layers"].flops + training["output"].flops == 3 * sum(flops.values())
    embedded = {p.data_ptr() for n, p in model.named_parameters() if "embed" in n}
    held = {
        side: sum(
            p.numel() for p in getattr(model, side).parameters() if p.data_ptr() not in embedded
        )
        for side in flops
    }
    assert encoding.bytes_by_part["weights"] == 4 * held["encoder"]
    assert training["layers"].bytes_by_part["weights"] == 3 * 4 * sum(held.values())
    total = sum(p.numel() for p in model.parameters())
    assert training["optimizer"].bytes_moved == 28 * total
