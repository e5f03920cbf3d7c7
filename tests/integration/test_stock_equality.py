"""G = H with a stock fairseq Transformer's weights is that Transformer.

The oracle is fairseq's own model and search, in float64 to 1e-10 and in float32 as it ships, on a
small model trained here on real text (the embedded sample), so that beams compete and sentences
end at different steps.
"""

from __future__ import annotations

import copy
import io
import itertools
import lzma
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary, data_utils
from fairseq.models.transformer import TransformerModelBase
from fairseq.search import BeamSearch
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import (
    HEADS,
    build,
    build_stock,
    dictionary,
    random_lines,
    randomize,
    source_batch,
    use_float64_softmax,
)
from torch import Tensor, nn

from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel

SAMPLE = Path(__file__).parents[2] / "data_prep" / "corpora" / "sample"
SENTENCES = 1000
UPDATES = 200
BATCH = 100
NEAR_TIE = 1e-5
ALLOWED_TIES = 5
LENGTHS = {"max_len_a": 1.2, "max_len_b": 10}


@dataclass
class Trained:
    """A multi-head model of the plugin, the stock model with its weights, and real sentences."""

    model: GroupedQueryTransformerModel
    stock: TransformerModelBase
    vocabulary: Dictionary
    batches: list[dict[str, Any]]
    targets: list[Tensor]  # padded on the right, </s> first, for the first batch
    pairs: list[tuple[Tensor, Tensor]]  # all sources and targets of the batches

    def converted(self, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(self.model).to(dtype), copy.deepcopy(self.stock).to(dtype)


def sample_lines(language: str) -> list[str]:
    with lzma.open(SAMPLE / f"libreoffice-help.{language}.xz", "rt", encoding="utf-8") as file:
        return file.read().split("\n")[:6000]


def piece_model(lines: list[str]) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[::3]), model_writer=model, vocab_size=1000, minloglevel=2
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pad_targets(rows: list[Tensor], vocabulary: Dictionary, eos_first: bool) -> Tensor:
    return data_utils.collate_tokens(
        rows, vocabulary.pad(), vocabulary.eos(), move_eos_to_beginning=eos_first
    )


