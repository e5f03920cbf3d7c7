"""Faster updates are fairseq's: losses, gradients and parameters, with padding and dropout."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from fairseq.data import data_utils
from fairseq.optim.adam import Adam
from plugin_models import (
    build,
    build_stock,
    dictionary,
    random_lines,
    randomize,
    task,
    use_float64_softmax,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gqa_fairseq.training import loss as loss_module
from gqa_fairseq.training.adam import FusedAdam
from gqa_fairseq.training.loss import ProjectedCrossEntropyCriterion, projected_loss
from gqa_fairseq.training.native import TrainingOperators, operators_for
from gqa_fairseq.training.packed import Sentences, can_pack

VOCABULARY = dictionary(57)
PAD, EOS = VOCABULARY.pad(), VOCABULARY.eos()
native_only = pytest.mark.skipif(
    operators_for(torch.empty(0)) is None, reason="no compiler, or no AVX2"
)


def operators() -> TrainingOperators:
    found = operators_for(torch.empty(0))
    assert found is not None
    return found


# The loss


def reference_loss(
    features: Tensor, weight: Tensor, target: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """fairseq's function on scores made at once."""
    log_probs = F.log_softmax(features @ weight.t(), dim=-1)
    return label_smoothed_nll_loss(log_probs, target, smoothing, ignore_index=PAD)


