"""Models that are built are the architecture that was resolved; options that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY
from plugin_models import TINY, build, dictionary, task

from gqa_fairseq.architecture import FEED_FORWARDS, PLACEMENTS, Heads, Placement, Variant
from gqa_fairseq.models.config import GroupedQueryTransformerConfig, resolve
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel, architecture_of
from gqa_fairseq.parity import BASELINES, Baseline

PAPER = BASELINES["wmt_en_de"]


def baseline_of(options: dict[str, Any], vocab_size: int) -> Baseline:
    return Baseline(
        d_model=options["encoder_embed_dim"],
        num_heads=options["encoder_attention_heads"],
        mha_d_ff=options["mha_ffn_embed_dim"],
        encoder_layers=options["encoder_layers"],
        decoder_layers=options["decoder_layers"],
        bias=options.get("use_bias", False),
        pre_norm=options["encoder_normalize_before"],
        vocab_size=vocab_size,
        max_source_positions=options["max_source_positions"]
        if options["encoder_learned_pos"]
        else 0,
        max_target_positions=options["max_target_positions"]
        if options["decoder_learned_pos"]
        else 0,
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
def test_built_models_are_the_predicted_architecture(
    options: dict[str, Any], g: int, placement: Placement
) -> None:
    vocabulary = dictionary()
    model = build(vocabulary, num_kv_heads=g, attention_placement=placement, **options)
    asked = baseline_of(TINY | options, len(vocabulary)).resolve(Variant(g, placement))
    assert sum(p.numel() for p in model.parameters()) == asked.parameters
    assert architecture_of(model, asked.name, asked.residual) == asked


OTHER_HEADS: list[dict[str, Any]] = [
    {},
    {"window": 3},
    {"num_heads": 4},
    {"head_dim": 5},
    {"num_heads": 6, "head_dim": 3, "window": 3},
]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("d_ff", FEED_FORWARDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("other", OTHER_HEADS, ids=lambda other: "-".join(other) or "gqa2")
def test_a_model_built_from_an_architectures_options_is_that_architecture(
    d_ff: Any, placement: Placement, bias: bool, other: dict[str, Any]
) -> None:
    vocabulary = dictionary()
    baseline = baseline_of(TINY | {"use_bias": bias}, len(vocabulary))
    asked = baseline.resolve(Variant(2, placement, **other, d_ff=d_ff))
    cfg = GroupedQueryTransformerConfig(**asked.fairseq_options())
    model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary))
    assert cfg.mha_ffn_embed_dim is None
    assert architecture_of(model, asked.name, asked.residual) == asked


def test_given_d_ff_are_taken_and_nothing_is_derived() -> None:
    cfg = GroupedQueryTransformerConfig(
        encoder_ffn_embed_dim=7, decoder_ffn_embed_dim=9, num_kv_heads=1
    )
    resolve(cfg)
    assert (cfg.encoder_ffn_embed_dim, cfg.decoder_ffn_embed_dim) == (7, 9)
    assert cfg.mha_ffn_embed_dim is None
    again = replace(cfg)
    resolve(again)
    assert again == cfg
    one = GroupedQueryTransformerConfig(encoder_ffn_embed_dim=7, num_kv_heads=1)
    resolve(one)
    assert (one.encoder_ffn_embed_dim, one.decoder_ffn_embed_dim) == (7, 5440)
    assert one.mha_ffn_embed_dim == 4096


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("options", "variant"),
    [
        ({"decoder_window": 32}, Variant(1, window=32)),
        ({"attention_heads": 4, "head_dim": 32, "num_kv_heads": 4}, Variant(None, num_heads=4)),
        ({"head_dim": 16, "num_kv_heads": 2}, Variant(2, head_dim=16)),
    ],
    ids=["window", "heads", "width"],
)
def test_a_named_architecture_takes_other_heads(
    options: dict[str, Any], variant: Variant, placement: Placement
) -> None:
    """Both d_ff are then derived from the options as they are from the variant."""
    sides = ("decoder", "encoder") if placement == "all" else ("decoder",)
    given = {
        name: value
        for key, value in options.items()
        for name in (
            [f"{s}_{key}" for s in sides] if key in ("attention_heads", "head_dim") else [key]
        )
    }
    cfg = GroupedQueryTransformerConfig(attention_placement=placement, **given)
    ARCH_CONFIG_REGISTRY["mqa_transformer_wmt_en_de"](cfg)
    resolve(cfg)
    head_dim = options.get("head_dim", 128)
    asked = PAPER.resolve(replace(variant, head_dim=head_dim, placement=placement))
    expected = asked.fairseq_options()
    assert {key: getattr(cfg, key) for key in expected} == expected


def test_the_two_sides_may_have_different_heads() -> None:
    """Multi-head on both sides as in fairseq, and nothing to make up for: H * D is the width."""
    vocabulary = dictionary()
    model = build(vocabulary, encoder_attention_heads=4, decoder_attention_heads=2)
    heads = [side.layers[0].self_attn for side in (model.encoder, model.decoder)]
    assert [(h.num_heads, h.num_kv_heads, h.head_dim) for h in heads] == [(4, 4, 8), (2, 2, 16)]
    assert [side.layers[0].fc1.out_features for side in (model.encoder, model.decoder)] == [48, 48]
    grouped = build(
        vocabulary, num_kv_heads=2, decoder_head_dim=4, decoder_attention_heads=4, decoder_window=3
    )
    for each in (model, grouped):
        built = architecture_of(each, "built")
        options = GroupedQueryTransformerConfig(**built.fairseq_options())
        again = GroupedQueryTransformerModel.build_model(options, task(vocabulary))
        assert architecture_of(again, "built") == built
    assert built.encoder_heads == Heads(8, 4, 2)
    assert built.decoder_heads == Heads(4, 4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_window": 0}, "window 0 must be at least 1"),
        ({"encoder_head_dim": 0}, "head_dim 0 must be at least 1"),
        ({"decoder_attention_heads": 0}, "not divisible by 0 heads"),
        ({"decoder_head_dim": 4096}, "head_dim 4096 of 8 heads is so wide that no d_ff keeps"),
    ],
)
def test_options_that_cannot_be(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(GroupedQueryTransformerConfig(**options))


@pytest.mark.parametrize("d_ff", [None, 64])
def test_heads_are_checked_whether_d_ff_are_given_or_not(d_ff: int | None) -> None:
    cfg = GroupedQueryTransformerConfig(
        num_kv_heads=3, encoder_ffn_embed_dim=d_ff, decoder_ffn_embed_dim=d_ff
    )
    with pytest.raises(ValueError, match="num_kv_heads 3 does not divide"):
        resolve(cfg)


@pytest.mark.parametrize(
    ("options", "embeddings"),
    [
        ({"share_all_embeddings": True}, 1),
        ({"share_all_embeddings": False, "share_decoder_input_output_embed": True}, 2),
        ({"share_all_embeddings": False}, 3),
    ],
)
def test_matrices_of_embeddings_are_counted(options: dict[str, Any], embeddings: int) -> None:
    model = build(dictionary(), num_kv_heads=2, **options)
    built = architecture_of(model, "gqa2")
    assert built.embeddings == embeddings
    assert built.parameters == sum(p.numel() for p in model.parameters())
    shared = {name: True for name, value in options.items() if value}
    found = {name: value for name, value in built.fairseq_options().items() if "share" in name}
    assert found == shared


def test_a_model_that_no_architecture_describes_is_refused() -> None:
    model = build(dictionary(), num_kv_heads=2, decoder_normalize_before=False)
    with pytest.raises(ValueError, match="parameters where its widths make") as refused:
        architecture_of(model, "gqa2")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("g", [1, 2, 4, 8])
def test_built_small_architecture_has_the_predicted_parameters(g: int) -> None:
    vocabulary = dictionary()
    positions = {"max_source_positions": 256, "max_target_positions": 256}
    baseline = replace(BASELINES["small"], vocab_size=len(vocabulary), **positions)
    asked = baseline.resolve(Variant(g))
    cfg = GroupedQueryTransformerConfig(**positions)
    ARCH_CONFIG_REGISTRY[f"{asked.name}_transformer_small"](cfg)
    model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary))
    assert architecture_of(model, asked.name, asked.residual) == asked
    count = sum(p.numel() for p in model.parameters())
    assert count == asked.parameters == baseline.multi_head.parameters


NAMES = [f"{v}_transformer_{s}" for v in ("mha", "gqa4", "gqa2", "mqa") for s in BASELINES]


def test_named_architectures() -> None:
    assert {*NAMES, "gqa_transformer"} == set(ARCH_MODEL_INV_REGISTRY["gqa_transformer"])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_fixes_the_shape_and_leaves_d_ff_to_be_derived(name: str) -> None:
    """A user's own number of key/value heads gets the d_ff that goes with it."""
    variant, _, size = name.split("_", 2)
    baseline = BASELINES[size]
    own_heads = {"mha": 8, "gqa4": 4, "gqa2": 2, "mqa": 1}[variant]
    asked_for: list[dict[str, Any]] = [{}, {"num_kv_heads": 2}, {"attention_placement": "decoder"}]
    for options in asked_for:
        cfg = GroupedQueryTransformerConfig(**options)
        ARCH_CONFIG_REGISTRY[name](cfg)
        resolve(cfg)
        placement = options.get("attention_placement", "all")
        asked = baseline.resolve(Variant(options.get("num_kv_heads", own_heads), placement))
        # MHA is the same wherever heads are changed; the option stays as it was given.
        expected = asked.fairseq_options() | {"attention_placement": placement}
        assert {key: getattr(cfg, key) for key in expected} == expected


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
