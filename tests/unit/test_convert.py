"""Whole models with fewer key/value heads: what loses nothing, what changes and what stays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from plugin_models import HEADS, dictionary, use_float64_softmax
from small_checkpoints import SIDES, attentions, difference, loaded, ours, stock
from torch import Tensor, nn

from gqa_fairseq.architecture import CONVERSION_METHODS
from gqa_fairseq.checkpoints.conversion import convert, convert_attention

MERGING = [method for method in CONVERSION_METHODS if method != "random"]


@pytest.fixture
def vocabulary() -> Dictionary:
    return dictionary()


# Without loss.


@pytest.mark.parametrize("method", CONVERSION_METHODS)
def test_as_many_heads_is_the_identity(method: Any, vocabulary: Dictionary) -> None:
    for (_, state), heads in (
        (ours(vocabulary), HEADS),
        (ours(vocabulary, num_kv_heads=2, use_bias=True), 2),
        (stock(vocabulary), HEADS),
    ):
        converted = convert(state, heads, method)["model"]
        assert list(converted) == list(state["model"])
        assert all(torch.equal(converted[name], w) for name, w in state["model"].items())


@pytest.mark.parametrize(
    ("pre_norm_in", "learned_in", "sharing", "more"),
    [
        ("encoder", "decoder", "all", {}),
        ("decoder", "encoder", "decoder", {"layernorm_embedding": True}),
        ("encoder", "encoder", "none", {"no_scale_embedding": True}),
        ("decoder", "decoder", "none", {"no_token_positional_embeddings": True}),
    ],
)
def test_a_stock_model_is_the_same_model_in_the_plugin(
    pre_norm_in: str,
    learned_in: str,
    sharing: str,
    more: dict[str, Any],
    vocabulary: Dictionary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_float64_softmax(monkeypatch)
    model, state = stock(
        vocabulary,
        **{f"{side}_normalize_before": side == pre_norm_in for side in SIDES},
        **{f"{side}_learned_pos": side == learned_in for side in SIDES},
        share_all_embeddings=sharing == "all",
        share_decoder_input_output_embed=sharing != "none",
        activation_fn="gelu",
        **more,
    )
    same = loaded(convert(state, HEADS, "mean"), vocabulary)
    assert difference(same, model, vocabulary) < 1e-10
    mqa = loaded(convert(state, 1, "svd-product"), vocabulary)
    assert {a.num_kv_heads for a in attentions(mqa).values()} == {1}
    assert difference(mqa, model, vocabulary) > 0.01


@pytest.mark.parametrize("method", ["svd", "svd-product"])
@pytest.mark.parametrize("options", [{}, {"use_bias": True}, {"use_bias": True, "num_kv_heads": 2}])
def test_heads_that_are_turned_and_not_merged_are_the_parent(
    method: str, options: dict[str, Any], vocabulary: Dictionary
) -> None:
    model, state = ours(vocabulary, **options)
    weights = dict(state["model"])
    for name, each in attentions(model).items():
        convert_attention(
            weights, name, each.num_heads, each.num_kv_heads, each.num_kv_heads, method
        )
        assert not torch.allclose(weights[f"{name}.k_proj.weight"], each.k_proj.weight, atol=0.1)
    turned = loaded({"cfg": state["cfg"], "model": weights}, vocabulary)
    assert difference(turned, model, vocabulary) < 1e-10


@pytest.mark.parametrize("method", MERGING)
def test_a_model_whose_neighbours_are_the_same_head_loses_nothing(
    method: Any, vocabulary: Dictionary
) -> None:
    """Contiguous groups: a GQA-2 model whose heads are repeated is the multi-head model."""
    small, state = ours(vocabulary, num_kv_heads=2, use_bias=True, encoder_ffn_embed_dim=48,
                        decoder_ffn_embed_dim=48)  # fmt: skip
    parent = repeated(small, state, lambda head, _: head)
    assert_same_model(parent, convert(parent, 2, method), small, vocabulary)


@pytest.mark.parametrize("method", ["svd", "svd-product"])
def test_a_model_whose_neighbours_share_a_space_loses_nothing(
    method: Any, vocabulary: Dictionary
) -> None:
    """Each head is the shared one under a map of its own: pooling loses, the best head does not."""
    small, state = ours(vocabulary, num_kv_heads=2, use_bias=True, encoder_ffn_embed_dim=48,
                        decoder_ffn_embed_dim=48)  # fmt: skip
    generator = torch.Generator().manual_seed(5)

    def under_a_map(head: Tensor, _: int) -> Tensor:
        size = (len(head), len(head))
        return torch.randn(size, generator=generator, dtype=head.dtype) @ head

    parent = repeated(small, state, under_a_map)
    assert_same_model(parent, convert(parent, 2, method), None, vocabulary)
    pooled = loaded(convert(parent, 2, "mean"), vocabulary)
    assert difference(pooled, loaded(parent, vocabulary), vocabulary) > 0.1


def repeated(small: nn.Module, state: dict[str, Any], change: Any) -> dict[str, Any]:
    """The multi-head checkpoint in which each head of `small` stands for all that read it."""
    weights = dict(state["model"])
    for name, each in attentions(small).items():
        for part in ("k_proj", "v_proj"):
            rows = torch.cat(
                [weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"][:, None]], 1
            )
            heads = rows.unflatten(0, (each.num_kv_heads, -1))
            many = torch.cat([change(heads[h // each.queries_per_kv], h) for h in range(HEADS)])
            weights[f"{name}.{part}.weight"] = many[:, :-1].clone()
            weights[f"{name}.{part}.bias"] = many[:, -1].clone()
    options = state["cfg"]["model"] | {"num_kv_heads": HEADS}
    return state | {"model": weights, "cfg": state["cfg"] | {"model": options}}


def assert_same_model(
    parent: dict[str, Any],
    converted: dict[str, Any],
    small: nn.Module | None,
    vocabulary: Dictionary,
) -> None:
    model, child = loaded(parent, vocabulary), loaded(converted, vocabulary)
    assert {a.num_kv_heads for a in attentions(model).values()} == {HEADS}
    assert {a.num_kv_heads for a in attentions(child).values()} == {2}
    assert difference(child, model, vocabulary) < 1e-10
    if small is not None:
        assert difference(small, model, vocabulary) < 1e-10


# What changes and what stays.


def test_only_attention_changes(vocabulary: Dictionary) -> None:
    _, state = ours(vocabulary, use_bias=True)
    before = {name: weight.clone() for name, weight in state["model"].items()}
    for method in CONVERSION_METHODS:
        converted = convert(state, 2, method)["model"]
        changed = {n for n, w in converted.items() if not torch.equal(w, before[n])}
        parts = {tuple(name.split(".")[-3:]) for name in changed}
        kinds = ("self_attn", "encoder_attn")
        own = ("k_proj", "v_proj")
        expected = {(k, p, w) for k in kinds for p in own for w in ("weight", "bias")}
        if method.startswith("svd"):
            expected |= {(k, "q_proj", w) for k in kinds for w in ("weight", "bias")}
            expected |= {(k, "out_proj", "weight") for k in kinds}
        assert parts == expected
        assert len(changed) == len(expected) // 2 * 3 * 2  # 3 attentions in each of 2 layers
        assert all(converted[name].dtype == before[name].dtype for name in converted)
    assert all(torch.equal(weight, before[name]) for name, weight in state["model"].items())


def test_mean_and_first_of_a_layer_by_hand(vocabulary: Dictionary) -> None:
    """8 heads of 4 rows; of GQA-2, head 0 is made of rows 0 to 15 and head 1 of 16 to 31."""
    _, state = ours(vocabulary, use_bias=True)
    name = "decoder.layers.1.encoder_attn.v_proj"
    for part in ("weight", "bias"):
        rows = state["model"][f"{name}.{part}"]
        mean = convert(state, 2, "mean")["model"][f"{name}.{part}"]
        first = convert(state, 2, "first")["model"][f"{name}.{part}"]
        for g, d in ((0, 0), (0, 3), (1, 1)):
            own = [rows[16 * g + 4 * j + d] for j in range(4)]
            assert torch.equal(first[4 * g + d], own[0])
            torch.testing.assert_close(mean[4 * g + d], sum(own) / 4, rtol=1e-14, atol=1e-15)


def test_placement_decoder_leaves_the_encoder(vocabulary: Dictionary) -> None:
    _, state = ours(vocabulary)
    converted = convert(state, 2, "svd", "decoder")
    model = loaded(converted, vocabulary)
    heads = {name.split(".")[0]: a.num_kv_heads for name, a in attentions(model).items()}
    assert heads == {"encoder": HEADS, "decoder": 2}
    encoder = {n: w for n, w in state["model"].items() if n.startswith("encoder.")}
    assert all(torch.equal(converted["model"][name], weight) for name, weight in encoder.items())
    both = convert(state, 2, "svd")["model"]
    decoder = [n for n in both if n.startswith("decoder.")]
    assert all(torch.equal(converted["model"][name], both[name]) for name in decoder)


def test_fewer_heads_are_made_in_steps(vocabulary: Dictionary) -> None:
    """From G to any divisor of G; means of means are means."""
    _, state = ours(vocabulary, use_bias=True)
    steps = convert(convert(state, 4, "mean", "decoder"), 2, "mean", "decoder")
    steps = convert(steps, 1, "mean")
    at_once = convert(state, 1, "mean")
    assert {a.num_kv_heads for a in attentions(loaded(steps, vocabulary)).values()} == {1}
    for name, weight in at_once["model"].items():
        torch.testing.assert_close(steps["model"][name], weight, rtol=1e-12, atol=1e-14)


def test_random_is_a_new_layer_and_follows_the_seed(vocabulary: Dictionary) -> None:
    """GroupedQueryAttention's range: sqrt(6 / 2C) / sqrt(2), here of C = 32."""
    _, state = ours(vocabulary, use_bias=True)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, same, other = (convert(state, 4, "random", seed=seed)["model"] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)  # nobody else's draws change
    drawn = []
    for name in one:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            assert torch.equal(one[name], same[name])
            assert not torch.equal(one[name], other[name])
            assert 0.9 < one[name].abs().max() / ((6 / 64) ** 0.5 / 2**0.5) <= 1
            drawn.append(one[name])
            assert not one[name.replace("weight", "bias")].any()
    assert len(drawn) == 2 * 6
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(drawn))


