"""Decoding token by token equals one full forward pass, whatever beam search does meanwhile."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.optim.adam import Adam
from plugin_models import (
    band_masked,
    build,
    dictionary,
    random_lines,
    randomize,
    source_batch,
)
from torch import Tensor

from gqa_fairseq.architecture import PLACEMENTS
from gqa_fairseq.costs import cache_bytes
from gqa_fairseq.decoding.cpu.cache import DecoderCache
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel

SENTENCES, STEPS = 5, 7
VARIANTS = [(g, placement) for g in (1, 2, 4, 8) for placement in PLACEMENTS]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_bias": True},
    {"encoder_normalize_before": False, "decoder_normalize_before": False, "use_bias": True},
    {"decoder_normalize_before": False, "decoder_learned_pos": False},
    {"activation_fn": "gelu", "decoder_layers": 1},
    {"decoder_window": 3, "decoder_head_dim": 12, "encoder_head_dim": 2, "mha_ffn_embed_dim": 256},
]


def model_of(
    vocabulary: Dictionary, dtype: torch.dtype = torch.float64, **options: Any
) -> GroupedQueryTransformerModel:
    model = build(vocabulary, **options)
    randomize(model)
    return model.to(dtype)


def gathered(encoder_out: dict, rows: Tensor, model: GroupedQueryTransformerModel) -> dict:
    """fairseq's own reordering: one copy of the source a hypothesis."""
    return TransformerEncoderBase.reorder_encoder_out(model.encoder, encoder_out, rows)


class Walk:
    """A random walk of beam search's moves, decoded step by step and by full forward passes."""

    def __init__(
        self,
        model: GroupedQueryTransformerModel,
        vocabulary: Dictionary,
        beam: int,
        reference: GroupedQueryTransformerModel | None = None,
    ):
        self.model, self.vocabulary, self.beam = model, vocabulary, beam
        self.reference = reference or model  # makes the full forward passes
        batch = source_batch(random_lines(SENTENCES, vocabulary), vocabulary)["net_input"]
        assert bool((batch["src_tokens"][:, 0] == vocabulary.pad()).any())  # padded on the left
        self.original = model.encoder(batch["src_tokens"])
        self.sentences = torch.arange(SENTENCES)
        spread = self.sentences.repeat_interleave(beam)
        self.encoder_out = model.encoder.reorder_encoder_out(self.original, spread)
        self.state: dict[str, Any] = {}
        self.tokens = torch.full((SENTENCES * beam, 1), vocabulary.eos())

    def errors(self) -> tuple[float, float]:
        """Largest differences of the newest logits and attention to a full forward pass."""
        stepped, extra = self.model.decoder(
            self.tokens, encoder_out=self.encoder_out, incremental_state=self.state
        )
        rows = self.sentences.repeat_interleave(self.beam)
        full, full_extra = self.reference.decoder(
            self.tokens,
            encoder_out=gathered(self.original, rows, self.model),
            alignment_layer=self.model.decoder.num_layers - 1,
        )
        assert stepped.shape == (len(rows), 1, len(self.vocabulary))
        attention = (extra["attn"][0][:, -1] - full_extra["attn"][0][:, -1]).abs().max().item()
        return (stepped[:, -1] - full[:, -1]).abs().max().item(), attention

    def move(self, kept: Tensor, parents: Tensor) -> None:
        """Sentences `kept` (by place) go on; beam j continues beam `parents[:, j]`, [n, W]."""
        rows = (kept[:, None] * self.beam + parents).flatten()
        self.model.decoder.reorder_incremental_state_scripting(self.state, rows)
        self.encoder_out = self.model.encoder.reorder_encoder_out(self.encoder_out, rows)
        first = self.vocabulary.nspecial
        new = torch.randint(first, len(self.vocabulary), (len(rows), 1))
        self.tokens = torch.cat((self.tokens[rows], new), dim=1)
        self.sentences = self.sentences[kept]