def train(
    model: GroupedQueryTransformerModel,
    pairs: list[tuple[Tensor, Tensor]],
    vocabulary: Dictionary,
) -> None:
    """A few hundred updates: enough that the model says something of its own for every line."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    pairs = sorted(pairs, key=lambda pair: len(pair[1]))
    batches = [pairs[i : i + 32] for i in range(0, len(pairs) - 31, 32)]
    order = torch.randperm(len(batches)).repeat(UPDATES // len(batches) + 1)[:UPDATES]
    for index in order.tolist():
        sources, targets = zip(*batches[index], strict=True)
        logits, _ = model(
            **source_batch(sources, vocabulary)["net_input"],
            prev_output_tokens=pad_targets(list(targets), vocabulary, True),
        )
        gold = pad_targets(list(targets), vocabulary, False)
        loss = F.cross_entropy(logits.flatten(0, 1), gold.flatten(), ignore_index=vocabulary.pad())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.fixture(scope="module")
def trained() -> Trained:
    english, german = sample_lines("en"), sample_lines("de")
    pieces = piece_model(english + german)
    vocabulary = Dictionary()
    for i in range(3, pieces.get_piece_size()):  # after SentencePiece's own three specials
        vocabulary.add_symbol(pieces.id_to_piece(i))

    def encode(line: str) -> Tensor:
        text = " ".join(pieces.encode(line, out_type=str))
        return vocabulary.encode_line(text, add_if_not_exist=False).long()

    pairs = [(encode(en), encode(de)) for en, de in zip(english, german, strict=True)]
    held_out, rest = pairs[: SENTENCES + 500], pairs[SENTENCES + 500 :]
    held_out = [pair for pair in held_out if 3 <= len(pair[0]) <= 40][:SENTENCES]
    rest = [pair for pair in rest if max(map(len, pair)) <= 30]
    model = build(
        vocabulary,
        encoder_embed_dim=64,
        decoder_embed_dim=64,
        mha_ffn_embed_dim=256,
        max_source_positions=128,
        max_target_positions=128,
        use_bias=True,
    )
    train(model, rest, vocabulary)
    stock = build_stock(vocabulary, model)
    held_out.sort(key=lambda pair: len(pair[0]))
    groups = [held_out[i : i + BATCH] for i in range(0, SENTENCES, BATCH)]
    batches = [source_batch([source for source, _ in group], vocabulary) for group in groups]
    targets = [target for _, target in groups[0]]
    return Trained(model, stock, vocabulary, batches, targets, held_out)


@pytest.fixture
def float64_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    use_float64_softmax(monkeypatch)


# Logits and gradients.


def random_targets(vocabulary: Dictionary, count: int) -> Tensor:
    rows = random_lines(count, vocabulary, longest=9, seed=11)
    return pad_targets(rows, vocabulary, eos_first=True)


def compare(
    model: nn.Module, stock: nn.Module, net_input: dict[str, Tensor], targets: Tensor, pad: int
) -> tuple[float, float]:
    """Largest differences of logits and of gradients, over positions that are not padding.

    Positions after </s> are read by nobody, and the plugin leaves them unmasked.
    """
    is_read = targets.ne(pad)
    generator = torch.Generator().manual_seed(0)
    logits, gradients = [], []
    for each in (model, stock):
        each.zero_grad()
        out = each(**net_input, prev_output_tokens=targets)[0][is_read]
        probe = torch.randn(out.shape, generator=generator.manual_seed(0), dtype=out.dtype)
        (out * probe).sum().backward()
        logits.append(out.detach())
        gradients.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    assert set(ours) == set(dict(model.named_parameters()))
    assert all(name.endswith(".bias") for name in set(theirs) - set(ours))
    difference = max((theirs[name] - ours[name]).abs().max().item() for name in ours)
    return (logits[0] - logits[1]).abs().max().item(), difference


@pytest.mark.parametrize("use_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("encoder_norm", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("decoder_norm", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("is_learned", [False, True], ids=["sinusoidal", "learned"])
@pytest.mark.usefixtures("float64_softmax")
def test_logits_and_gradients_in_float64(
    use_bias: bool, encoder_norm: bool, decoder_norm: bool, is_learned: bool
) -> None:
    vocabulary = dictionary()
    model = build(
        vocabulary,
        use_bias=use_bias,
        encoder_normalize_before=encoder_norm,
        decoder_normalize_before=decoder_norm,
        encoder_learned_pos=is_learned,
        decoder_learned_pos=is_learned,
    ).double()
    randomize(model)
    stock = build_stock(vocabulary, model)
    if use_bias:  # and back: names and shapes are the same
        model.load_state_dict(stock.state_dict(), strict=True)
    batch = source_batch(random_lines(6, vocabulary), vocabulary)["net_input"]
    assert bool((batch["src_tokens"][:, 0] == vocabulary.pad()).any())
    targets = random_targets(vocabulary, 6)
    logits, gradients = compare(model, stock, batch, targets, vocabulary.pad())
    assert logits < 1e-10
    assert gradients < 1e-10


@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.usefixtures("float64_softmax")
def test_grouped_heads_are_fairseqs_with_each_key_head_repeated(g: int) -> None:
    """Query heads 0 to R - 1 read key head 0, the next R key head 1: contiguous groups."""
    vocabulary = dictionary()
    grouped = build(vocabulary, num_kv_heads=g, use_bias=True).double()
    randomize(grouped)
    d_ff = {
        f"{name}_ffn_embed_dim": side.layers[0].fc1.out_features
        for name, side in (("encoder", grouped.encoder), ("decoder", grouped.decoder))
    }
    twin = build(vocabulary, use_bias=True, **d_ff).double()
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = weight.unflatten(0, (g, -1))  # [G, D, ...]
            weights[name] = heads.repeat_interleave(HEADS // g, 0).flatten(0, 1)
    twin.load_state_dict(weights, strict=True)
    stock = build_stock(vocabulary, twin)
    batch = source_batch(random_lines(6, vocabulary), vocabulary)["net_input"]
    targets = random_targets(vocabulary, 6)
    is_read = targets.ne(vocabulary.pad())
    with torch.no_grad():
        ours, theirs = (m(**batch, prev_output_tokens=targets)[0] for m in (grouped, stock))
    assert (ours - theirs)[is_read].abs().max().item() < 1e-10


@pytest.mark.usefixtures("float64_softmax")
def test_trained_logits_and_gradients_in_float64(trained: Trained) -> None:
    model, stock = trained.converted(torch.float64)
    targets = pad_targets(trained.targets, trained.vocabulary, eos_first=True)
    net_input = trained.batches[0]["net_input"]
    logits, gradients = compare(model, stock, net_input, targets, trained.vocabulary.pad())
    assert logits < 1e-10
    assert gradients < 1e-10


def test_trained_logits_in_float32(trained: Trained) -> None:
    """fairseq as it ships: no softmax replaced."""
    targets = pad_targets(trained.targets, trained.vocabulary, eos_first=True)
    net_input = trained.batches[0]["net_input"]
    is_read = targets.ne(trained.vocabulary.pad())
    with torch.no_grad():
        ours, theirs = (
            each(**net_input, prev_output_tokens=targets)[0][is_read]
            for each in (trained.model, trained.stock)
        )
    assert (ours - theirs).abs().max().item() < 1e-5


# Hypotheses of fairseq's search over both.


@dataclass(frozen=True)
class Hypothesis:
    tokens: tuple[int, ...]
    score: float


def translate(
    model: nn.Module,
    vocabulary: Dictionary,
    batches: list[dict[str, Any]],
    beam: int,
    engine: type[SequenceGenerator] = SequenceGenerator,
    **options,
) -> list[list[Hypothesis]]:
    """The hypotheses of every sentence, best first."""
    generator = engine([model], vocabulary, beam_size=beam, **(LENGTHS | options))
    return [
        [Hypothesis(tuple(h["tokens"].tolist()), float(h["score"])) for h in hypotheses]
        for batch in batches
        for hypotheses in generator.generate([model], batch)
    ]


def assert_not_degenerate(hypotheses: list[list[Hypothesis]]) -> None:
    """Sentences differ and end at different steps, or equality would show little."""
    best = {each[0].tokens for each in hypotheses}
    assert len(best) > len(hypotheses) / 2
    assert len({len(tokens) for tokens in best}) > 5


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.usefixtures("float64_softmax")
def test_hypotheses_of_1000_sentences_in_float64(trained: Trained, beam: int) -> None:
    ours, theirs = (
        translate(model, trained.vocabulary, trained.batches, beam)
        for model in trained.converted(torch.float64)
    )
    assert len(ours) == SENTENCES
    assert_not_degenerate(ours)
    differing = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if not same(*pair)]
    assert not differing


def same(ours: list[Hypothesis], theirs: list[Hypothesis]) -> bool:
    """All hypotheses of a sentence, in order, and their scores."""
    return all(
        a.tokens == b.tokens and abs(a.score - b.score) < 1e-10
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("beam", [1, 4])
def test_hypotheses_of_1000_sentences_in_float32(
    trained: Trained, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fairseq's search over both models, and of the plugin's own search, as all of them ship.

    The best hypothesis may differ only where float64 finds the scores that compete as good as
    equal; each such sentence is listed.
    """
    theirs = translate(trained.stock, trained.vocabulary, trained.batches, beam)
    ours = {
        engine.__name__: translate(
            trained.model, trained.vocabulary, trained.batches, beam, engine=engine
        )
        for engine in (SequenceGenerator, GroupedQueryGenerator)
    }
    use_float64_softmax(monkeypatch)
    for name, hypotheses in ours.items():
        differing = [i for i in range(SENTENCES) if hypotheses[i][0].tokens != theirs[i][0].tokens]
        for i in differing:
            gap = smallest_gap(trained, i, beam)
            print(f"{name}, beam {beam}, sentence {i}: float64 scores {gap:.1e} apart")
            print(f"  {hypotheses[i][0]}\n  {theirs[i][0]}")
            assert gap < NEAR_TIE
        assert len(differing) <= ALLOWED_TIES


