"""Checkpoints as fairseq wrote them, today and before; the command that converts, and bad input."""

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
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf
from plugin_models import dictionary, task
from small_checkpoints import SIDES, attentions, loaded, ours, state_of, stock
from torch import Tensor

from gqa_fairseq.checkpoints.conversion import convert, fairseq_train_options
from gqa_fairseq.checkpoints.convert import main
from gqa_fairseq.models.config import GroupedQueryTransformerConfig


@pytest.fixture
def vocabulary() -> Dictionary:
    return dictionary()


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