def orders_of(rows: int, draw: random.Random) -> Iterator[list[int]]:
    """Orders as any search may ask for them, each of the rows that the last one left."""
    for _ in range(6):
        width = draw.choice((1, 1, 2, 3))
        kind = draw.choice(("same", "permuted", "spread", "any", "fewer"))
        order = list(range(rows))
        if kind == "permuted":
            draw.shuffle(order)
        elif kind == "spread":
            order = [row for row in order for _ in range(width)]
        elif kind == "any":
            order = [draw.randrange(rows) for _ in range(rows * width)]
        elif kind == "fewer" and rows > 1:
            order.remove(draw.randrange(rows))
        yield order
        rows = len(order)


REPORTED = [[[0, 1], [1, 0]], [[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 0, 1, 1], [2, 3, 0, 1]],
            [[0, 0, 1, 1], [0, 2, 1, 3], [3, 2, 1, 0]], [[0, 0, 1, 1], [0, 1, 3]],
            [[1, 1, 0, 0], [1, 0, 2, 2], [2, 3]], [[0, 0, 1, 1], [2, 2]]]  # fmt: skip
DRAWN = [list(orders_of(2, random.Random(seed))) for seed in range(60)]


@pytest.mark.parametrize("orders", REPORTED + DRAWN)
def test_the_source_follows_any_sequence_of_orders(orders: list[list[int]]) -> None:
    """As fairseq's gather, for a decoder that reads whole sequences and for one with a cache."""
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=2)
    source = source_batch(random_lines(2, vocabulary), vocabulary)["net_input"]
    with torch.no_grad():
        ours = model.encoder(source["src_tokens"])
        theirs = dict(ours)
        for order in map(torch.tensor, orders):
            ours = model.encoder.reorder_encoder_out(ours, order)
            theirs = gathered(theirs, order, model)
            (beam,) = ours["beam"]
            for name, rows in (("encoder_out", 1), ("encoder_padding_mask", 0), ("src_lengths", 0)):
                for a, b in zip(ours[name], theirs[name], strict=True):
                    assert torch.equal(a.repeat_interleave(beam, rows), b), name
            start = torch.full((len(order), 1), vocabulary.eos())
            expected = model.decoder(start, encoder_out=theirs)[0]
            for state in (None, {}):
                found = model.decoder(start, encoder_out=ours, incremental_state=state)[0]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_fairseqs_orders_copy_no_source() -> None:
    """Beams that move within their sentences leave the encoder's output where it is."""
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=2)
    source = source_batch(random_lines(2, vocabulary), vocabulary)["net_input"]
    encoded = model.encoder(source["src_tokens"])
    moved = encoded
    for order in ([0, 0, 0, 1, 1, 1], [2, 0, 0, 5, 5, 3], [0, 1, 2, 4, 3, 5]):
        moved = model.encoder.reorder_encoder_out(moved, torch.tensor(order))
        assert moved["encoder_out"][0] is encoded["encoder_out"][0]
    left = model.encoder.reorder_encoder_out(moved, torch.tensor([4, 3, 3]))
    assert torch.equal(left["encoder_out"][0], encoded["encoder_out"][0][:, 1:])


