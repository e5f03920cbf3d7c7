"""Every engine finds the same translations, counts its work, and says what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contenders import BASELINE, CPU, FAIRSEQ_ENGINES, MHA, MQA
from plugin_models import HEADS, build, dictionary, random_lines, randomize, source_batch

from experiments.engines import ENGINES
from experiments.engines.ctranslate2 import is_installed
from experiments.engines.engine import Inputs
from experiments.measure.decoding import Translating
from experiments.records.measurement import Contender
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.costs import Work, decoding_work
from gqa_fairseq.models.gqa_transformer import architecture_of

torch.set_num_threads(1)
LOCAL = BASELINE.resolve(Variant(window=32))
NARROW = BASELINE.resolve(Variant(num_heads=4))


def on_text(name: str, num_kv_heads: int, beam: int) -> Translating:
    """Two padded batches for a random model whose hypotheses differ in length."""
    vocabulary = dictionary()
    lines = random_lines(7, vocabulary)
    batches = [source_batch(part, vocabulary)["net_input"] for part in (lines[:4], lines[4:])]
    model = build(vocabulary, num_kv_heads=num_kv_heads)
    randomize(model, scale=4.0)
    with torch.no_grad():  # so that some hypotheses end before they are cut
        model.decoder.embed_tokens.weight[vocabulary.eos()] *= 3
    limits = {"beam_size": beam, "max_len_a": 1.0, "max_len_b": 4, "len_penalty": 0.6}
    inputs = Inputs(batches, limits, None, 64)
    architecture = architecture_of(model, "model")
    engine = ENGINES[name]
    translator = engine.start(model, vocabulary, CPU, torch.float32, is_alone=False)
    translator.load(inputs)
    described = Contender(architecture=architecture, engine=name, weights="trained")
    return Translating(described, engine, translator, inputs, torch.float32)


# No engine may end at once. fairseq normalizes the first step's probabilities before it forbids the
# end of sentence, CTranslate2 after: scores differ by a constant, which the length penalty turns
# into another order. Untrained models want to end at once, so CTranslate2 is compared greedily.
@pytest.mark.parametrize(
    ("name", "beam"),
    [(name, beam) for name in FAIRSEQ_ENGINES for beam in (1, 4)] + [("ctranslate2", 1)],
)
def test_every_engine_finds_the_same_translations(name: str, beam: int) -> None:
    if name == "ctranslate2" and not is_installed():
        pytest.skip("ctranslate2 is not installed")
    reference, own = on_text("stock", HEADS, beam), on_text(name, HEADS, beam)
    reference.run()
    expected = reference.best()
    assert len(set(map(len, expected))) > 3
    own.run()
    assert own.best() == expected
    assert own.tokens() == sum(map(len, expected))
    assert (own.encoder_s is None) == (name == "ctranslate2")


def test_the_8_bit_engine_is_another_model() -> None:
    exact, rounded = on_text("gqa", 2, beam=4), on_text("gqa+int8", 2, beam=4)
    scores = [own.translator.translate()[0][0][0]["score"] for own in (exact, rounded)]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("name", ["gqa", "gqa+stock"])
def test_work_is_counted_batch_by_batch_with_its_padding(name: str) -> None:
    own = on_text(name, 2, beam=4)
    own.run()
    found = own.translator.hypotheses(own._found)
    longest = [max(map(len, sentence)) for sentence in found]
    widths = [batch["src_tokens"].shape[1] for batch in own.inputs.batches]
    assert widths[0] != widths[1]
    expected = Work()
    for width, steps in zip(widths, (longest[:4], longest[4:]), strict=True):
        architecture = own.contender.architecture
        assert architecture.num_kv_heads == 2
        expected += decoding_work(
            architecture, beam=4, source_tokens=width, steps=steps, element_bytes=4
        )
    assert own.work() == expected


def test_the_8_bit_engine_moves_a_quarter_of_the_weights_and_no_rate_binds_it() -> None:
    exact, rounded = on_text("gqa", 2, beam=1), on_text("gqa+int8", 2, beam=1)
    exact.run()
    rounded._found = exact._found
    parts, fewer = exact.work().bytes_by_part, rounded.work().bytes_by_part
    assert parts["weights"] / 4 < fewer["weights"] < parts["weights"] / 3
    assert {k: v for k, v in parts.items() if k != "weights"} == {
        k: v for k, v in fewer.items() if k != "weights"
    }
    assert exact.work().flops > 0 == rounded.work().flops


@pytest.mark.parametrize(
    ("engine", "architecture", "device", "dtype", "words"),
    [
        ("gqa", MQA, "cuda", "float16", None),
        ("gqa+stock", MQA, "cpu", "bfloat16", None),
        ("gqa+torch", MQA, "cpu", "float32", None),
        ("gqa+int8", MQA, "cpu", "float32", None),
        ("gqa+int8", MQA, "cpu", "bfloat16", "gqa+int8 needs float32 weights on a CPU"),
        ("gqa+int8", MQA, "cuda", "float32", "gqa+int8 needs float32 weights on a CPU"),
        ("stock", MHA, "cpu", "float32", None),
        ("stock", MQA, "cpu", "float32", "stock is multi-head only, and the decoder of mqa has 1 "),
        ("stock", LOCAL, "cpu", "float32", "the decoder of mha-w32 has a window of 32 positions"),
        ("stock", NARROW, "cpu", "float32", "has 4 heads of 4 for a width of 32"),
        ("stock+beams", MHA, "cuda", "float16", None),
        ("stock+beams", MQA, "cpu", "float32", "stock+beams is multi-head only"),
    ],
)
def test_an_engine_says_what_it_cannot_do(
    engine: str, architecture: Architecture, device: Any, dtype: str, words: str | None
) -> None:
    refusal = ENGINES[engine].refusal(architecture, device, dtype)
    assert (refusal is None) == (words is None)
    assert words is None or words in str(refusal)


def test_ctranslate2_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, module = ENGINES["ctranslate2"], "experiments.engines.ctranslate2"
    monkeypatch.setattr(f"{module}.is_installed", lambda: False)
    refusal = engine.refusal(MHA, "cpu", "float32")
    assert refusal == "ctranslate2 is not installed (pip install ctranslate2)"
    monkeypatch.setattr(f"{module}.is_installed", lambda: True)
    assert engine.refusal(MHA, "cpu", "float32") is None
    assert "multi-head only" in str(engine.refusal(MQA, "cpu", "float32"))
    assert (engine.sees_memory("cpu"), engine.sees_memory("cuda")) == (True, False)
    assert ENGINES["gqa"].sees_memory("cuda")
