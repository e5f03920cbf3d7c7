"""The parity arithmetic: the paper's numbers, maximality, and the parameters of built models."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from gqa_fairseq.architectures import SHAPES
from gqa_fairseq.parity.__main__ import main
from hypothesis import given
from hypothesis import strategies as st
from plugin_models import TINY, build, dictionary

from gqa_fairseq.parity import (
    PLACEMENTS,
    ParityRow,
    Placement,
    Shape,
    Widths,
    matched_widths,
    parameter_count,
    parity_table,
)

PAPER = Shape()


def test_paper_all() -> None:
    """Shazeer 2019, section 4.1 and table 1: d_ff 5440 for multi-query, and exactly its size."""
    rows = parity_table(PAPER, "all")
    assert [(r.num_kv_heads, r.encoder_d_ff, r.decoder_d_ff) for r in rows] == [
        (1, 5440, 5440),
        (2, 5248, 5248),
        (4, 4864, 4864),
        (8, 4096, 4096),
    ]
    assert [r.residual for r in rows] == [0, 0, 0, 0]


def test_paper_decoder() -> None:
    """Two of the decoder's three blocks pay for its FFN alone: 256 units of width a head."""
    rows = parity_table(PAPER, "decoder")
    assert [(r.encoder_d_ff, r.decoder_d_ff) for r in rows] == [
        (4096, 4096 + 256 * (8 - g)) for g in (1, 2, 4, 8)
    ]
    assert [r.residual for r in rows] == [0, 0, 0, 0]


def test_paper_counts_by_hand() -> None:
    """6 + 6 layers: 18 attentions of 4 C^2, 12 FFNs of 2 C F, norms of 2 C: 12 + 18 + 2."""
    by_hand = 18 * 4 * 1024**2 + 12 * 2 * 1024 * 4096 + 32 * 2 * 1024
    assert parameter_count(PAPER, 8, "all") == by_hand
    vocabulary = Shape(vocab_size=32_000, max_source_positions=256, max_target_positions=256)
    assert parameter_count(vocabulary, 8, "all") == by_hand + 1024 * (32_000 + 2 * 258)


shapes = st.builds(
    lambda kv, queries, dim, ff, enc, dec, bias, pre_norm: (
        Shape(
            d_model=kv * queries * dim,
            num_heads=kv * queries,
            mha_d_ff=ff,
            encoder_layers=enc,
            decoder_layers=dec,
            bias=bias,
            pre_norm=pre_norm,
        ),
        kv,
    ),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 64),
    st.integers(1, 4096),
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
)


@given(shapes, st.sampled_from(PLACEMENTS))
def test_d_ff_is_the_largest_that_does_not_exceed(
    shape_and_heads: tuple[Shape, int], placement: Placement
) -> None:
    shape, g = shape_and_heads
    widths = matched_widths(shape, g, placement)
    baseline = parameter_count(shape, shape.num_heads, placement)
    assert parameter_count(shape, g, placement, widths) <= baseline
    one_more = Widths(widths.encoder_d_ff + (placement == "all"), widths.decoder_d_ff + 1)
    assert parameter_count(shape, g, placement, one_more) > baseline
    assert widths.encoder_d_ff == (widths.decoder_d_ff if placement == "all" else shape.mha_d_ff)


@given(shapes, st.sampled_from(PLACEMENTS))
def test_table_of_any_shape(shape_and_heads: tuple[Shape, int], placement: Placement) -> None:
    shape, g = shape_and_heads
    rows = {row.num_kv_heads: row for row in parity_table(shape, placement)}
    assert g in rows
    assert list(rows) == sorted(rows)
    mha = rows[shape.num_heads]
    assert (mha.encoder_d_ff, mha.decoder_d_ff) == (shape.mha_d_ff, shape.mha_d_ff)
    assert mha.residual == 0
    assert all(row.residual == row.parameters - mha.parameters <= 0 for row in rows.values())


