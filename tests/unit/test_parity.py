"""Architectures: the paper's numbers, maximality, names and refusals; the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plugin_models import dictionary, task
from suite_configs import ROOT, compose_config

from gqa_fairseq.architecture import (
    FEED_FORWARDS,
    PLACEMENTS,
    Architecture,
    Heads,
    Placement,
    Variant,
    distinct_names,
)
from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel, architecture_of
from gqa_fairseq.parity import BASELINES, Baseline, is_variant, main, parity_table

PAPER = BASELINES["wmt_en_de"]


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
    assert [r.name for r in rows] == ["mqa", "gqa2", "gqa4", "mha"]


def test_paper_decoder() -> None:
    """Two of the decoder's three blocks pay for its FFN alone: 256 units of width a head."""
    rows = parity_table(PAPER, "decoder")
    assert [(r.encoder_d_ff, r.decoder_d_ff) for r in rows] == [
        (4096, 4096 + 256 * (8 - g)) for g in (1, 2, 4, 8)
    ]
    assert [r.residual for r in rows] == [0, 0, 0, 0]
    assert [r.name for r in rows] == ["mqa-dec", "gqa2-dec", "gqa4-dec", "mha"]


def test_paper_counts_by_hand() -> None:
    """6 + 6 layers: 18 attentions of 4 C^2, 12 FFNs of 2 C F, norms of 2 C: 12 + 18 + 2."""
    by_hand = 18 * 4 * 1024**2 + 12 * 2 * 1024 * 4096 + 32 * 2 * 1024
    assert PAPER.multi_head.parameters == by_hand
    vocabulary = replace(
        PAPER, vocab_size=32_000, max_source_positions=256, max_target_positions=256
    )
    assert vocabulary.multi_head.parameters == by_hand + 1024 * (32_000 + 2 * 258)


# Shazeer 2019, table 1: heads, d_k = d_v, d_ff, and whether decoder self-attention is local.
TABLE1 = {
    "mha": (8, 128, 8, 4096, None),
    "mqa": (8, 128, 1, 5440, None),
    "mha-w32": (8, 128, 8, 4096, 32),
    "mqa-w32": (8, 128, 1, 5440, 32),
    "mha-1x128": (1, 128, 1, 6784, None),
    "mha-2x64": (2, 64, 2, 6784, None),
    "mha-4x32": (4, 32, 4, 6784, None),
    "mha-8x16": (8, 16, 8, 6784, None),
}


@pytest.mark.parametrize("name", TABLE1)
def test_table_1_as_it_is_configured_and_built(name: str) -> None:
    """Every row has the paper's d_ff, and exactly 176,160,768 weights in its layers' matrices."""
    num_heads, head_dim, num_kv_heads, d_ff, window = TABLE1[name]
    asked = compose_config("experiment=wmt14", f"attention={name}").architecture
    assert asked.name == name
    assert asked.encoder_heads == asked.decoder_heads == Heads(num_heads, head_dim, num_kv_heads)
    assert (asked.encoder_d_ff, asked.decoder_d_ff, asked.window) == (d_ff, d_ff, window)
    assert asked.residual == 0
    vocabulary = dictionary()
    cfg = GroupedQueryTransformerConfig(**asked.fairseq_options())
    with torch.device("meta"):  # shapes alone: no row is drawn
        model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary))
    built = architecture_of(model, asked.name, asked.residual)
    assert replace(built, vocab_size=asked.vocab_size) == asked
    again = Architecture.from_fairseq_options(name, asked.fairseq_options(), asked.vocab_size)
    assert again == asked
    layers = (p for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2)
    assert sum(p.numel() for p in layers) == 176_160_768