def loss_and_gradients(function: Any, dtype: torch.dtype, smoothing: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(23, 8, generator=generator, dtype=torch.float64)
    weight = 2 * torch.randn(61, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(4, 61, (23,), generator=generator)
    inputs = [x.to(dtype).requires_grad_() for x in (features, weight)]
    loss, nll = function(*inputs, target, smoothing)
    (3 * loss).backward()
    return [loss, nll, *(x.grad for x in inputs)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [2**22, 5 * 61 * 8])
def test_the_loss_is_fairseqs(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk: int
) -> None:
    """In one piece and in pieces of five rows or ten."""
    monkeypatch.setitem(loss_module._CHUNK_BYTES, "cpu", chunk)
    expected = loss_and_gradients(reference_loss, torch.float64, smoothing)
    exact = loss_and_gradients(projected_loss, torch.float64, smoothing)
    for one, other in zip(exact, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    rounded = loss_and_gradients(projected_loss, torch.float32, smoothing)
    for one, other in zip(rounded, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=2e-5)


def test_a_validation_multiplies_once() -> None:
    """It has the same loss, and makes no gradient of features and weight."""

    class Products(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names += [n for n in ("addmm_", "mm") if func._opname == n]
            return func(*args, **(kwargs or {}))

    features, weight = torch.randn(23, 8), torch.randn(61, 8).requires_grad_()
    target = torch.randint(4, 61, (23,))
    with Products() as training:
        expected = projected_loss(features.requires_grad_(), weight, target, 0.1)
    with Products() as validation, torch.no_grad():
        found = projected_loss(features, weight, target, 0.1)
    assert (training.names, validation.names) == (["mm", "mm", "addmm_"], ["mm"])
    assert [x.item() for x in found] == [x.item() for x in expected]


@native_only
def test_a_loss_that_is_no_number_stays_none() -> None:
    logits = torch.randn(3, 37)
    logits[1, 5] = float("nan")
    losses = operators().smoothed_loss_(logits, torch.tensor([1, 2, 3]), 0.9, 0.1 / 36)
    assert losses.isnan().all(1).tolist() == [False, True, False]


# Adam


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adam_is_fairseqs(dtype: torch.dtype) -> None:
    """Also with decay, for a parameter that some updates do not touch, and after a reload."""
    generator = torch.Generator().manual_seed(2)
    start = [
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((5, 7), (3,), (9,))
    ]
    sides = [[p.clone().requires_grad_() for p in start] for _ in range(2)]
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}
    optimizers = [Adam(sides[0], **options), FusedAdam(sides[1], **options)]
    for step in range(6):
        for i in range(len(start)):
            gradient = torch.randn(start[i].shape, generator=generator, dtype=dtype)
            for side in sides:
                side[i].grad = None if (i, step) in ((1, 0), (1, 3)) else gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        if step == 3:  # each goes on from the other's state
            states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            assert states[0]["state"].keys() == states[1]["state"].keys()
            for optimizer, state in zip(optimizers, states[::-1], strict=True):
                optimizer.load_state_dict(state)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for one, other in zip(*sides, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    steps = [{i: s["step"] for i, s in o.state_dict()["state"].items()} for o in optimizers]
    assert steps == [{0: 6, 1: 4, 2: 6}] * 2


def test_half_precision_is_left_to_fairseqs_adam() -> None:
    sides = [[torch.ones(3, dtype=torch.float16, requires_grad=True)] for _ in range(2)]
    for side, kind in zip(sides, (Adam, FusedAdam), strict=True):
        side[0].grad = torch.full((3,), 0.5, dtype=torch.float16)
        kind(side, lr=0.01).step()
    assert torch.equal(sides[0][0], sides[1][0])


# Attention of packed sentences


def packed_reference(
    queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool, window: int
) -> Tensor:
    """One sentence, [T, H, D] and [S, G, D], in float64."""
    R = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(R, 1) for x in (keys, values))
    scores = torch.einsum("thd,shd->hts", queries, keys) * queries.shape[-1] ** -0.5
    ahead = torch.arange(keys.shape[0])[None] - torch.arange(queries.shape[0])[:, None]
    forbidden = torch.zeros_like(ahead, dtype=torch.bool)
    if is_causal:
        forbidden |= ahead > 0
    if window:
        forbidden |= ahead <= -window
    probs = scores.masked_fill(forbidden, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", probs, values).flatten(1)


@native_only
@pytest.mark.parametrize(
    ("H", "G", "D", "is_self", "window"),
    [
        (8, 8, 16, True, 0),
        (8, 2, 16, False, 0),
        (4, 1, 24, True, 5),
        (2, 1, 4, False, 0),
        (3, 3, 64, True, 0),
        (6, 2, 8, True, 20),
    ],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_packed_attention(
    H: int, G: int, D: int, is_self: bool, window: int, is_causal: bool
) -> None:
    """Forward and all gradients against float64, sentence by sentence, from 1 row to 70."""
    from gqa_fairseq.training.packed import _Attention

    is_causal = is_causal and is_self
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 17, 5, 70, 16]
    others = lengths if is_self else [3, 1, 33, 9, 16]
    begin, key_begin = (torch.tensor([0, *n]).cumsum(0) for n in (lengths, others))
    widths = (H * D, G * D, G * D)
    parts = [
        torch.randn(sum(n), width, generator=generator)
        for n, width in zip((lengths, others, others), widths, strict=True)
    ]
    exact = [x.double().requires_grad_() for x in parts]
    expected = torch.cat(
        [
            packed_reference(
                *(x.view(len(x), -1, D) for x in (exact[0][a:b], exact[1][c:d], exact[2][c:d])),
                is_causal,
                window,
            )
            for a, b, c, d in zip(begin, begin[1:], key_begin, key_begin[1:], strict=False)
        ]
    )
    upstream = torch.randn(expected.shape, generator=generator)
    expected.backward(upstream.double())

    attention = SimpleNamespace(num_heads=H, num_kv_heads=G, head_dim=D, window=window or None)
    if is_self:
        inputs = [torch.cat(parts, 1).requires_grad_()]
        queries, keys = inputs[0], None
    else:
        inputs = [parts[0].clone().requires_grad_(), torch.cat(parts[1:], 1).requires_grad_()]
        queries, keys = inputs
    out = _Attention.apply(queries, keys, attention, begin, key_begin, is_causal, operators())
    out.backward(upstream)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)
    split = [x.grad for x in inputs]
    found = split[0].split(widths, 1) if is_self else (split[0], *split[1].split(widths[1:], 1))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other.grad, rtol=1e-4, atol=1e-5)


# Dropout


def reference_draws(seed: int, count: int) -> list[int]:
    """The first 16-bit numbers of a seed, by the algorithms as they were published.

    Sixteen xoshiro128++ side by side, seeded by SplitMix64; the lower halves come first.
    """

    def mixed() -> int:
        nonlocal seed
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> 32 - by) % 2**32

    seed = mixed()
    words = [half for _ in range(32) for two in [mixed()] for half in (two % 2**32, two >> 32)]
    states = [words[i::16] for i in range(16)]
    found: list[int] = []
    while len(found) < count:
        drawn = []
        for s in states:
            drawn.append((rotated((s[0] + s[3]) % 2**32, 7) + s[0]) % 2**32)
            t = s[1] << 9 & 0xFFFFFFFF
            s[2] ^= s[0]
            s[3] ^= s[1]
            s[1] ^= s[2]
            s[0] ^= s[3]
            s[2] ^= t
            s[3] = rotated(s[3], 11)
        found += [word % 2**16 for word in drawn] + [word >> 16 for word in drawn]
    return found[:count]


@native_only
@pytest.mark.parametrize("p", [0.1, 0.2, 0.75])
def test_dropout_drops_the_share_and_scales_the_rest(p: float) -> None:
    x = torch.arange(1, 200_004.0)  # no multiple of a vector or a block
    y = operators().dropout(x, None, p, seed=7)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), rtol=2e-5, atol=0)
    deviation = (p * (1 - p) / len(x)) ** 0.5
    assert abs(1 - kept.float().mean() - p) < 4 * deviation
    # Neighbours, the halves of one random word and the blocks are independent.
    for distance in (1, 8, 16, 32, 8192):
        both = (kept[:-distance] & kept[distance:]).float().mean()
        assert abs(both - (1 - p) ** 2) < 8 * deviation
    drawn = reference_draws(7, 100)
    assert kept[:100].tolist() == [word >= round(p * 2**16) for word in drawn]
    added = operators().dropout(x, 2 * x, p, seed=7)
    torch.testing.assert_close(added, y + 2 * x)
    assert torch.equal(operators().dropout(x, None, p, seed=7), y)
    assert not torch.equal(operators().dropout(x, None, p, seed=8) != 0, kept)


