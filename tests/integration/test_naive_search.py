"""Beam search over the cache equals the same search over a model that recomputes everything.

For every number of key/value heads and both placements, where no stock model exists to compare
with: fairseq's SequenceGenerator runs over the plugin's model, and over a wrapper of it that has no
incremental state and one copy of the source for each hypothesis.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.search import Sampling
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import (
    band_masked,
    build,
    dictionary,
    random_lines,
    randomize,
    source_batch,
    use_float64_softmax,
)
from torch import Tensor, nn

from gqa_fairseq.architecture import PLACEMENTS
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.models.gqa_transformer import (
    GroupedQueryTransformerDecoder,
    GroupedQueryTransformerModel,
)

SENTENCES = 24


class NaiveEncoder(nn.Module):
    """The encoder with fairseq's own reordering."""

    def __init__(self, encoder: TransformerEncoderBase) -> None:
        super().__init__()
        self.encoder = encoder

    def forward_torchscript(self, net_input: dict[str, Tensor]) -> dict:
        return self.encoder.forward_torchscript(net_input)

    def reorder_encoder_out(self, encoder_out: dict, new_order: Tensor) -> dict:
        return TransformerEncoderBase.reorder_encoder_out(self.encoder, encoder_out, new_order)


class NaiveDecoder(nn.Module):
    """Not a FairseqIncrementalDecoder, so SequenceGenerator hands it all tokens at every step."""

    def __init__(self, decoder: GroupedQueryTransformerDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, encoder_out: dict) -> tuple[Tensor, dict]:
        last = self.decoder.num_layers - 1
        return self.decoder(tokens, encoder_out=encoder_out, alignment_layer=last)


class NaiveModel(nn.Module):
    def __init__(self, model: GroupedQueryTransformerModel) -> None:
        super().__init__()
        self.encoder, self.decoder = NaiveEncoder(model.encoder), NaiveDecoder(model.decoder)
        self.get_normalized_probs = model.get_normalized_probs
        self.max_decoder_positions = model.max_decoder_positions


def sharpened(vocabulary: Dictionary, **options: Any) -> GroupedQueryTransformerModel:
    """Random weights that make each sentence and position different: </s> comes at many steps."""
    model = build(vocabulary, share_all_embeddings=False, use_bias=True, **options).double()
    randomize(model, scale=6.0)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(2)
        model.decoder.output_projection.weight[vocabulary.eos()].mul_(2)
        model.decoder.embed_positions.weight.mul_(3)
    return model


def search(
    model: nn.Module, vocabulary: Dictionary, batch: dict[str, Any], **options: Any
) -> list[list[dict[str, Tensor]]]:
    generator = SequenceGenerator([model], vocabulary, **({"max_len_b": 25} | options))
    return generator.generate([model], batch)