def test_make_trains_table_1() -> None:
    command = ["make", "-n", "wmt14-table1", *(f"wmt14-{name}" for name in TABLE1)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    asked = re.findall(r"experiment=wmt14 .* attention=(\S+)", done.stdout)
    assert asked == [",".join(TABLE1), *TABLE1]


def test_kept_d_ff_is_named_and_has_fewer_parameters() -> None:
    """An MQA made from a trained MHA keeps its d_ff: it is not the MQA trained from scratch."""
    kept = PAPER.resolve(Variant(1, d_ff="kept"))
    assert kept.name == "mqa-ff4096"
    assert (kept.encoder_d_ff, kept.decoder_d_ff) == (4096, 4096)
    # 18 attentions lose 7 of 8 heads of K and V.
    assert kept.residual == -18 * 2 * 1024 * 7 * 128
    assert PAPER.resolve(Variant(2, "decoder", d_ff="kept")).name == "gqa2-dec-ff4096"
    assert PAPER.resolve(Variant(8, d_ff="kept")) == PAPER.multi_head


def test_mha_under_placement_decoder_is_mha() -> None:
    for num_kv_heads in (None, 8):
        assert PAPER.resolve(Variant(num_kv_heads, "decoder")) == PAPER.multi_head
    assert PAPER.multi_head.placement == "all"
    assert PAPER.multi_head.is_multi_head


def baselines_with_divisors() -> st.SearchStrategy[tuple[Baseline, int]]:
    """A baseline, and a number of key/value heads that divides its heads."""
    return st.builds(
        lambda kv, queries, dim, ff, enc, dec, bias, pre_norm: (
            Baseline(
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


@given(baselines_with_divisors(), st.sampled_from(PLACEMENTS))
def test_d_ff_is_the_largest_that_does_not_exceed(
    baseline_and_heads: tuple[Baseline, int], placement: Placement
) -> None:
    baseline, g = baseline_and_heads
    resolved = baseline.resolve(Variant(g, placement))
    most = baseline.multi_head.parameters
    assert resolved.parameters <= most
    assert resolved.residual == resolved.parameters - most
    # MHA has no placement: all its FFNs are the baseline's.
    in_encoder = placement == "all" or g == baseline.num_heads
    one_more = replace(
        resolved,
        encoder_d_ff=resolved.encoder_d_ff + in_encoder,
        decoder_d_ff=resolved.decoder_d_ff + 1,
    )
    assert one_more.parameters > most
    expected = resolved.decoder_d_ff if in_encoder else baseline.mha_d_ff
    assert resolved.encoder_d_ff == expected
    assert resolved.decoder_heads == replace(baseline.heads, num_kv_heads=g)
    assert resolved.encoder_heads == (resolved.decoder_heads if in_encoder else baseline.heads)


@given(baselines_with_divisors(), st.sampled_from(PLACEMENTS))
def test_table_of_any_shape(baseline_and_heads: tuple[Baseline, int], placement: Placement) -> None:
    baseline, g = baseline_and_heads
    rows = {row.num_kv_heads: row for row in parity_table(baseline, placement)}
    assert g in rows
    assert list(rows) == sorted(rows)
    mha = rows[baseline.num_heads]
    assert mha == baseline.multi_head
    assert (mha.encoder_d_ff, mha.decoder_d_ff) == (baseline.mha_d_ff, baseline.mha_d_ff)
    assert mha.residual == 0
    assert all(row.residual == row.parameters - mha.parameters <= 0 for row in rows.values())


def resolved(baseline: Baseline, variant: Variant) -> Architecture | None:
    """None where heads are so wide that no d_ff makes up for them."""
    try:
        return baseline.resolve(variant)
    except ValueError as error:
        if "so wide that no d_ff keeps" in str(error):
            return None
        raise


@given(
    baselines_with_divisors(), st.integers(1, 12), st.integers(1, 65), st.sampled_from(PLACEMENTS)
)
def test_other_heads_are_paid_for_exactly(
    baseline_and_heads: tuple[Baseline, int], kv: int, head_dim: int, placement: Placement
) -> None:
    """The largest d_ff again; where wider heads cost more, d_ff shrinks, down to 1."""
    baseline, queries = baseline_and_heads
    heads = Heads(kv * queries, head_dim, kv)
    variant = Variant(kv, placement, heads.num_heads, head_dim)
    kept, matched = (
        resolved(baseline, replace(variant, d_ff=d_ff)) for d_ff in ("kept", "matched")
    )
    assert kept is not None
    most = baseline.multi_head.parameters
    assert kept.residual == kept.parameters - most
    assert (kept.encoder_d_ff, kept.decoder_d_ff) == (baseline.mha_d_ff, baseline.mha_d_ff)
    in_encoder = placement == "all"
    for made in filter(None, (kept, matched)):
        assert made.decoder_heads == heads
        assert made.encoder_heads == (heads if in_encoder else baseline.heads)
        assert made.placement == placement or made.encoder_heads == heads
    thinnest = replace(
        kept,
        encoder_d_ff=1 if in_encoder else kept.encoder_d_ff,
        decoder_d_ff=1,
    )
    assert (matched is None) == (thinnest.parameters > most)
    if matched is not None:
        assert matched.residual == matched.parameters - most <= 0
        grows_in_encoder = matched.encoder_d_ff == matched.decoder_d_ff and in_encoder
        assert grows_in_encoder or matched.encoder_d_ff == baseline.mha_d_ff
        one_more = replace(
            matched,
            encoder_d_ff=matched.encoder_d_ff + grows_in_encoder,
            decoder_d_ff=matched.decoder_d_ff + 1,
        )
        assert one_more.parameters > most


@settings(deadline=None, max_examples=30)
@given(baselines_with_divisors(), st.integers(1, 9), st.integers(1, 65))
@example(
    (Baseline(d_model=2, num_heads=2, mha_d_ff=1, encoder_layers=1, decoder_layers=1), 1), 1, 2
)
def test_two_that_differ_never_share_a_name(
    baseline_and_heads: tuple[Baseline, int], heads: int, head_dim: int
) -> None:
    """All variants of a baseline: equal names and equal architectures are the same thing."""
    baseline, _ = baseline_and_heads

    def divisors(number: int) -> list[int]:
        return [g for g in range(1, number + 1) if number % g == 0]

    variants = [
        Variant(g, placement, num_heads, width, window, d_ff)
        for num_heads in {None, 1, heads}
        for g in (None, *divisors(num_heads or baseline.num_heads))
        for width in {None, head_dim}
        for placement in PLACEMENTS
        for window in (None, 1, 32)
        for d_ff in FEED_FORWARDS
    ]
    made = {architecture for v in variants if (architecture := resolved(baseline, v))}
    assert baseline.multi_head in made
    assert len({architecture.name for architecture in made}) == len(made)
    assert all(is_variant(architecture, baseline.multi_head) for architecture in made)


def test_which_architectures_are_variants_of_which() -> None:
    sixteen = replace(PAPER, num_heads=16)
    for architecture in (PAPER.resolve(Variant(1)), PAPER.resolve(Variant(window=32))):
        assert is_variant(architecture, PAPER.multi_head)
        assert not is_variant(architecture, sixteen.multi_head)
        assert not is_variant(PAPER.multi_head, architecture)
    wide = PAPER.resolve(Variant(num_heads=16, head_dim=64))
    assert (wide.name, wide.is_multi_head) == ("mha-16x64", True)
    assert not is_variant(PAPER.resolve(Variant(1)), wide)
    assert not is_variant(wide, replace(PAPER, mha_d_ff=8).multi_head)


@pytest.mark.parametrize(
    ("variant", "is_fairseqs"),
    [
        (Variant(), True),
        (Variant(1), False),
        (Variant(window=32), False),
        (Variant(num_heads=8, head_dim=16), False),
        (Variant(num_heads=16, head_dim=64), True),
        (Variant(num_heads=16, head_dim=64, placement="decoder"), False),
    ],
)
def test_what_fairseqs_own_transformer_is(variant: Variant, is_fairseqs: bool) -> None:
    assert PAPER.resolve(variant).is_multi_head == is_fairseqs


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant(4, num_heads=16, head_dim=64), "gqa4-16x64"),
        (Variant(1, num_heads=4, head_dim=32, window=8), "mqa-4x32-w8"),
        (Variant(num_heads=1), "mha-1x128"),
        (Variant(num_heads=4, placement="decoder"), "mha-4x128-dec"),
        (Variant(2, "decoder", head_dim=16, window=1, d_ff="kept"), "gqa2-8x16-dec-w1-ff4096"),
        (Variant(8, "decoder", window=32), "mha-w32"),
        (Variant(window=32, d_ff="kept"), "mha-w32"),
    ],
)
def test_names_say_what_is_not_the_baselines(variant: Variant, name: str) -> None:
    assert PAPER.resolve(variant).name == name


def test_placement_decoder_leaves_the_encoder_as_it_is() -> None:
    """Four heads of 32 in the decoder: its 12 attentions lose 7 of 8, its 6 FFNs gain all."""
    made = PAPER.resolve(Variant(placement="decoder", num_heads=4, head_dim=32))
    assert made.encoder_heads == PAPER.heads
    assert made.encoder_d_ff == 4096
    assert made.decoder_d_ff == 4096 + 12 * 4 * 1024 * 7 * 128 // (6 * 2 * 1024) == 7680
    assert made.residual == 0
    assert made.placement == "decoder"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant(3), "num_kv_heads 3 does not divide 8 attention heads: choose one of 1, 2, 4, 8"),
        (Variant(0), "num_kv_heads 0 does not divide"),
        (Variant(placement="encoder"), "'encoder' is unknown: choose one of all, decoder"),  # type: ignore[arg-type]
        (Variant(d_ff="wide"), "d_ff 'wide' is unknown: choose matched or kept"),  # type: ignore[arg-type]
        (Variant(8, num_heads=4), "num_kv_heads 8 does not divide 4 .*: choose one of 1, 2, 4"),
        (Variant(num_heads=0), "num_heads 0 must be at least 1"),
        (Variant(head_dim=0), "head_dim 0 must be at least 1"),
        (Variant(window=0), "window 0 must be at least 1, the current position; unset: all"),
        (
            Variant(num_heads=64),
            "head_dim 128 of 64 heads is so wide that no d_ff keeps the parameter",
        ),
    ],
    ids=["heads", "none", "placement", "d_ff", "own", "num_heads", "head_dim", "window", "wide"],
)
def test_refusals_are_one_line(variant: Variant, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        PAPER.resolve(variant)
    assert "\n" not in str(refused.value)


def test_the_baselines_own_numbers_may_be_said() -> None:
    spelled = Variant(4, num_heads=8, head_dim=128)
    assert PAPER.resolve(spelled) == PAPER.resolve(Variant(4))


OTHER_BASELINES: dict[str, Any] = {
    "d_model": 512,
    "num_heads": 4,
    "mha_d_ff": 2048,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "bias": True,
    "pre_norm": False,
    "vocab_size": 40,
    "max_source_positions": 100,
    "max_target_positions": 100,
}


@pytest.mark.parametrize("field", OTHER_BASELINES)
def test_names_of_several_baselines_are_distinct(field: str) -> None:
    other = replace(PAPER, **{field: OTHER_BASELINES[field]})
    found = [b.resolve(Variant(g)) for b in (PAPER, other) for g in (b.num_heads, 2, 1)]
    names = distinct_names([*found, *found])
    assert list(names) == found
    assert len(set(names.values())) == len(found)


def test_distinct_names_say_no_more_than_it_takes() -> None:
    narrow = replace(PAPER, d_model=512, mha_d_ff=2048)
    alone = [PAPER.resolve(Variant(g)) for g in (8, 1)]
    assert list(distinct_names(alone).values()) == ["mha", "mqa"]
    # One of another baseline, whose name no other has, needs no mark either.
    assert list(distinct_names([alone[0], narrow.resolve(Variant(2))]).values()) == ["mha", "gqa2"]
    beside = distinct_names([*alone, narrow.multi_head])
    assert list(beside.values()) == ["mha-d1024", "mqa-d1024", "mha-d512"]
    shallow = replace(narrow, encoder_layers=3)
    three = distinct_names([PAPER.multi_head, narrow.multi_head, shallow.multi_head])
    assert list(three.values()) == [
        "mha-d1024-layers6+6",
        "mha-d512-layers6+6",
        "mha-d512-layers3+6",
    ]


def test_command_line_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    columns = ("num_kv_heads", "encoder_d_ff", "decoder_d_ff", "parameters", "residual")
    assert json.loads(capsys.readouterr().out) == [
        {column: getattr(row, column) for column in columns} for row in parity_table(PAPER, "all")
    ]


def test_command_line_other_heads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--query-heads", "4", "--head-dim", "32", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["num_kv_heads"] for row in rows] == [1, 2, 4]
    assert rows[-1]["decoder_d_ff"] == 6784
    assert [row["residual"] for row in rows] == [0, 0, 0]


def test_command_line_any_shape(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "--d-model 512 --mha-d-ff 2048 --num-heads 4 --bias --post-norm --placement decoder"
    assert main([*shape.split(), "--vocab-size", "100"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["G", "encoder", "d_ff", "decoder", "d_ff", "parameters", "residual"]
    expected = Baseline(512, 4, 2048, bias=True, pre_norm=False, vocab_size=100)
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
        (["--query-heads", "0"], "num_heads 0 must be at least 1"),
        (["--head-dim", "4096"], "head_dim 4096 of 8 heads is so wide that no d_ff keeps"),
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


def test_parity_module_runs_as_a_command_that_prints_nothing_else() -> None:
    command = [sys.executable, "-m", "gqa_fairseq.parity", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)[0]["encoder_d_ff"] == 5440
    assert not result.stderr


@pytest.mark.parametrize("module", ["parity", "architecture", "costs", "intensity", "roofline"])
def test_arithmetic_needs_nothing_but_python(module: str) -> None:
    """In a process of its own: all that is imported is Python's, and the plugin's arithmetic."""
    script = (
        f"import sys, gqa_fairseq.{module}; "
        "names = {name.split('.')[0] for name in sys.modules}; "
        "print(*sorted(names & {'torch', 'fairseq', 'numpy', 'omegaconf'}), "
        "*sorted(name for name in sys.modules if name.startswith('gqa_fairseq.')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    plain = ("architecture", "parity", "costs", "intensity", "roofline")
    arithmetic = {f"gqa_fairseq.{name}" for name in plain}
    assert f"gqa_fairseq.{module}" in result.stdout.split()
    assert set(result.stdout.split()) <= arithmetic