# Whole updates


def batch(seed: int, count: int = 9) -> dict[str, Any]:
    """Sentences of different lengths; sources are padded on the left, as fairseq does."""
    sources = random_lines(count, VOCABULARY, seed=seed)
    targets = random_lines(count, VOCABULARY, seed=seed + 100)

    def collate(lines: list[Tensor], left: bool, is_input: bool = False) -> Tensor:
        return data_utils.collate_tokens(lines, PAD, EOS, left, move_eos_to_beginning=is_input)

    return {
        "net_input": {
            "src_tokens": collate(sources, left=True),
            "src_lengths": torch.tensor([len(line) for line in sources]),
            "prev_output_tokens": collate(targets, left=False, is_input=True),
        },
        "target": collate(targets, left=False),
        "ntokens": sum(len(line) for line in targets),
        "nsentences": count,
    }


def criterion(kind: type, smoothing: float = 0.1) -> Any:
    return kind(task(VOCABULARY), sentence_avg=False, label_smoothing=smoothing)


def updated(
    model: Any, kind: type, optimizer: type[torch.optim.Optimizer], updates: int = 4
) -> tuple[list[float], list[Tensor]]:
    """Losses of updates of two batches each, and the parameters after them."""
    model = copy.deepcopy(model).train()
    own, made = criterion(kind), optimizer(model.parameters(), lr=0.01, betas=(0.9, 0.98))
    losses = []
    for update in range(updates):
        made.zero_grad()
        tokens = 0
        for part in range(2):
            loss, size, logged = own(model, batch(10 * update + part))
            loss.backward()
            tokens += size
            losses += [float(logged["loss"]), float(logged["nll_loss"])]
        for p in model.parameters():
            p.grad.div_(tokens)
        made.step()
    return losses, list(model.parameters())