def assert_same_hypotheses(ours: list, expected: list, tolerance: float = 1e-10) -> None:
    """Tokens, scores (of every position too) and attention of all hypotheses, in order."""
    for mine, theirs in zip(ours, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a["tokens"].tolist() == b["tokens"].tolist()
            for name in ("score", "positional_scores", "attention"):
                torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("g", [1, 2, 4, 8])
def test_cached_search_equals_recomputing(
    g: int, placement: str, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_float64_softmax(monkeypatch)
    vocabulary = dictionary()
    model = sharpened(vocabulary, num_kv_heads=g, attention_placement=placement)
    batch = source_batch(random_lines(SENTENCES, vocabulary), vocabulary)
    ours = search(model, vocabulary, batch, beam_size=beam)
    expected = search(NaiveModel(model), vocabulary, batch, beam_size=beam)
    assert len({len(h["tokens"]) for each in ours for h in each}) > 3  # sentences leave in between
    assert_same_hypotheses(ours, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"len_penalty": 0.0, "min_len": 4},
        {"temperature": 1.7, "unk_penalty": 0.5},
        {"normalize_scores": False},
        {"max_len_a": 0.5, "max_len_b": 3},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_the_search(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    use_float64_softmax(monkeypatch)
    vocabulary = dictionary()
    model = sharpened(vocabulary, num_kv_heads=2)
    batch = source_batch(random_lines(SENTENCES, vocabulary), vocabulary)
    both = (model, NaiveModel(model))
    ours, expected = (search(m, vocabulary, batch, beam_size=3, **options) for m in both)
    assert_same_hypotheses(ours, expected)


def test_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """--prefix-size: forced first tokens, of different lengths."""
    use_float64_softmax(monkeypatch)
    vocabulary = dictionary()
    model = sharpened(vocabulary, num_kv_heads=2)
    batch = source_batch(random_lines(SENTENCES, vocabulary), vocabulary)
    prefix = torch.randint(vocabulary.nspecial, len(vocabulary), (SENTENCES, 3))
    prefix[::2, 2] = vocabulary.pad()
    runs = [
        SequenceGenerator([m], vocabulary, beam_size=3, max_len_b=25).generate(
            [m], batch, prefix_tokens=prefix
        )
        for m in (model, NaiveModel(model))
    ]
    assert_same_hypotheses(*runs)


def test_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models with different numbers of heads, each with its own cache."""
    use_float64_softmax(monkeypatch)
    vocabulary = dictionary()
    models = [sharpened(vocabulary, num_kv_heads=g, seed=g) for g in (1, 4)]
    batch = source_batch(random_lines(SENTENCES, vocabulary), vocabulary)
    runs = [
        SequenceGenerator(each, vocabulary, beam_size=3, max_len_b=25).generate(each, batch)
        for each in (models, [NaiveModel(model) for model in models])
    ]
    assert_same_hypotheses(*runs)


# Every way that a step reads the cache: which search, with which operators, in which dtype.
ENGINES: dict[str, tuple[type[SequenceGenerator], dict[str, Any], torch.dtype, bool]] = {
    "fairseq's search": (SequenceGenerator, {}, torch.float64, False),
    "on a CPU": (GroupedQueryGenerator, {"driver": "cpu"}, torch.float64, False),
    "on a GPU": (GroupedQueryGenerator, {"driver": "gpu"}, torch.float64, False),
    "native": (GroupedQueryGenerator, {"driver": "cpu"}, torch.float32, True),
    "PyTorch's operators": (GroupedQueryGenerator, {"driver": "cpu"}, torch.float32, False),
}


WINDOWS = {1: 2, 2: 8, 3: 1, 32: 4}  # with so many key/value heads


@pytest.mark.parametrize(
    ("kind", "beam", "window"),
    [("beam search", beam, window) for beam in (1, 4) for window in WINDOWS]
    + [(kind, 3, window) for kind in ("sampling", "prefix") for window in (2, 32)],
)
def test_every_engine_keeps_the_window(kind: str, beam: int, window: int) -> None:
    """As a search that recomputes everything under a band mask, below and beyond the window."""
    vocabulary = dictionary()
    model = build(
        vocabulary,
        num_kv_heads=WINDOWS[window],
        decoder_window=window,
        share_all_embeddings=False,
    ).double()
    randomize(model, scale=1.5)
    with torch.no_grad():
        model.decoder.output_projection.weight[vocabulary.eos()] *= 5  # ends come at many steps
    naive = NaiveModel(band_masked(model))
    batch = source_batch(random_lines(6, vocabulary), vocabulary)
    options: dict[str, Any] = {"beam_size": beam, "min_len": window // 2, "max_len_b": window + 6}
    call: dict[str, Any] = {}
    if kind == "sampling":
        options["search_strategy"] = Sampling(vocabulary, sampling_topk=5)
    elif kind == "prefix":
        call["prefix_tokens"] = torch.tensor([[7, 8, 9, 8]] * 6)

    def found(search: type[SequenceGenerator], searched: nn.Module, **driver: Any) -> list:
        torch.manual_seed(5)
        generator = search([searched], vocabulary, **options, **driver)
        return [h for sentence in generator.generate([searched], batch, **call) for h in sentence]

    expected = found(SequenceGenerator, naive)
    lengths = {len(h["tokens"]) for h in expected}
    assert len(lengths) > 1  # sentences leave in between
    assert max(lengths) > window + 1
    for name, (search, driver, dtype, is_native) in ENGINES.items():
        model.to(dtype).decoder.is_native = is_native
        ours = found(search, model, **driver)
        for a, b in zip(ours, expected, strict=True):
            assert a["tokens"].tolist() == b["tokens"].tolist(), name
            scores = (x["positional_scores"].double() for x in (a, b))
            torch.testing.assert_close(*scores, rtol=0, atol=1e-4)