def shape_of(cfg: dict[str, Any], vocab_size: int) -> Shape:
    return Shape(
        d_model=cfg["encoder_embed_dim"],
        num_heads=cfg["encoder_attention_heads"],
        mha_d_ff=cfg["mha_ffn_embed_dim"],
        encoder_layers=cfg["encoder_layers"],
        decoder_layers=cfg["decoder_layers"],
        bias=cfg.get("use_bias", False),
        pre_norm=cfg["encoder_normalize_before"],
        vocab_size=vocab_size,
        max_source_positions=cfg["max_source_positions"] if cfg["encoder_learned_pos"] else 0,
        max_target_positions=cfg["max_target_positions"] if cfg["decoder_learned_pos"] else 0,
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("g", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": True},
        {"encoder_normalize_before": False, "decoder_normalize_before": False},
        {"encoder_layers": 1, "decoder_layers": 3, "mha_ffn_embed_dim": 47},
        {"encoder_learned_pos": False, "decoder_learned_pos": False, "use_bias": True},
        {"encoder_embed_dim": 64, "decoder_embed_dim": 64, "max_source_positions": 17},
        {"encoder_embed_dim": 24, "decoder_embed_dim": 24, "use_bias": True},
    ],
    ids=lambda options: "-".join(options) or "tiny",
)
def test_built_models_have_the_predicted_parameters(
    options: dict[str, Any], g: int, placement: Placement
) -> None:
    vocabulary = dictionary()
    model = build(vocabulary, num_kv_heads=g, attention_placement=placement, **options)
    shape = shape_of(TINY | options, len(vocabulary))
    assert sum(p.numel() for p in model.parameters()) == parameter_count(shape, g, placement)


@pytest.mark.parametrize("g", [1, 2, 4, 8])
def test_built_small_architecture_has_the_predicted_parameters(g: int) -> None:
    vocabulary = dictionary()
    positions = {"max_source_positions": 256, "max_target_positions": 256}
    options = SHAPES["small"] | positions
    model = build(vocabulary, num_kv_heads=g, **options)
    shape = shape_of(options, len(vocabulary))
    count = sum(p.numel() for p in model.parameters())
    assert count == parameter_count(shape, g, "all") == parameter_count(shape, 8, "all")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_variants_differ_in_attention_and_width_alone(placement: Placement) -> None:
    """Of all the parameters only K and V of the grouped attentions and the FFNs change shape."""
    vocabulary = dictionary()
    multi = dict(build(vocabulary, num_kv_heads=8).named_parameters())
    single = build(vocabulary, num_kv_heads=1, attention_placement=placement)
    changed = {name for name, p in single.named_parameters() if p.shape != multi.pop(name).shape}
    assert not multi
    sides = ("encoder", "decoder") if placement == "all" else ("decoder",)
    blocks = {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}
    assert changed == {
        f"{side}.layers.{layer}.{part}.weight"
        for side in sides
        for layer in (0, 1)
        for part in (
            "fc1",
            "fc2",
            *(f"{block}.{p}_proj" for block in blocks[side] for p in "kv"),
        )
    }


def test_command_line_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    rows = [ParityRow(**row) for row in json.loads(capsys.readouterr().out)]
    assert rows == parity_table(PAPER, "all")


def test_command_line_any_shape(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "--d-model 512 --mha-d-ff 2048 --num-heads 4 --bias --post-norm --placement decoder"
    assert main([*shape.split(), "--vocab-size", "100"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["G", "encoder", "d_ff", "decoder", "d_ff", "parameters", "residual"]
    expected = Shape(512, 4, 2048, bias=True, pre_norm=False, vocab_size=100)
    for line, row in zip(lines, parity_table(expected, "decoder"), strict=True):
        assert [int(cell.replace(",", "")) for cell in line.split()] == [
            row.num_kv_heads,
            row.encoder_d_ff,
            row.decoder_d_ff,
            row.parameters,
            row.residual,
        ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-heads", "7"], "d_model 1024 is not divisible by 7 heads"),
        (["--placement", "encoder"], "attention placement 'encoder' is unknown: choose one of"),
        (["--d-model", "0"], "must be at least 1"),
        (["--decoder-layers", "0"], "need at least one layer each"),
    ],
)
def test_command_line_errors(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_parity_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "gqa_fairseq.parity", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)[0]["encoder_d_ff"] == 5440