OPTIONS: list[dict[str, Any]] = [
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "encoder_normalize_before": False, "decoder_normalize_before": False},
    {"use_bias": True, "encoder_learned_pos": False, "decoder_learned_pos": False},
    {"attention_placement": "decoder", "num_kv_heads": 4, "activation_fn": "gelu"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_updates_are_fairseqs_in_float64(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    use_float64_softmax(monkeypatch)
    model = build(VOCABULARY, **options).double()
    randomize(model)
    expected, weights = updated(model, LabelSmoothedCrossEntropyCriterion, Adam)
    losses, own = updated(model, ProjectedCrossEntropyCriterion, FusedAdam)
    assert losses == pytest.approx(expected, rel=1e-10)
    for one, other in zip(own, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@native_only
@pytest.mark.parametrize("options", OPTIONS)
def test_packed_updates_are_the_padded_ones(options: dict[str, Any]) -> None:
    model = build(VOCABULARY, **options)
    randomize(model)
    assert can_pack(model.train())
    expected, weights = updated(model.double(), LabelSmoothedCrossEntropyCriterion, Adam)
    losses, own = updated(model.float(), ProjectedCrossEntropyCriterion, FusedAdam)
    assert losses == pytest.approx(expected, rel=2e-5)
    # Adam divides gradients by their size: those near 0 are as uncertain as their signs.
    apart = torch.cat([(a.double() - b).flatten().abs() for a, b in zip(own, weights, strict=True)])
    assert apart.quantile(0.99) < 1e-4
    assert apart.max() < 2e-2


@native_only
def test_packed_gradients_are_stock_fairseqs() -> None:
    model = build(VOCABULARY, use_bias=True)
    randomize(model)
    stock = build_stock(VOCABULARY, model)
    found = {}
    for name, own, kind in (
        ("stock", stock.double(), LabelSmoothedCrossEntropyCriterion),
        ("packed", model, ProjectedCrossEntropyCriterion),
    ):
        loss, _, _ = criterion(kind)(own.train(), batch(5))
        loss.backward()
        found[name] = loss, {n: p.grad for n, p in own.named_parameters()}
    torch.testing.assert_close(found["packed"][0].double(), found["stock"][0].double())
    for name, gradient in found["packed"][1].items():
        other = found["stock"][1][name]
        torch.testing.assert_close(
            gradient.double(),
            other,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda text, at=name: f"{at}: {text}",
        )


@native_only
def test_dropout_of_packed_sentences_follows_the_seed() -> None:
    model = build(VOCABULARY, dropout=0.3).train()
    own = criterion(ProjectedCrossEntropyCriterion)

    def seeded(seed: int) -> float:
        torch.manual_seed(seed)
        return float(own(model, batch(1))[0])

    assert seeded(1) == seeded(1) != seeded(2)
    # The mean over dropout is near what fairseq's criterion and PyTorch's dropout have.
    other = criterion(LabelSmoothedCrossEntropyCriterion)
    with torch.no_grad():
        means = [
            torch.stack([kind(model, batch(1))[0] for _ in range(60)]) for kind in (own, other)
        ]
    deviation = (means[0].var() / 60 + means[1].var() / 60) ** 0.5
    assert abs(means[0].mean() - means[1].mean()) < 4 * deviation


@native_only
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.eval(),
        lambda model: model.double(),
        lambda model: setattr(model.encoder.layers[0].self_attn, "dropout", 0.1),
        lambda model: model.decoder.layers[1].fc1.register_forward_hook(lambda *_: None),
        lambda model: setattr(model.decoder.layers[1], "forward", lambda *_: None),
    ],
)
def test_what_is_not_packed(change: Any) -> None:
    model = build(VOCABULARY).train()
    assert can_pack(model)
    change(model)
    assert not can_pack(model)


def test_half_precision_is_left_to_fairseqs_loss() -> None:
    """Its gradient would be lost: the loss is scaled after it was made."""
    model = build(VOCABULARY)
    assert loss_module._output_weight(model) is not None
    assert loss_module._output_weight(model.half()) is None


def test_where_sentences_are() -> None:
    tokens = torch.tensor([[PAD, 7, EOS], [9, 8, EOS], [EOS, PAD, PAD]])
    at = Sentences.of(tokens, PAD)
    assert at.rows.tolist() == [1, 2, 3, 4, 5, 6]
    assert at.begin.tolist() == [0, 2, 5, 6]


def test_evaluation_and_other_models_have_the_same_loss() -> None:
    """Validation, separate embeddings, accuracy, and fairseq's own Transformer."""
    for options in ({}, {"share_all_embeddings": False}):
        model = build(VOCABULARY, **options)
        for own in (model, build_stock(VOCABULARY, model)):
            found = [
                criterion(kind)(own, batch(4))
                for kind in (LabelSmoothedCrossEntropyCriterion, ProjectedCrossEntropyCriterion)
            ]
            torch.testing.assert_close(found[0][0], found[1][0])
            torch.testing.assert_close(found[0][2], found[1][2])
            assert found[0][1] == found[1][1]
