"""Whole checkpoints with fewer key/value heads: what changes, what stays, and what is refused."""

from __future__ import annotations

import copy
import itertools
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary, data_utils
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer import TransformerModel, TransformerModelBase
from omegaconf import OmegaConf
from plugin_models import (
    HEADS,
    TINY,
    dictionary,
    random_lines,
    randomize,
    source_batch,
    task,
    use_float64_softmax,
)
from torch import Tensor, nn

from gqa_fairseq.architecture import CONVERSION_METHODS
from gqa_fairseq.attention import GroupedQueryAttention
from gqa_fairseq.checkpoints.convert import (
    convert,
    convert_attention,
    fairseq_train_options,
    main,
)
from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel

SIDES = ("encoder", "decoder")
MERGING = [method for method in CONVERSION_METHODS if method != "random"]


@pytest.fixture
def vocabulary() -> Dictionary:
    return dictionary()


def state_of(model: nn.Module, options: Any, **changes: Any) -> dict[str, Any]:
    """What fairseq saves of a training that made 7 updates, with the parts that matter here."""
    moments = {
        i: {"step": 7, "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)}
        for i, p in enumerate(model.parameters())
    }
    group = {"lr": 0.003, "betas": (0.9, 0.98), "eps": 1e-8, "params": list(moments), "step": 7}
    return {
        "args": None,
        "cfg": {
            "_name": None,
            "common": {"fp16": False},
            "model": options,
            "task": {"_name": "translation", "data": "there"},
            "optimizer": {"_name": "adam", "lr": [0.003], "adam_betas": "(0.9, 0.98)",
                          "adam_eps": 1e-8, "weight_decay": 0.01, "tpu": False},
        },
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [{"num_updates": 7, "optimizer_name": "FairseqAdam",
                               "criterion_name": "Loss", "lr_scheduler_state": {"best": 3.5}}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}, "best": 3.25},
        "last_optimizer_state": {"state": moments, "param_groups": [group], "loss_scale": 8.0},
    } | changes  # fmt: skip


def ours(vocabulary: Dictionary, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model of the plugin in float64 and its checkpoint."""
    torch.manual_seed(0)
    cfg = GroupedQueryTransformerConfig(**(TINY | options))
    model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary)).eval().double()
    randomize(model)
    return model, state_of(model, asdict(cfg) | {"_name": "gqa_transformer"})


STOCK = {
    **{name: value for name, value in TINY.items() if name != "mha_ffn_embed_dim"},
    "encoder_ffn_embed_dim": 48,
    "decoder_ffn_embed_dim": 40,
    "arch": "transformer",
}


def stock(
    vocabulary: Dictionary, arch: str = "transformer", **options: Any
) -> tuple[TransformerModelBase, dict[str, Any]]:
    """A model of fairseq's own in float64 and its checkpoint."""
    torch.manual_seed(0)
    args = Namespace(**(STOCK | {"arch": arch} | options))
    ARCH_CONFIG_REGISTRY[arch](args)
    model = TransformerModel.build_model(copy.copy(args), task(vocabulary)).eval().double()
    randomize(model)
    return model, state_of(model, args)


def loaded(state: dict[str, Any], vocabulary: Dictionary) -> GroupedQueryTransformerModel:
    """The model of a converted checkpoint, by its own config."""
    cfg = GroupedQueryTransformerConfig(**state["cfg"]["model"])
    model = GroupedQueryTransformerModel.build_model(cfg, task(vocabulary)).eval().double()
    model.load_state_dict(state["model"], strict=True)
    return model


def logits(model: nn.Module, vocabulary: Dictionary) -> Tensor:
    """Of six random sentences, at positions that are no padding."""
    batch = source_batch(random_lines(6, vocabulary), vocabulary)["net_input"]
    targets = data_utils.collate_tokens(
        random_lines(6, vocabulary, longest=9, seed=11), vocabulary.pad(), vocabulary.eos(), True
    )
    with torch.no_grad():
        return model(**batch, prev_output_tokens=targets)[0][targets.ne(vocabulary.pad())]


def difference(one: nn.Module, other: nn.Module, vocabulary: Dictionary) -> float:
    return (logits(one, vocabulary) - logits(other, vocabulary)).abs().max().item()


def attentions(model: nn.Module) -> dict[str, GroupedQueryAttention]:
    return {n: m for n, m in model.named_modules() if isinstance(m, GroupedQueryAttention)}


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


# What fairseq wrote, today and before.


def test_named_architectures_of_fairseq_are_known(vocabulary: Dictionary) -> None:
    """16 heads of 64 and others: sizes come from the name where the options leave them out."""
    args = Namespace(arch="transformer_vaswani_wmt_en_de_big", encoder_layers=1, decoder_layers=1,
                     encoder_ffn_embed_dim=8, decoder_ffn_embed_dim=8)  # fmt: skip
    model = TransformerModel.build_model(named(args), task(vocabulary))
    converted = convert(state_of(model, args), 4, "first")
    child = loaded(converted, vocabulary)
    for each in attentions(child).values():
        assert (each.num_heads, each.head_dim, each.num_kv_heads) == (16, 64, 4)
    assert converted["cfg"]["model"]["dropout"] == 0.3


def test_named_architectures_of_the_plugin_are_known(vocabulary: Dictionary) -> None:
    """d_ff is derived for the parent's heads, and kept for the child's."""
    options = asdict(GroupedQueryTransformerConfig()) | {"_name": "gqa4_transformer_small"}
    model = models.build_model(OmegaConf.create(options), task(vocabulary))
    converted = convert(state_of(model, options), 2, "mean")
    child = loaded(converted, vocabulary)
    assert {each.num_kv_heads for each in attentions(child).values()} == {2}
    assert child.decoder.layers[0].fc1.out_features == 912  # 768 for 8 heads, 912 for 4
    assert model.decoder.layers[0].fc1.out_features == 912


def named(args: Namespace) -> Namespace:
    args = copy.copy(args)
    ARCH_CONFIG_REGISTRY[args.arch](args)
    return args


@pytest.mark.parametrize("form", ["namespace", "omegaconf", "args"])
def test_each_form_of_config_gives_the_same_model(form: str, vocabulary: Dictionary) -> None:
    """`cfg` with a Namespace in it, one of omegaconf, and the `args` of older versions."""
    arch = "transformer_iwslt_de_en"
    options = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "relu_dropout": 0.25}
    _, state = stock(vocabulary, arch, **options)
    args = state["cfg"]["model"]
    expected = convert(state, 2, "svd")
    if form == "omegaconf":
        cfg = OmegaConf.create(state["cfg"] | {"model": vars(args)})
        state = state | {"cfg": cfg}
    elif form == "args":
        others = {"task": "translation", "criterion": "cross_entropy", "optimizer": "adam",
                  "lr": [0.003], "adam_betas": "(0.9, 0.98)", "lr_scheduler": "fixed",
                  "data": ["there"], "source_lang": "en", "target_lang": "de"}  # fmt: skip
        state = {key: value for key, value in state.items() if key != "cfg"}
        state["args"] = Namespace(**(vars(args) | others))
        state["model"] = in_the_old_names(state["model"])
    converted = convert(state, 2, "svd")
    assert converted["args"] is None
    assert converted["cfg"]["model"] == expected["cfg"]["model"]
    assert converted["cfg"]["model"]["activation_dropout"] == 0.25
    assert converted["cfg"]["task"]["data"] == "there"
    for name, weight in expected["model"].items():
        assert torch.equal(converted["model"][name], weight)
    assert converted["model"].keys() == expected["model"].keys()


