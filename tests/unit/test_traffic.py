"""The counts of traffic.py against the tensors that decoding really holds, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plugin_models import HEADS, build, dictionary, random_lines, source_batch

from gqa_fairseq.attention import cache_bytes
from gqa_fairseq.decoding.step import DecoderStep, Projection
from gqa_fairseq.decoding.traffic import DecoderShape, Work, decoding_work, source_work, step_work

torch.set_num_threads(1)

TOY = DecoderShape(
    d_model=4,
    num_heads=2,
    num_kv_heads=1,
    d_ff=3,
    layers=1,
    vocab_size=5,
    has_bias=False,
    is_pre_norm=True,
    bytes_per_element=4,
)
VARIANTS = [
    {"num_kv_heads": 1},
    {"num_kv_heads": 2, "use_bias": True},
    {"num_kv_heads": HEADS, "use_bias": True, "decoder_normalize_before": False},
    {"num_kv_heads": 4, "attention_placement": "decoder", "decoder_layers": 3},
]


def test_one_step_by_hand() -> None:
    matrices = (4 * (4 + 2 * 2) + 3 * 4 * 4 + 2 * 4 * 3) + 5 * 4
    assert TOY.step_matrix_elements == matrices == 124
    work = step_work(TOY, batch=2, beam=3, source_tokens=7, length=5)
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


def test_the_source_by_hand() -> None:
    work = source_work(TOY, batch=2, source_tokens=7)
    assert work.bytes_by_part == {
        "weights": 4 * (2 * 4 * 2),
        "source_kv": 4 * (2 * 7 * 4 + 2 * 2 * 7 * 2),
    }
    assert work.flops == 2 * (2 * 7) * (2 * 4 * 2)


def test_biases_count_where_they_are_read() -> None:
    with_bias = DecoderShape(**(vars(TOY) | {"has_bias": True, "layers": 2}))
    without = DecoderShape(**(vars(TOY) | {"layers": 2}))
    # q, k, v; the outputs of both attentions and the query of the second; fc1; fc2.
    more = (4 + 2 + 2) + 3 * 4 + 3 + 4
    assert with_bias.step_weight_elements - without.step_weight_elements == 2 * more
    assert with_bias.source_weight_elements - without.source_weight_elements == 2 * (2 + 2)
    assert with_bias.step_matrix_elements == without.step_matrix_elements


@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: f"G{v['num_kv_heads']}")
def test_weights_are_those_of_the_model(options: dict[str, Any]) -> None:
    decoder = build(dictionary(), **options).decoder
    shape = DecoderShape.of(decoder, 4)
    held = sum(p.numel() for p in decoder.parameters())
    positions = decoder.embed_positions.weight.numel()
    assert shape.step_weight_elements + shape.source_weight_elements == held - positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=lambda v: f"G{v['num_kv_heads']}")
def test_matrices_are_those_of_a_step_packed_or_not(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    decoder = build(dictionary(), **options).to(dtype).decoder
    step = DecoderStep(decoder)
    parts = [step.output, *(part for layer in step.layers for part in vars(layer).values())]
    matrices = [part.shape for part in parts if isinstance(part, Projection)]
    shape = DecoderShape.of(decoder, dtype.itemsize)
    assert sum(matrix.numel() for matrix in matrices) == shape.step_matrix_elements


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 4, HEADS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_reads_the_whole_cache_once(beam: int, kv_heads: int, dtype: torch.dtype) -> None:
    vocabulary = dictionary()
    model = build(vocabulary, num_kv_heads=kv_heads).to(dtype)
    net_input = source_batch(random_lines(4, vocabulary), vocabulary)["net_input"]
    batch, source_tokens = net_input["src_tokens"].shape
    cache = model.decoder.start_cache(model.encoder(**net_input), beam)
    shape = DecoderShape.of(model.decoder, dtype.itemsize)
    tokens = torch.full((batch, beam, 1), vocabulary.eos())
    for length in range(1, 5):
        logits = model.decoder.next_logits(tokens, cache)
        tokens = torch.cat((tokens, tokens[:, :, :1]), 2)
        size = {"batch": batch, "beam": beam, "source_tokens": source_tokens}
        parts = step_work(shape, **size, length=length).bytes_by_part
        written = cache.nbytes["self"] // length
        assert parts["self_kv"] == cache.nbytes["self"] + written
        assert parts["source_kv"] == cache.nbytes["cross"]
        assert parts["logits"] == 2 * logits.nbytes


def test_sentences_that_leave_cost_nothing_more() -> None:
    work = decoding_work(TOY, beam=2, source_tokens=6, steps=[3, 1, 2])
    expected = source_work(TOY, batch=3, source_tokens=6)
    for length, left in ((1, 3), (2, 2), (3, 1)):
        expected += step_work(TOY, batch=left, beam=2, source_tokens=6, length=length)
    assert work == expected
    weights = work.bytes_by_part["weights"]
    assert weights == 4 * (3 * TOY.step_weight_elements + TOY.source_weight_elements)


def test_multi_query_moves_less_by_its_keys_and_values_alone() -> None:
    """Shazeer 2019, section 3.1: K and V shrink by the number of heads, nothing else changes."""
    wide = DecoderShape(**(vars(TOY) | {"num_kv_heads": 2}))
    size = {"batch": 4, "beam": 1, "source_tokens": 9, "length": 8}
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