@torch.no_grad()
def walk_errors(walk: Walk, leaves: bool = True, steps: int = STEPS) -> tuple[float, float]:
    worst = (0.0, 0.0)
    for step in range(steps):
        logits, attention = walk.errors()
        worst = max(worst[0], logits), max(worst[1], attention)
        kept = torch.arange(len(walk.sentences))
        if leaves and step % 2 and len(kept) > 1:
            kept = kept[kept != torch.randint(len(kept), ())]
        walk.move(kept, torch.randint(walk.beam, (len(kept), walk.beam)))
    return worst


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize(("g", "placement"), VARIANTS)
def test_steps_equal_full_forward(g: int, placement: str, options: dict, beam: int) -> None:
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=g, attention_placement=placement, **options)
    torch.manual_seed(g)
    logits, attention = walk_errors(Walk(model, vocabulary, beam))
    assert logits < 1e-10
    assert attention < 1e-10


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("is_native", [True, False])
def test_steps_in_single_precision(options: dict, is_native: bool) -> None:
    """float32 takes other operators on a CPU: native ones, or PyTorch's with packed weights."""
    vocabulary = dictionary()
    model = model_of(vocabulary, torch.float32, num_kv_heads=2, **options)
    model.decoder.is_native = is_native
    logits, attention = walk_errors(Walk(model, vocabulary, 3))
    assert logits < 1e-4
    assert attention < 1e-5


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(("window", "g"), [(1, 2), (2, 8), (3, 1), (32, 4)])
@pytest.mark.parametrize(
    ("dtype", "is_native", "tolerance"),
    [(torch.float64, False, 1e-10), (torch.float32, True, 1e-4), (torch.float32, False, 1e-4)],
)
def test_steps_within_a_window_equal_a_band_mask(
    dtype: torch.dtype, is_native: bool, tolerance: float, window: int, g: int, beam: int
) -> None:
    """Lengths below, at and beyond the window; the cache keeps the window's positions alone."""
    vocabulary = dictionary()
    model = model_of(vocabulary, dtype, num_kv_heads=g, decoder_window=window)
    model.decoder.is_native = is_native
    torch.manual_seed(window)
    walk = Walk(model, vocabulary, beam, band_masked(model))
    logits, attention = walk_errors(walk, steps=max(STEPS, window + 3))
    assert logits < tolerance
    assert attention < tolerance
    (cache,) = walk.state.values()
    rows = 2 * 2 * g * 4 * dtype.itemsize  # layers, keys and values, heads of 4
    assert cache.nbytes["self"] == cache.batch * beam * window * rows


def test_a_window_hides_what_lies_before_it() -> None:
    """Without its window the model scores the same words otherwise, so the tests above can fail."""
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=2, decoder_window=3)
    unlimited = model_of(vocabulary, num_kv_heads=2)
    torch.manual_seed(0)
    walk = Walk(model, vocabulary, 1, unlimited)
    with torch.no_grad():
        for step in range(STEPS):
            error, _ = walk.errors()
            assert (error < 1e-10) == (step < 3)
            walk.move(torch.arange(SENTENCES), torch.zeros(SENTENCES, 1, dtype=torch.int64))


@pytest.mark.parametrize("window", [1, 6, 7, 9])
@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("is_native", [True, False])
def test_narrow_wide_and_local_steps(window: int, head_dim: int, is_native: bool) -> None:
    """Shazeer 2019, table 1, in small: heads together narrower and wider than the model.

    The walk has 7 steps: lengths are below a window, at it, and beyond it.
    """
    vocabulary = dictionary()
    sizes = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_head_dim": head_dim for side in ("encoder", "decoder")}
    sizes |= {f"{side}_embed_dim": 64 for side in ("encoder", "decoder")}
    for g, beam in ((1, 3), (2, 1)):
        options = sizes | {"num_kv_heads": g, "decoder_window": window, "encoder_ffn_embed_dim": 9}
        model = model_of(vocabulary, torch.float32, decoder_ffn_embed_dim=9, **options)
        model.decoder.is_native = is_native
        logits, attention = walk_errors(Walk(model, vocabulary, beam))
        assert logits < 1e-4
        assert attention < 1e-5


@pytest.mark.parametrize("window", [None, 24, 40])
def test_a_long_search_outgrows_the_first_capacity(window: int | None) -> None:
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=2, max_target_positions=128, decoder_window=window)
    walk = Walk(model, vocabulary, 2)
    with torch.no_grad():
        for step in range(70):
            if step % 23 == 0 or step > 66:
                assert walk.errors()[0] < 1e-10
            else:
                model.decoder(
                    walk.tokens, encoder_out=walk.encoder_out, incremental_state=walk.state
                )
            kept = torch.arange(len(walk.sentences))
            kept = kept[1:] if step in (10, 40) else kept
            walk.move(kept, torch.randint(2, (len(kept), 2)))