def test_smallest_gap_sees_a_tie(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two output rows made equal tie wherever one of them is at a cut; elsewhere nothing does."""
    use_float64_softmax(monkeypatch)
    assert smallest_gap(trained, 0, 4) > NEAR_TIE
    twins = Trained(
        trained.model,
        copy.deepcopy(trained.stock),
        trained.vocabulary,
        trained.batches,
        trained.targets,
        trained.pairs,
    )
    first = translate(trained.stock, trained.vocabulary, trained.batches[:1], 1)[0][0].tokens[0]
    with torch.no_grad():
        weight = twins.stock.decoder.output_projection.weight
        weight[first] = weight[first + 1] = weight[first] * 1.5
    assert smallest_gap(twins, 0, 1) < NEAR_TIE


class GapRecorder(BeamSearch):
    """Beam search that notes how close a candidate came to being on the other side of a cut.

    Three ranks decide what happens next: the last of the `beam` candidates that may end, the last
    of the 2 * beam that are looked at, and the last of the `beam` among these that go on.
    """

    smallest = math.inf

    def step(self, step: int, lprobs: Tensor, scores: Tensor, *args: Any) -> Any:
        beam = lprobs.shape[1]
        totals = lprobs[:, :1] if step == 0 else lprobs + scores[:, :, step - 1, None]
        best = totals.flatten(1).topk(2 * beam + 1).values
        for rank in (beam, 2 * beam):
            # Where a prefix forbids the words on both sides, there is nothing to decide.
            gap = (best[:, rank - 1] - best[:, rank]).nan_to_num(nan=math.inf, posinf=math.inf)
            self.smallest = min(self.smallest, gap.min().item())
        found = super().step(step, lprobs, scores, *args)
        for sums, words in zip(*found[:2], strict=True):
            going_on = sums[words.ne(self.eos)]
            if len(going_on) > beam and going_on[beam - 1].isfinite():
                gap_going_on = (going_on[beam - 1] - going_on[beam]).item()
                self.smallest = min(self.smallest, gap_going_on)
        return found


def smallest_gap(trained: Trained, sentence: int, beam: int) -> float:
    """Of a sentence of the batches, see closest_decision."""
    net_input = trained.batches[sentence // BATCH]["net_input"]
    row = slice(sentence % BATCH, sentence % BATCH + 1)
    return closest_decision(
        trained, {name: value[row] for name, value in net_input.items()}, None, beam_size=beam
    )


def closest_decision(
    trained: Trained, net_input: dict[str, Tensor], prefix: Tensor | None, **options: Any
) -> float:
    """The closest decision of a float64 search for one sentence: at a cut, or between the final
    hypotheses."""
    _, stock = trained.converted(torch.float64)
    recorder = GapRecorder(trained.vocabulary)
    options = LENGTHS | options | {"search_strategy": recorder}
    generator = SequenceGenerator([stock], trained.vocabulary, **options)
    (hypotheses,) = generator.generate([stock], {"net_input": net_input}, prefix_tokens=prefix)
    scores = [float(h["score"]) for h in hypotheses]
    finals = [a - b for a, b in itertools.pairwise(scores)]
    return min([recorder.smallest, *finals])


# The plugin's search beside fairseq's over the same model, as --search gqa and --search stock.

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1},
    "2 beams": {"beam_size": 2},
    "5 beams": {"beam_size": 5},
    "33 beams": {"beam_size": 33},
    "shorter": {"beam_size": 4, "len_penalty": 0.2},
    "longer": {"beam_size": 4, "len_penalty": 2.0, "min_len": 5},
    "sums": {"beam_size": 4, "normalize_scores": False},
    "no unknown words": {"beam_size": 4, "unk_penalty": 3.0},
    "unknown words": {"beam_size": 3, "unk_penalty": -3.0},
    "sharper": {"beam_size": 4, "temperature": 0.6},
    "flatter": {"beam_size": 8, "temperature": 1.7},
    "cut": {"beam_size": 4, "max_len_a": 0.5, "max_len_b": 3},
    "a word is given": {"beam_size": 4, "prefix": 1},
    "three words are given": {"beam_size": 5, "prefix": 3, "temperature": 1.2},
    "greedy after two words": {"beam_size": 1, "prefix": 2},
}
BATCH_SIZES = (7, 64, 1)


def assert_both_searches_agree(
    trained: Trained, pairs: list[tuple[Tensor, Tensor]], batch_size: int, options: dict[str, Any]
) -> None:
    """All hypotheses in order, unless float64 finds a decision as good as the one taken."""
    options = LENGTHS | options
    size = options.pop("prefix", 0)
    pad, differing = trained.vocabulary.pad(), 0
    generators = [
        engine([trained.model], trained.vocabulary, **options)
        for engine in (GroupedQueryGenerator, SequenceGenerator)
    ]
    for start in range(0, len(pairs), batch_size):
        sources, targets = zip(*pairs[start : start + batch_size], strict=True)
        batch = source_batch(sources, trained.vocabulary)
        prefix = data_utils.collate_tokens(targets, pad)[:, :size] if size else None
        found = [g.generate([trained.model], batch, prefix_tokens=prefix) for g in generators]
        for i, (ours, theirs) in enumerate(zip(*found, strict=True)):
            if [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]:
                scores = [torch.stack([h["score"] for h in each]) for each in (ours, theirs)]
                torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
                continue
            row = slice(i, i + 1)
            one = {name: value[row] for name, value in batch["net_input"].items()}
            words = None if prefix is None else prefix[row]
            with pytest.MonkeyPatch.context() as patch:
                use_float64_softmax(patch)
                gap = closest_decision(trained, one, words, **options)
            print(f"{options}, line {start + i}: float64 scores {gap:.1e} apart")
            assert gap < NEAR_TIE
            differing += 1
    assert differing <= max(1, len(pairs) * options["beam_size"] // 100)


@pytest.mark.parametrize("name", SEARCHES)
def test_both_searches_agree(trained: Trained, name: str) -> None:
    """Sentences of all lengths; the sizes of batches take turns."""
    turn = list(SEARCHES).index(name)
    size = BATCH_SIZES[turn % len(BATCH_SIZES)]
    step = 40 if size > 1 and SEARCHES[name]["beam_size"] < 9 else 150
    assert_both_searches_agree(trained, trained.pairs[turn::step], size, SEARCHES[name])


@pytest.mark.long
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("name", SEARCHES)
def test_both_searches_agree_on_many_lines(trained: Trained, name: str, batch_size: int) -> None:
    assert_both_searches_agree(trained, trained.pairs[::5], batch_size, SEARCHES[name])
