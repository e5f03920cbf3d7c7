"""Each option that the plugin takes over from fairseq's Transformer does what it does there.

The oracle is fairseq's own model with the same options, weights and seed, in float64.
"""

from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from plugin_models import (
    build,
    build_stock,
    dictionary,
    random_lines,
    randomize,
    source_batch,
    use_float64_softmax,
)
from torch import Tensor, nn

from gqa_fairseq import attention
from gqa_fairseq.decoding.search import GroupedQueryGenerator

VOCABULARY = dictionary()
SENTENCES = 6
ROUNDED = 1e-7  # fairseq rounds attention weights to float32
OPTIONS: dict[str, dict[str, Any]] = {
    "norm of embeddings": {"layernorm_embedding": True},
    "embeddings as they are": {"no_scale_embedding": True},
    "no positions": {"no_token_positional_embeddings": True},
    "no last norm": {"no_decoder_final_norm": True},
    "older name of a dropout": {"relu_dropout": 0.4},
    "layers left out": {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5},
    "activations computed again": {"checkpoint_activations": True},
    "activations moved away": {"offload_activations": True},
}


@pytest.fixture(autouse=True)
def float64_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    use_float64_softmax(monkeypatch)


def pair(**options: Any) -> tuple[Any, Any]:
    """The plugin's model and fairseq's own, with the same weights."""
    model = build(VOCABULARY, use_bias=True, **options).double()
    randomize(model, scale=1.5)
    return model, build_stock(VOCABULARY, model)


def sample() -> dict[str, Any]:
    """Sources, and targets that stop at the same length, so that no position is padding."""
    batch = source_batch(random_lines(SENTENCES, VOCABULARY), VOCABULARY)
    draw = torch.Generator().manual_seed(5)
    words = torch.randint(VOCABULARY.nspecial, len(VOCABULARY), (SENTENCES, 7), generator=draw)
    ends = torch.full((SENTENCES, 1), VOCABULARY.eos())
    batch["net_input"]["prev_output_tokens"] = torch.cat((ends, words), 1)
    batch["target"] = torch.cat((words, ends), 1)
    return batch


def loss_and_gradients(
    model: nn.Module, seed: int, is_of_attention: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    batch = sample()
    logits, extra = model(**batch["net_input"])
    loss = F.cross_entropy(logits.flatten(0, 1), batch["target"].flatten())
    if is_of_attention:
        attn = extra["attn"][0]
        if attn is not None:  # it is not where the last layer is left out
            loss = loss - attn[:, :, -2].log().mean()  # as alignments are learned
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_training_is_fairseqs(options: dict[str, Any]) -> None:
    """Losses, of the attention too, and gradients with dropout, drawn with the same seed."""
    ours, theirs = pair(**{"dropout": 0.2, **options})
    ours.train()
    theirs.train()
    losses = []
    for seed, is_of_attention in product(range(3), (False, True)):
        loss, gradients = loss_and_gradients(ours, seed, is_of_attention)
        expected, expected_gradients = loss_and_gradients(theirs, seed, is_of_attention)
        atol = ROUNDED if is_of_attention else 1e-10
        torch.testing.assert_close(loss, expected, rtol=0, atol=atol)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=10 * atol)
        losses.append(float(loss))
    assert len(set(losses[::2])) == 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_hypotheses_are_fairseqs(options: dict[str, Any]) -> None:
    """In the engine, whose step is not the layers' forward, and in fairseq's search over it."""
    ours, theirs = pair(**options)
    batch = sample()
    searches: dict[str, list] = {}
    for kind, model in (
        (SequenceGenerator, theirs),
        (SequenceGenerator, ours),
        (GroupedQueryGenerator, ours),
    ):
        generator = kind([model], VOCABULARY, beam_size=4, max_len_b=12)
        searches[f"{kind.__name__} {type(model).__name__}"] = generator.generate([model], batch)
    expected, *found = searches.values()
    for hypotheses in found:
        for a, b in zip(chain(*hypotheses), chain(*expected), strict=True):
            assert a["tokens"].tolist() == b["tokens"].tolist()
            torch.testing.assert_close(a["score"].double(), b["score"].double(), atol=1e-5, rtol=0)