def in_the_old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As fairseq 0.6 kept them: one matrix of queries, keys and values; sinusoids' buffer."""
    old = dict(weights)
    for name in weights:
        for part in ("weight", "bias"):
            if name.endswith(f"q_proj.{part}"):
                stem = name.removesuffix(f"q_proj.{part}")
                old[f"{stem}in_proj_{part}"] = torch.cat(
                    [old.pop(f"{stem}{p}_proj.{part}") for p in "qkv"]
                )
    for side in SIDES:
        old[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
    return old


def test_the_options_for_fairseq_train_make_the_same_model(vocabulary: Dictionary) -> None:
    _, state = stock(vocabulary, encoder_learned_pos=False)
    words = fairseq_train_options(convert(state, 2, "mean"))
    assert words[:2] == ["--arch", "gqa_transformer"]
    assert {"--use-bias", "--share-all-embeddings", "--decoder-learned-pos"} <= set(words)
    assert "--encoder-learned-pos" not in words
    values = dict(itertools.pairwise(words))
    assert values["--num-kv-heads"] == "2"
    assert values["--encoder-ffn-embed-dim"] == "48"
    assert values["--decoder-ffn-embed-dim"] == "40"
    assert "--mha-ffn-embed-dim" not in words


# The command, and bad input.


@pytest.fixture
def checkpoint(tmp_path: Path, vocabulary: Dictionary) -> Path:
    path = tmp_path / "checkpoint_last.pt"
    torch.save(ours(vocabulary)[1], path)
    return path


def refused(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_command_writes_a_checkpoint_and_says_its_options(
    checkpoint: Path, vocabulary: Dictionary, capsys: pytest.CaptureFixture[str]
) -> None:
    out = checkpoint.with_name("mqa.pt")
    before = checkpoint.read_bytes()
    arguments = [str(checkpoint), "--num-kv-heads", "1", "--method", "svd", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("--arch gqa_transformer --num-kv-heads 1 ")
    assert printed.out.count("\n") == printed.err.count("\n") == 1
    assert "24,576 weights of attention became 13,824" in printed.err  # 6 * (4 | 2 + 2/8) * 32^2
    state = torch.load(out, weights_only=True)
    expected = convert(torch.load(checkpoint, weights_only=True), 1, "svd")
    assert all(torch.equal(state["model"][n], w) for n, w in expected["model"].items())
    assert state["cfg"] == expected["cfg"]
    assert checkpoint.read_bytes() == before
    assert {path.name for path in out.parent.iterdir()} == {"checkpoint_last.pt", "mqa.pt"}

    first = out.read_bytes()
    arguments[2] = "2"
    assert "--force replaces it" in refused(*arguments, capsys=capsys)
    assert out.read_bytes() == first
    assert main([*arguments, "--force"]) == 0
    assert out.read_bytes() != first


def test_bad_requests_are_refused_and_nothing_is_written(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"--num-kv-heads": 2, "--method": "mean", "--placement": "all",
            "--out": checkpoint.with_name("out.pt")}  # fmt: skip
    for changes, reason in (
        ({"--num-kv-heads": 3}, "num_kv_heads 3 does not divide 8 attention heads"),
        ({"--num-kv-heads": 0}, "num_kv_heads 0 does not divide 8 attention heads"),
        ({"--method": "best"}, "conversion method 'best' is unknown: choose one of mean, first,"),
        ({"--placement": "encoder"}, "attention placement 'encoder' is unknown"),
        ({"--out": checkpoint}, "is the checkpoint itself"),
        ({"--out": checkpoint.parent}, "that is a folder"),
        ({"--out": checkpoint.parent / "absent" / "out.pt"}, "there is no folder"),
    ):
        words = [word for option in (good | changes).items() for word in option]
        assert reason in refused(checkpoint, *words, capsys=capsys)
        assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint_last.pt"]


def test_files_that_are_no_checkpoint_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    weights, own = state["model"], state["cfg"]["model"]
    lacking = {name: weight for name, weight in weights.items() if "layers.1.fc2" not in name}
    decoder_only = {n: w for n, w in weights.items() if n.startswith("decoder")}
    nan = weights | {"decoder.layers.0.fc1.weight": weights["decoder.layers.0.fc1.weight"] / 0}
    without_config = {key: value for key, value in state.items() if key != "cfg"}

    def with_model(**options: Any) -> dict[str, Any]:
        return state | {"cfg": state["cfg"] | {"model": options}}

    for bad, reason in (
        (checkpoint.read_bytes()[:1000], "is not a fairseq checkpoint that can be loaded"),
        (b"no checkpoint\n", "is not a fairseq checkpoint that can be loaded"),
        (state | {"model": lacking}, "weights are not those of its config: this model has encoder"),
        (state | {"model": decoder_only}, "has no encoder.embed_tokens.weight"),
        (state | {"model": nan}, "decoder.layers.0.fc1.weight has weights that are no finite"),
        (without_config, "it does not say what model it holds"),
        (with_model(_name="transformer_lm"), "its model is 'transformer_lm', which is no encoder"),
        (with_model(_name="fconv"), "its model is 'fconv'"),
        (with_model(_name="absent"), "its model is 'absent'"),
        (with_model(), "its model is None"),
        (with_model(**own | {"num_kv_heads": 3}), "its config makes no model: num_kv_heads 3"),
        (with_model(**own | {"activation_fn": "none"}), "Invalid value 'none', expected one of"),
        (state | {"last_optimizer_state": {"encoder": {}}}, "its optimizer is none of torch's"),
        ({"model": weights, "cfg": {"model": {}}}, "fairseq could not load it either (KeyError"),
    ):
        path = tmp_path / "bad.pt"
        if isinstance(bad, bytes):
            path.write_bytes(bad)
        else:
            torch.save(bad, path)
        out = tmp_path / "out.pt"
        said = refused(path, "--num-kv-heads", 2, "--out", out, capsys=capsys)
        assert reason in said
        assert str(path) in said
        assert not out.exists()
        assert not list(tmp_path.glob("*.partial"))
    missing = refused(tmp_path / "no.pt", "--num-kv-heads", 2, "--out", out, capsys=capsys)
    assert "No such file" in missing


def test_what_the_plugin_does_not_have_is_refused_by_name(vocabulary: Dictionary) -> None:
    for options in (
        {"adaptive_softmax_cutoff": "10,20"},
        {"cross_self_attention": True},
        {"quant_noise_pq": 0.1},
    ):
        _, state = stock(vocabulary, **options)
        (name,) = options
        with pytest.raises(ValueError, match=f"its model was built with {name} = "):
            convert(state, 2, "mean")
    _, state = stock(vocabulary, decoder_output_dim=16, share_all_embeddings=False)
    with pytest.raises(ValueError, match=r"cannot hold this checkpoint: .*project_out_dim"):
        convert(state, 2, "mean")


def test_heads_are_never_split(vocabulary: Dictionary) -> None:
    _, state = ours(vocabulary, num_kv_heads=2)
    with pytest.raises(ValueError, match="has 2 key/value heads, of which 4 cannot be made"):
        convert(state, 4, "mean")
    with pytest.raises(
        ValueError, match=r"its encoder\.layers\.0\.self_attn has 2 .* which 8 cannot"
    ):
        convert(state, 1, "mean", "decoder")