def test_training_goes_on_where_it_was_and_adam_starts_anew(vocabulary: Dictionary) -> None:
    _, state = ours(vocabulary)
    converted = convert(state, 1, "svd-product")
    for kept in ("optimizer_history", "extra_state", "criterion", "task_state", "args"):
        assert converted[kept] == state[kept]
    group = state["last_optimizer_state"]["param_groups"][0]
    assert converted["last_optimizer_state"] == {
        "state": {},
        "param_groups": [{key: value for key, value in group.items() if key != "step"}],
        "loss_scale": 8.0,
    }
    assert group["step"] == 7
    others = {key: value for key, value in state["cfg"].items() if key != "model"}
    assert {key: converted["cfg"][key] for key in others} == others


def test_the_mean_of_weights_starts_at_the_new_ones(vocabulary: Dictionary) -> None:
    _, state = ours(vocabulary)
    state["extra_state"] |= {"ema": state["model"], "ema_fp32_params": state["model"]}
    converted = convert(state, 1, "mean")
    assert converted["extra_state"].keys() == {"train_iterator", "best", "ema"}
    for name, weight in converted["model"].items():
        assert torch.equal(converted["extra_state"]["ema"][name], weight)


@pytest.mark.parametrize("is_flat", [False, True])
def test_an_average_without_an_optimizer_gets_one(is_flat: bool, vocabulary: Dictionary) -> None:
    """fairseq restores the number of updates with an optimizer alone."""
    model, state = ours(vocabulary)
    common = {"fp16": is_flat, "memory_efficient_fp16": False, "fp16_no_flatten_grads": False}
    cfg = state["cfg"] | {"common": common}
    converted = convert(state | {"last_optimizer_state": None, "cfg": cfg}, 1, "mean")
    optimizer = converted["last_optimizer_state"]
    (group,) = optimizer["param_groups"]
    assert optimizer["state"] == {}
    assert len(group["params"]) == (1 if is_flat else len(list(model.parameters())))
    settings = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert settings == {"lr": 0.003, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.01}


def test_weights_keep_their_type(vocabulary: Dictionary) -> None:
    _, state = ours(vocabulary, use_bias=True)
    exact = convert(state, 2, "svd-product")["model"]
    half = {name: weight.half() for name, weight in state["model"].items()}
    converted = convert(state | {"model": half}, 2, "mean")["model"]
    assert {weight.dtype for weight in converted.values()} == {torch.float16}
    single = {name: weight.float() for name, weight in state["model"].items()}
    converted = convert(state | {"model": single}, 2, "svd-product")["model"]
    for name, weight in exact.items():  # computed in float64 whatever the type
        assert (converted[name].abs() - weight.abs()).abs().max() < 1e-5