def embedding_file(path: Path, width: int) -> dict[str, list[float]]:
    """Half of the words, in the form that fairseq reads."""
    words = [VOCABULARY[i] for i in range(VOCABULARY.nspecial, len(VOCABULARY), 2)]
    rows = {word: [i + place / 8 for place in range(width)] for i, word in enumerate(words)}
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in rows.items()]
    path.write_text(f"{len(rows)} {width}\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return rows


def test_embeddings_begin_as_in_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    rows = embedding_file(source, 32)
    target.write_text("1 32\nw1" + " 0.5" * 32 + "\n", encoding="utf-8")
    paths = {"encoder_embed_path": str(source), "decoder_embed_path": str(target)}
    model = build(VOCABULARY, share_all_embeddings=False, **paths)
    for word, row in rows.items():
        assert model.encoder.embed_tokens.weight[VOCABULARY.index(word)].tolist() == row
    assert model.decoder.embed_tokens.weight[VOCABULARY.index("w1")].tolist() == [0.5] * 32
    drawn = model.encoder.embed_tokens.weight[VOCABULARY.index("w1")]
    assert 0 < drawn.abs().max() < 2


@pytest.mark.parametrize("text", ["", "1 3\nw1 1 2 3\n", "1 32\nw1 one\n", None])
def test_embeddings_that_are_none(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "embeddings.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"-embed-path: .*embeddings.txt holds no") as caught:
        build(VOCABULARY, encoder_embed_path=str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [("0,2", "1,2"), ("2", None), (None, "[0]")])
def test_layers_that_are_kept(kept: tuple[str | None, str | None]) -> None:
    """The model of a checkpoint without some layers is fairseq's with the same."""
    layers = {"encoder_layers": 3, "decoder_layers": 3}
    whole, stock = pair(**layers)
    options = dict(zip(("encoder_layers_to_keep", "decoder_layers_to_keep"), kept, strict=True))
    model = build(VOCABULARY, use_bias=True, **layers, **options).double()
    cfg = Namespace(arch="gqa_transformer", **options)
    if kept[1]:
        cfg.decoder_layers_to_keep = kept[1].strip("[]")
    model.load_state_dict(whole.state_dict(), strict=True, model_cfg=cfg)
    for side, numbers in zip(("encoder", "decoder"), kept, strict=True):
        if numbers:
            part = getattr(stock, side)
            wanted = [part.layers[int(n)] for n in numbers.strip("[]").split(",")]
            part.layers, part.num_layers = nn.ModuleList(wanted), len(wanted)
            assert len(getattr(model, side).layers) == len(wanted)
    net_input = sample()["net_input"]
    torch.testing.assert_close(model(**net_input)[0], stock(**net_input)[0], rtol=0, atol=1e-10)


def test_layers_that_are_kept_are_as_wide_as_they_were_trained() -> None:
    """The derived d_ff is the whole model's, although parity of what is left has another."""
    layers = {"encoder_layers": 3, "decoder_layers": 3, "num_kv_heads": 1}
    kept = {"encoder_layers_to_keep": "0,2", "decoder_layers_to_keep": "1"}
    whole, model = build(VOCABULARY, **layers), build(VOCABULARY, **layers, **kept)
    left = build(VOCABULARY, encoder_layers=2, decoder_layers=1, num_kv_heads=1)
    assert left.cfg.decoder.ffn_embed_dim != whole.cfg.decoder.ffn_embed_dim
    cfg = Namespace(arch="gqa_transformer", **kept)
    model.load_state_dict(whole.state_dict(), strict=True, model_cfg=cfg)
    assert torch.equal(model.decoder.layers[0].fc1.weight, whole.decoder.layers[1].fc1.weight)
    assert torch.equal(model.encoder.layers[1].fc1.weight, whole.encoder.layers[2].fc1.weight)


@pytest.mark.parametrize("given", ["0,0", "1,x", "-1", ","])
def test_layers_that_cannot_be_kept(given: str) -> None:
    with pytest.raises(ValueError, match=r"--encoder-layers-to-keep .*such as 0,2,4"):
        build(VOCABULARY, encoder_layers_to_keep=given)


# Attention.


def test_attention_of_a_whole_pass_is_fairseqs() -> None:
    """Of the last layer, or the one that is asked for; in training and outside."""
    ours, theirs = pair()
    net_input = sample()["net_input"]
    for is_training in (False, True):
        ours.train(is_training)
        theirs.train(is_training)
        for layer in (None, 0, 1):
            found, expected = (
                model(**net_input, alignment_layer=layer)[1]["attn"][0] for model in (ours, theirs)
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDED)


def test_nobody_who_does_not_ask_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("computed")

    ours, _ = pair()
    monkeypatch.setattr(attention, "_head_average", fail)
    batch = sample()
    _, extra = ours(**batch["net_input"])
    generator = GroupedQueryGenerator([ours], VOCABULARY, beam_size=2, max_len_b=9)
    hypotheses = generator.generate([ours], batch)
    for look in (lambda: extra["attn"][0], lambda: hypotheses[0][0]["attention"]):
        with pytest.raises(AssertionError, match="computed"):
            look()


def test_references_are_aligned_as_in_fairseq() -> None:
    """--score-reference --print-alignment."""
    scored = []
    for model in pair():
        scorer = SequenceScorer(VOCABULARY, compute_alignment=True)
        scored.append([each[0] for each in scorer.generate([model], sample())])
    for a, b in zip(*scored, strict=True):
        torch.testing.assert_close(a["attention"], b["attention"], rtol=0, atol=ROUNDED)
        assert a["alignment"] == b["alignment"]
        assert len(a["alignment"]) == 7


def test_hypotheses_have_fairseqs_attention() -> None:
    ours, theirs = pair()
    batch = sample()
    found, expected = (
        kind([model], VOCABULARY, beam_size=3, max_len_b=9).generate([model], batch, bos_token=7)
        for kind, model in ((GroupedQueryGenerator, ours), (SequenceGenerator, theirs))
    )
    for a, b in zip(chain(*found), chain(*expected), strict=True):
        assert b["attention"].shape == (batch["net_input"]["src_tokens"].shape[1], len(b["tokens"]))
        torch.testing.assert_close(a["attention"], b["attention"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "copied",
    [dict, copy.copy, copy.deepcopy, lambda h: {**h}, lambda h: pickle.loads(pickle.dumps(h)),
     lambda h: h.copy(), lambda h: dict(h.items()), lambda h: dict(zip(h, h.values(), strict=True)),
     lambda h: {key: h.get(key) for key in h}],
)  # fmt: skip
def test_copies_of_hypotheses_are_plain_and_whole(copied: Any) -> None:
    ours, _ = pair()
    generator = GroupedQueryGenerator([ours], VOCABULARY, max_len_b=5)
    ((hypothesis,), *_) = generator.generate([ours], sample())
    found = copied(hypothesis)
    assert type(found) is dict
    assert found["attention"].shape[1] == len(hypothesis["tokens"])
    assert found.keys() == {"tokens", "score", "attention", "alignment", "positional_scores"}


def test_attention_of_a_model_that_is_not_there_any_more() -> None:
    ours, _ = pair()
    generator = GroupedQueryGenerator([ours], VOCABULARY, max_len_b=5)
    ((hypothesis,), *_) = generator.generate([ours], sample())
    with torch.no_grad():
        ours.decoder.layers[0].fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="the model has changed since the search"):
        hypothesis["attention"]