@pytest.mark.parametrize(("g", "placement"), VARIANTS)
def test_the_decoder_caches_g_heads(g: int, placement: str) -> None:
    """The bytes that are really kept: G heads, one source row a sentence, whatever the beam."""
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=g, attention_placement=placement)
    walk = Walk(model, vocabulary, 3)
    with torch.no_grad():
        for _ in range(4):
            walk.errors()
            walk.move(torch.arange(SENTENCES), torch.randint(3, (SENTENCES, 3)))
    (cache,) = walk.state.values()
    assert isinstance(cache, DecoderCache)
    assert cache.nbytes == cache_bytes(
        batch=SENTENCES,
        beam=3,
        source_tokens=walk.original["encoder_out"][0].shape[0],
        target_tokens=4,
        layers=2,
        num_kv_heads=g,
        head_dim=4,
        bytes_per_element=8,
    )


def step_error(model: GroupedQueryTransformerModel, vocabulary: Dictionary) -> float:
    with torch.no_grad():
        return Walk(model, vocabulary, 2).errors()[0]


def test_decoding_follows_the_weights() -> None:
    """Decoding weights are made anew after training, loading and conversion."""
    vocabulary = dictionary()
    model = model_of(vocabulary, torch.float32, num_kv_heads=2)
    assert step_error(model, vocabulary) < 1e-4
    other = model_of(vocabulary, torch.float32, num_kv_heads=2)
    randomize(other, seed=9)
    model.load_state_dict(other.state_dict())
    assert step_error(model, vocabulary) < 1e-4
    # fairseq's Adam writes through `.data`, where PyTorch does not count versions; this is what
    # validation with --eval-bleu meets in the middle of training.
    optimizer = Adam(model.parameters(), lr=0.5)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.eval()
    assert step_error(model, vocabulary) < 1e-4
    assert step_error(model.double(), vocabulary) < 1e-10


def test_a_model_that_has_decoded_can_be_copied() -> None:
    vocabulary = dictionary()
    model = model_of(vocabulary, torch.float32, num_kv_heads=2)
    step_error(model, vocabulary)
    twin = copy.deepcopy(model)
    randomize(twin, seed=5)
    assert step_error(twin, vocabulary) < 1e-4
    assert step_error(model, vocabulary) < 1e-4


@pytest.mark.parametrize(("g", "placement"), VARIANTS)
def test_weights_survive_a_round_trip(g: int, placement: str, tmp_path: Path) -> None:
    vocabulary = dictionary()
    options: dict[str, Any] = {"num_kv_heads": g, "attention_placement": placement}
    model = build(vocabulary, **options)
    randomize(model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = build(vocabulary, seed=7, **options)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    source = source_batch(random_lines(4, vocabulary), vocabulary)["net_input"]
    target = torch.full((4, 3), vocabulary.eos())
    with torch.no_grad():
        logits = [m(**source, prev_output_tokens=target)[0] for m in (model, again)]
    assert torch.equal(*logits)


def test_attention_of_any_layer_and_no_others() -> None:
    """--print-alignment and score-reference read these; a full pass computes none unasked."""
    vocabulary = dictionary()
    model = model_of(vocabulary, num_kv_heads=2)
    source = source_batch(random_lines(2, vocabulary), vocabulary)["net_input"]
    target = torch.full((2, 3), vocabulary.eos())
    assert model(**source, prev_output_tokens=target)[1]["attn"] == [None]
    for layer in (0, 1):
        attn = model(**source, prev_output_tokens=target, alignment_layer=layer)[1]["attn"][0]
        torch.testing.assert_close(attn.sum(-1), torch.ones(2, 3, dtype=attn.dtype))
    with pytest.raises(ValueError, match="alignment_heads is not supported"):
        model(**source, prev_output_tokens=target, alignment_heads=1)
