"""Contenders side by side: the same hypotheses, taken in turn, counted, and shown from the file."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary, indexed_dataset
from hydra import version
from plugin_models import HEADS, build, dictionary, random_lines, randomize, source_batch

from experiments import benchmark
from experiments.engines import ENGINES, EXACT_ENGINES
from experiments.engines.ctranslate2 import is_installed
from experiments.engines.engine import Inputs
from experiments.environment import SPIN_COUNT, compute_environment
from experiments.errors import ExperimentError
from experiments.intensity.machines import _Probe
from experiments.measure import machine, memory
from experiments.measure.decoding import Decoder, Translating, random_model
from experiments.measure.loop import Competitor, measure, turns
from experiments.measure.memory import Peak
from experiments.measure.request import (
    TRAINERS,
    Request,
    RequestedContender,
    RequestedText,
    RequestedTraining,
    check_request,
    decoding_workloads,
    training_workload,
    weights_of,
    with_positions,
    without_refused,
)
from experiments.measure.session import _peaks_here, run_request
from experiments.measure.tables import markdown
from experiments.measure.training import Training
from experiments.measure.workloads import load_text
from experiments.records.measurement import (
    Contender,
    FixedLengths,
    Measurement,
    RealText,
    Samples,
    Timing,
    TrainingText,
    TrainingUpdates,
    median_ratio,
    read_measurement,
    speed_up,
    write_measurement,
)
from experiments.records.parts import CodeInfo, Hardware, Provenance
from experiments.records.storage import read_json, write_json
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.costs import Work, decoding_work
from gqa_fairseq.models.gqa_transformer import architecture_of
from gqa_fairseq.parity import Baseline

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
BASELINE = Baseline(
    d_model=32,
    num_heads=HEADS,
    mha_d_ff=48,
    encoder_layers=1,
    decoder_layers=2,
    vocab_size=44,
    max_source_positions=16,
    max_target_positions=16,
)
MHA, MQA = BASELINE.multi_head, BASELINE.resolve(Variant(1))
LOCAL = BASELINE.resolve(Variant(window=32))
NARROW = BASELINE.resolve(Variant(num_heads=4))
FAIRSEQ_ENGINES = [name for name in EXACT_ENGINES if name != "ctranslate2"]
MULTI_HEAD_ENGINES = ("stock", "stock+beams", "ctranslate2")


def contender(architecture: Architecture = MHA, engine: str = "gqa", **more: Any) -> Any:
    return RequestedContender(architecture=architecture, engine=engine, **more)


def request(*contenders: RequestedContender, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "contenders": list(contenders) or [contender()],
        "shapes": [(2, 6, 5)],
        "beams": [2],
        "repeats": 2,
        "memory": False,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
    }
    return Request(**(values | changes))


def fixed(**changes: Any) -> FixedLengths:
    values: dict[str, Any] = {
        "batch": 2,
        "source_tokens": 6,
        "target_tokens": 5,
        "beam": 4,
        "max_positions": 256,
    }
    return FixedLengths(**(values | changes))


@pytest.fixture(autouse=True)
def hydra_of_fairseq() -> None:
    """fairseq composes as Hydra 1.0 did; tests in the same process compose as Hydra 1.3 does."""
    version.setbase("1.1")


def test_set(**changes: Any) -> RealText:
    values: dict[str, Any] = {
        "name": "job",
        "batch": 4,
        "sentences": 2,
        "source_tokens": 12,
        "beam": 4,
    }
    return RealText(**(values | changes))


# Not a test, whatever its name says; pytest reads this mark, which functions are not typed to have.
test_set.__test__ = False  # type: ignore[attr-defined]


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


class Fake(Competitor):
    """Notes its turns; one batch of two sentences, `tokens` each."""

    def __init__(
        self, name: str, log: list[str], tokens: list[int], architecture: Architecture = MHA
    ) -> None:
        self.contender = Contender(architecture=architecture, engine=name, weights="random")
        self.name, self.log, self.left = name, log, tokens
        self.encoder_s = None if name == "ctranslate2" else 0.25
        self.last = 0

    def run(self) -> None:
        self.log.append(self.name)
        self.last = self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def tokens(self) -> int:
        return 2 * self.last

    def best(self) -> list[list[int]]:
        return [[len(self.name)] * self.last, [3] * self.last]

    def is_comparable(self) -> bool:
        return self.name != "ctranslate2"

    def work(self) -> Work:
        return Work({"weights": 100}, 1000)


def probe(log: list[str]) -> Any:
    rates = iter(range(1, 100))
    return SimpleNamespace(
        device=CPU,
        read_bytes_per_s=lambda: log.append("read") or float(next(rates)),
        flops_per_s=lambda: log.append("matrix") or 7.0,
        int8_flops_per_s=lambda: 9.0,
        step_flops_per_s=float,
    )


def run_fakes(competitors: list[Fake], workload: Any, log: list[str], **more: Any) -> Timing:
    bleu = (lambda best: float(len(best))) if isinstance(workload, RealText) else None
    options = {"warmup_runs": 1, "repeats": 2} | more
    return measure(competitors, workload, probe(log), bleu=bleu, **options)


def test_contenders_take_turns_and_the_first_round_is_warm_up() -> None:
    log: list[str] = []
    rounds: list[tuple[int, int]] = []
    competitors = [Fake(name, log, [5]) for name in ("a", "bb", "ctranslate2")]
    competitors[0].peak = Peak(5, "process_rss")
    result = run_fakes(competitors, fixed(), log, on_round=lambda *done: rounds.append(done))
    probed = ["read", "matrix"]
    assert log == [
        *("a", "bb", "ctranslate2", *probed),
        *("ctranslate2", "bb", "a", *probed),
        *("bb", "ctranslate2", "a", *probed),
    ]
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    assert result.read_bytes_per_s == [2.0, 3.0]
    assert result.matrix_flops_per_s == [7.0, 7.0]
    assert result.int8_flops_per_s == [9.0, 9.0]
    assert result.step_flops_per_s == [8.0, 8.0]  # of 2 sentences with 4 beams
    first, second, third = result.samples
    assert [len(s.total_s) for s in result.samples] == [2, 2, 2]
    assert first.encoder_s == [0.25, 0.25]
    assert third.encoder_s is third.raw_s("decoder") is None
    assert {s.tokens_produced for s in result.samples} == {10}
    assert (first.differing, second.differing) == (0, 1)
    assert third.differing is None  # it ends a forced length in its own way
    assert (first.peak_memory_bytes, second.peak_memory_bytes) == (5, None)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_order_is_followed_by_its_reverse_and_everyone_comes_first(count: int) -> None:
    orders = [turns(count, i) for i in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert all(orders[i + 1] == orders[i][::-1] for i in range(0, 2 * count, 2))
    assert {order[0] for order in orders} == set(range(count))


@pytest.mark.parametrize(("rounds", "order"), [(2, [0, 1]), (4, [0, 1, 2])])
def test_a_steady_drift_cancels_from_every_pair(rounds: int, order: list[int]) -> None:
    at = itertools.count(100)
    seconds: dict[int, list[float]] = {i: [] for i in order}
    for count in range(rounds):
        for i in turns(len(order), count):
            seconds[i].append(float(next(at)))
    for i, j in itertools.combinations(order, 2):
        differences = [a - b for a, b in zip(seconds[i], seconds[j], strict=True)]
        assert sum(differences) == 0


def test_hypotheses_are_compared_within_an_architecture() -> None:
    log: list[str] = []
    competitors = [Fake("a", log, [4]), Fake("bb", log, [3], MQA)]
    found = run_fakes(competitors, test_set(), log).samples
    assert [s.differing for s in found] == [0, 0]
    assert [s.bleu for s in found] == [2.0, 2.0]  # of the best of the two sentences


@pytest.mark.parametrize(
    ("workload", "words"), [(fixed(), "bb: 8 tokens, not 10"), (test_set(), "8 tokens, not 10")]
)
def test_other_tokens_than_forced_or_than_before_are_an_error(workload: Any, words: str) -> None:
    log: list[str] = []
    competitors = [Fake("a", log, [5]), Fake("bb", log, [5, 4])]
    with pytest.raises(ExperimentError, match=words):
        run_fakes(competitors, workload, log)


@pytest.mark.parametrize("rounds", [3, 5, 6, 9, 20])
def test_the_interval_has_the_true_median_as_often_as_it_says(rounds: int) -> None:
    draw = random.Random(rounds)
    trials, hits, confidence = 4000, 0, 0.0
    for _ in range(trials):
        found = median_ratio([draw.lognormvariate(0.3, 0.5) for _ in range(rounds)])
        confidence = found.confidence
        assert found.low <= found.median <= found.high
        hits += found.low <= 2.718281828459045**0.3 <= found.high
    deviation = (confidence * (1 - confidence) / trials) ** 0.5
    assert abs(hits / trials - confidence) < 4 * deviation
    assert (confidence >= 0.95) == (rounds >= 6)


def test_the_request_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    asked = request(
        contender(MQA, checkpoint="a.pt", data="bin", jobs=["a" * 64], training_command=["x"]),
        training=RequestedTraining(batch=3, repeats=4),
    )
    write_json(path, asked)
    assert read_json(path, Request) == asked
    path.write_bytes(path.read_bytes().replace(b'"beams"', b'"beam"'))
    with pytest.raises(ExperimentError, match=r"request.json.*beam"):
        read_json(path, Request)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shapes": []}, "shapes is empty"),
        ({"shapes": [(2, 6, 5), (1, 6, 5), (2, 6, 5)]}, "shapes: 2x6x5 is there twice"),
        ({"shapes": [(2, 6, 1)]}, "2x6x1: .* 2 tokens"),
        ({"shapes": [(0, 6, 5)]}, "0x6x5: a batch has at least 1 sentence"),
        ({"beams": []}, "beams is empty"),
        ({"beams": [4, 4]}, "beams: 4 is there twice"),
        ({"beams": [0]}, "beams: 0 is not a whole number above 0"),
        ({"searches": [(2, 6, 5, 0)]}, "2x6x5x0: a batch has at least 1 sentence"),
        ({"searches": [(2, 6, 5, 4)] * 2}, "searches: 2x6x5x4 is there twice"),
        ({"shapes": [], "training": RequestedTraining(batch=1)}, "shapes is empty"),
        ({"contenders": [contender(), contender()]}, "contenders: mha, gqa is there twice"),
        ({"contenders": [contender(engine="fast")]}, "unknown engine 'fast': choose of gqa, gqa"),
        ({"contenders": [contender(MQA, "stock")]}, r"nothing to measure.*\(choose of gqa, gqa"),
        ({"contenders": [contender(checkpoint="a.pt")]}, "checkpoint without the folder of data"),
        ({"training": RequestedTraining(batch=1, text="x"), "memory": True}, "at fixed lengths"),
        ({"training": RequestedTraining(batch=1, trainers=["x"])}, "trainer 'x' is unknown"),
    ],
)
def test_a_request_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError, match=words) as caught:
        check_request(request(**changes))
    assert "\n" not in str(caught.value)


def test_what_an_engine_refuses_is_left_out_and_said() -> None:
    asked = request(contender(MQA, "stock"), contender(MQA), contender(MHA, "stock"))
    (line,) = check_request(asked)
    assert line.startswith("mqa, stock: left out: stock is multi-head only")
    assert [c.name for c in without_refused(asked)] == ["mqa, gqa", "mha, stock"]


def test_weights_are_trained_for_all_or_for_none() -> None:
    one = contender(checkpoint="a.pt", data="bin")
    other = contender(MQA, checkpoint="b.pt", data="bin")
    assert weights_of([one, other], needed_positions=16) == "trained"
    assert weights_of([one, other], needed_positions=17) == "random"
    assert weights_of([one, contender(MQA)], needed_positions=1) == "random"


def test_the_positions_are_the_models_or_as_many_as_the_shape_needs() -> None:
    asked = request(contender(), shapes=[(2, 6, 5), (2, 5, 20)], beams=[1])
    assert [w.max_positions for w in decoding_workloads(asked)] == [16, 20]
    longer = with_positions(MHA, 20)
    assert (longer.max_source_positions, longer.max_target_positions) == (20, 20)
    assert with_positions(MHA, 10) == MHA


def test_each_search_has_a_beam_of_its_own() -> None:
    asked = request(shapes=[], beams=[], searches=[(2, 6, 5, 4), (3, 5, 6, 1)])
    assert check_request(asked) == []
    assert [(w.batch, w.target_tokens, w.beam) for w in decoding_workloads(asked)] == [
        (2, 5, 4), (3, 6, 1),
    ]  # fmt: skip
    alone = request(shapes=[], beams=[], training=RequestedTraining(batch=1))
    assert check_request(alone) == []


def test_contenders_of_an_architecture_have_the_same_random_weights() -> None:
    (first, _), (second, _) = random_model(MQA), random_model(MQA)
    states = [model.state_dict() for model in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_cache_of_a_window_is_measured_as_such() -> None:
    (workload,) = decoding_workloads(request())
    local = contender(BASELINE.resolve(Variant(1, window=3)))
    own = Decoder(local, CPU, torch.float32, is_alone=False).take(workload, "random", None)
    own.run()
    assert own.tokens() == 10  # compares what was held with the formula
    assert own.kv_cache_bytes == 2 * 2 * 4 * 4 * (2 * 6 + 2 * 2 * 3)


def test_a_cache_of_another_size_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (workload,) = decoding_workloads(request())
    decoder = Decoder(contender(MQA), CPU, torch.float32, is_alone=False)
    own = decoder.take(workload, "random", None)
    own.run()
    assert own.tokens() == 10
    # K and V of 2 layers and one head of 4: the source once a sentence, the target once a beam.
    assert own.kv_cache_bytes == 2 * 2 * 4 * 4 * (2 * 6 + 2 * 2 * 5)
    own = decoder.take(workload, "random", None)
    monkeypatch.setattr(
        own.translator, "held_cache_bytes", lambda: {"self": 1, "cross": 2}, raising=True
    )
    own.run()
    with pytest.raises(ExperimentError, match=r"mqa, gqa: the KV cache holds .*'self': 1"):
        own.tokens()


def test_peak_memory_is_that_of_one_contender_in_a_new_process() -> None:
    wide = replace(MQA, vocab_size=30_000, decoder_d_ff=50_000)
    asked = request(contender(wide), shapes=[(40, 8, 8), (1, 2, 2)])
    workloads = decoding_workloads(asked)
    ballast = torch.ones(400_000_000, dtype=torch.uint8)  # of this process, not of that one
    arguments = (asked, asked.contenders[0])
    both = memory.in_fresh_process("wide", _peaks_here, arguments, workloads)
    (alone,) = memory.in_fresh_process("wide", _peaks_here, arguments, workloads[1:])
    assert {peak.kind for peak in [*both, alone]} == {"process_rss"}
    assert 4 * wide.parameters < alone.size_bytes < both[0].size_bytes
    own = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    assert both[0].size_bytes < own - ballast.nbytes // 2
    # What the larger workload took before is not counted again.
    assert both[1].size_bytes - alone.size_bytes < (both[0].size_bytes - alone.size_bytes) / 2


@pytest.mark.long
def test_without_a_restart_of_the_peak_each_workload_gets_a_process() -> None:
    assert memory.in_fresh_process("x", one_peak, (), [3, 4]) == [
        Peak(3, "process_rss"),
        Peak(4, "process_rss"),
    ]
    with pytest.raises(ExperimentError, match="x: the process that measures memory ended"):
        memory.in_fresh_process("x", end_process, (), [1])


def one_peak(workloads: list[int]) -> list[Peak]:
    return [Peak(workloads[0], "process_rss")]


def end_process(workloads: list[int]) -> list[Peak]:
    os._exit(9)


def training_command(folder: Path) -> list[str]:
    """A corpus with a dictionary alone, and the command of a job on it."""
    vocabulary = dictionary()
    for language in ("en", "de"):
        vocabulary.save(str(folder / f"dict.{language}.txt"))
    options = {
        "--user-dir": ROOT / "gqa_fairseq",
        "--task": "gqa_translation",
        "--source-lang": "en",
        "--target-lang": "de",
        "--arch": "gqa_transformer",
        "--num-kv-heads": 1,
        "--mha-ffn-embed-dim": 48,
        "--encoder-embed-dim": 32,
        "--decoder-embed-dim": 32,
        "--encoder-attention-heads": HEADS,
        "--decoder-attention-heads": HEADS,
        "--encoder-layers": 1,
        "--decoder-layers": 2,
        "--max-source-positions": 16,
        "--max-target-positions": 16,
        "--criterion": "label_smoothed_cross_entropy",
        "--optimizer": "adam",
        "--lr": 0.001,
        "--max-tokens": 500,
        "--distributed-world-size": 4,
    }
    flags = ["--share-all-embeddings", "--encoder-learned-pos", "--decoder-learned-pos", "--cpu"]
    flags += ["--encoder-normalize-before", "--decoder-normalize-before"]
    pairs = [str(part) for option in options.items() for part in option]
    return ["fairseq-train", str(folder), *pairs, *flags]


def test_training_updates_are_a_workload_of_the_same_measurement(tmp_path: Path) -> None:
    own = contender(MQA, jobs=["a" * 64], training_command=training_command(tmp_path))
    training = RequestedTraining(batch=3, repeats=4, source_tokens=20, target_tokens=7)
    rounds: list[tuple[str, int, int]] = []
    asked = request(own, contender(MHA), training=training, memory=True)
    found = run_request(asked, on_round=lambda *done: rounds.append(done))
    decoding, updates = found.timings
    assert [s.contender.name for s in decoding.samples] == ["mqa, gqa", "mha, gqa"]
    assert updates.workload == training_workload(training)
    assert updates.rounds == 4
    (samples,) = updates.samples
    assert samples.contender.name == "mqa, fairseq"
    assert samples.contender.jobs == ("a" * 64,)
    assert samples.tokens_produced == 3 * 7
    assert samples.encoder_s is samples.flops is samples.kv_cache_bytes is None
    assert all(s.peak_memory_bytes for s in [*decoding.samples, *updates.samples])
    assert found.jobs == {"a" * 64}
    assert rounds[-1] == (updates.workload.title, 5, 5)
    assert "training update, 3 sentences" in markdown([found])


def test_training_on_real_batches_by_all_trainers(tmp_path: Path) -> None:
    """The plugin's updates, stock fairseq's and the products alone: the same real target tokens."""
    command = [*training_command(tmp_path), "--target-tokens-per-update", "20"]
    vocabulary = dictionary()
    lines = random_lines(9, vocabulary)
    for language in ("en", "de"):
        prefix = str(tmp_path / f"train.en-de.{language}")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", len(vocabulary))
        for line in lines:
            builder.add_item(line.int())
        builder.finalize(f"{prefix}.idx")
    command[command.index("--num-kv-heads") + 1] = str(HEADS)
    command += ["--encoder-ffn-embed-dim", "48", "--decoder-ffn-embed-dim", "48"]
    training = RequestedTraining(batch=2, repeats=2, text="tiny", trainers=list(TRAINERS))
    own = contender(MHA, training_command=command)
    found = run_request(request(own, shapes=[], beams=[], training=training))
    (timing,) = found.timings
    assert isinstance(timing.workload, TrainingText)
    assert timing.workload.updates == 2
    assert [s.contender.engine for s in timing.samples] == list(TRAINERS)
    assert {s.tokens_produced for s in timing.samples} == {timing.workload.target_tokens}
    assert 0 < timing.workload.target_tokens < sum(map(len, lines))
    write_measurement(tmp_path / "found.json", found)
    shown = markdown([read_measurement(tmp_path / "found.json")])
    assert "2 training updates: tiny, real text" in shown
    assert "times as fast as stock" in shown
    assert "times as fast as products" in shown


def trained_on_text(folder: Path) -> tuple[RequestedContender, RequestedText]:
    """A corpus of seven test sentences, prepared, and a checkpoint of a model for it."""
    texts = {
        language: [f"{language} {' '.join('abcdefg'[: i + 1])}" for i in range(7)]
        for language in ("en", "de")
    }
    (folder / "text").mkdir(parents=True)
    (folder / "bin").mkdir()
    for language, lines in texts.items():
        path = folder / f"text/test.{language}"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts["en"] + texts["de"]),
        model_prefix=str(folder / "spm"),
        vocab_size=18,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    command = training_command(folder / "bin")  # whose words are no pieces: only the ids matter
    vocabulary = Dictionary()
    for index in range(3, 18):
        vocabulary.add_symbol(pieces.id_to_piece(index))
    for language, lines in texts.items():
        vocabulary.save(str(folder / f"bin/dict.{language}.txt"))
        prefix = str(folder / f"bin/test.en-de.{language}")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", len(vocabulary))
        for line in lines:
            tokens = " ".join(pieces.encode(line, out_type=str))
            builder.add_item(vocabulary.encode_line(tokens, add_if_not_exist=False).int())
        builder.finalize(f"{prefix}.idx")
    architecture = replace(MQA, vocab_size=len(vocabulary))
    own = contender(
        architecture,
        checkpoint=str(folder / "model.pt"),
        data=str(folder / "bin"),
        jobs=["a" * 64],
        training_command=command,
    )
    trainer = Training(own, TrainingUpdates(batch=1, source_tokens=4, target_tokens=4)).trainer
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(folder / "model.pt"), {"train_iterator": {"epoch": 1}})
    text = RequestedText(
        name="tiny",
        data=str(folder),
        source_lang="en",
        target_lang="de",
        batch=4,
        length_alpha=0.6,
        max_len_a=1.0,
        max_len_b=3,
    )
    return own, text


def test_real_text_is_translated_with_trained_weights_and_scored(tmp_path: Path) -> None:
    own, text = trained_on_text(tmp_path / "first")
    other = msgspec.structs.replace(own, engine="gqa+stock")
    found = run_request(request(own, other, shapes=[], text=text, beams=[2, 1]))
    assert [t.workload.beam for t in found.timings] == [2, 1]
    for timing in found.timings:
        assert isinstance(timing.workload, RealText)
        assert timing.workload.sentences == 7
        assert [s.contender.weights for s in timing.samples] == ["trained", "trained"]
        assert [s.differing for s in timing.samples] == [0, 0]
        scores = {s.bleu for s in timing.samples}
        assert len(scores) == 1
        assert 0 <= scores.pop() <= 100
        assert {s.kv_cache_bytes for s in timing.samples} == {None}
    assert "tiny, real text, 7 sentences" in markdown([found])

    lines = load_text(text)
    vocabulary = Dictionary.load(str(tmp_path / "first/bin/dict.de.txt"))
    references = (tmp_path / "first/text/test.de").read_text().split("\n")[:-1]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "first/spm.model"))
    # The batches begin with the longest sentence, which is the last line.
    exact = [
        vocabulary.encode_line(" ".join(pieces.encode(line, out_type=str))).tolist()
        for line in references[::-1]
    ]
    assert lines.bleu(exact) == pytest.approx(100)
    assert lines.bleu(exact[::-1]) < 100

    wrong = msgspec.structs.replace(own, architecture=replace(own.architecture, bias=True))
    with pytest.raises(ExperimentError, match=r"model.pt: not mqa: bias is False, not True"):
        run_request(request(wrong, shapes=[], text=text))
    (tmp_path / "first/text/test.de").write_text("one\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match="has 1 lines but 7 binarized ones"):
        load_text(text)


def test_a_shape_beyond_the_positions_of_the_checkpoint_has_random_weights(tmp_path: Path) -> None:
    own, _ = trained_on_text(tmp_path)
    found = run_request(request(own, shapes=[(1, 4, 4), (1, 4, 17)], beams=[1], repeats=1))
    weights = [timing.samples[0].contender.weights for timing in found.timings]
    assert weights == ["trained", "random"]
    assert [timing.workload.max_positions for timing in found.timings] == [16, 17]


def test_a_training_command_of_another_architecture_is_refused(tmp_path: Path) -> None:
    own = contender(MHA, training_command=training_command(tmp_path))
    with pytest.raises(ExperimentError, match=r"the training command: not mha: .*num_kv_heads=1"):
        run_request(request(own, training=RequestedTraining(batch=1)))


def test_forced_lengths_from_the_command_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.json"
    shape = ["--size", "small", "--vocab-size", "90", "--shapes", "2x6x5", "--repeats", "1"]
    assert benchmark.main([*shape, "--kv-heads", "8,2", "--beams", "4,1", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    found = read_measurement(out)
    assert [t.workload.beam for t in found.timings] == [4, 1]
    installed = [name for name in EXACT_ENGINES if name != "ctranslate2" or is_installed()]
    assert ("not installed" in shown.err) == (len(installed) < len(EXACT_ENGINES))
    expected = [("mha", name) for name in installed]
    expected += [("gqa2", name) for name in installed if name not in MULTI_HEAD_ENGINES]
    for timing in found.timings:
        names = [(s.contender.architecture.name, s.contender.engine) for s in timing.samples]
        assert names == expected
        assert {s.tokens_produced for s in timing.samples} == {2 * 5}
        own = [s for s in timing.samples if s.contender.engine in FAIRSEQ_ENGINES]
        assert {s.differing for s in own} == {0}
        assert {s.contender.weights for s in timing.samples} == {"random"}
    assert "random weights, 256 positions" in shown.out
    assert found.provenance.threads == 1

    assert benchmark.main(["--show", str(out)]) == 0
    assert capsys.readouterr().out == markdown([found])


def samples(
    engine: str, total_s: list[float], encoder_s: list[float] | None, **changes: Any
) -> Samples:
    architecture = changes.pop("architecture", MHA)
    values: dict[str, Any] = {
        "contender": Contender(architecture=architecture, engine=engine, weights="random"),
        "tokens_produced": 10,
        "differing": 0,
        "bleu": None,
        "total_s": total_s,
        "encoder_s": encoder_s,
        "bytes_by_part": {"weights": 300, "self_kv": 100},
        "flops": 50,
        "peak_memory_bytes": 3 * 2**20,
        "peak_memory_kind": "process_rss",
    }
    return Samples(**(values | changes))


def measurement(found: list[Samples], workload: Any = None) -> Measurement:
    timing = Timing(
        workload=workload or fixed(),
        warmup_runs=1,
        samples=found,
        read_bytes_per_s=[100.0, 400.0, 200.0],
        matrix_flops_per_s=[1000.0],
    )
    hardware = Hardware(cpu_model="Synthetic CPU", cores_usable=2, memory_bytes=2**30, gpus=[])
    code = CodeInfo(commit="a" * 40, dirty=False, digest="b" * 64)
    return Measurement(
        created_utc=datetime(2026, 1, 2, tzinfo=UTC),
        provenance=Provenance(
            code=code, versions={"torch": "2.13.0"}, hardware=hardware, threads=2
        ),
        device="cpu",
        dtype="float32",
        operators="PyTorch",
        timings=[timing],
    )


def test_the_table_is_computed_from_the_samples() -> None:
    found = [
        samples("gqa", [5.0, 9.0, 6.0], [1.0, 2.0, 2.0]),
        samples("stock", [12.0, 14.0, 13.0], [2.0, 2.0, 2.0], flops=10**5, bleu=12.5),
        samples("ctranslate2", [9.0, 9.0, 9.0], None, differing=None, peak_memory_bytes=None),
    ]
    text = markdown([measurement(found)])
    heading, ruler, *rows = [line for line in text.split("\n") if line.startswith("|")]
    assert "times as fast as stock: decoder / total" in heading
    assert "times as fast as ctranslate2: decoder / total" in heading
    assert heading.count("|") == ruler.count("|")
    assert "KV cache" not in heading  # nobody has one
    # Decoder medians 4 and 11 s for 10 tokens; 400 bytes at 200 B/s are 2 s, 1e5 operations 100 s.
    # Ratios of the rounds: decoder 10/4, 12/7, 11/4, in total 12/5, 14/9, 13/6.
    assert rows == [
        "| mha | gqa | 200,000 | 400,000 | 600,000 | 2.50 (1.71-2.75) / 2.17 (1.56-2.40) "
        "| - / 1.50 (1.00-1.80) | 2.0 (memory) | 50% | 3 | 0 of 2 | - |",
        "| mha | stock | 200,000 | 1,100,000 | 1,300,000 | 1 / 1 | - / 0.69 (0.64-0.75) "
        "| 0.1 (arithmetic) | 18% | 3 | 0 of 2 | 12.50 |",
        "| mha | ctranslate2 | - | - | 900,000 | - / 1.44 (1.33-1.56) | - / 1 | - | - | - | - "
        "| - |",
    ]
    assert "**beam 4, batch 2: 6 source and 5 target tokens (random weights, 256 po" in text
    assert "Medians of 3 rounds" in text
    assert "an interval with 75% confidence" in text


def test_with_several_architectures_our_own_multi_head_is_a_reference() -> None:
    found = [
        samples("gqa", [6.0], [1.0]),
        samples("gqa", [3.5], [1.0], architecture=MQA),
    ]
    text = markdown([measurement(found, fixed(max_positions=1024, beam=1))])
    assert "times as fast as mha: decoder / total" in text
    assert "| 2.00 / 1.71 |" in text  # one round has no interval
    assert "One round gives no interval." in text
    assert "random weights, 1,024 positions" in text
    assert "**greedy" in text


def test_one_contender_is_compared_with_nobody() -> None:
    updates = TrainingUpdates(batch=2, source_tokens=6, target_tokens=5)
    one = samples("fairseq", [1.0, 2.0], None, bytes_by_part={}, flops=None, differing=None)
    text = markdown([measurement([one], updates)])
    assert "times as fast" not in text
    assert "| architecture | engine | total µs/token | peak MiB |" in text


def test_the_ratios_are_of_the_rounds_and_not_of_the_medians() -> None:
    base, own = samples("gqa", [1.0, 10.0, 4.0], None), samples("stock", [2.0, 5.0, 4.0], None)
    found = speed_up(base, own, "total")
    assert found is not None
    assert (found.median, found.low, found.high) == (1.0, 0.5, 2.0)
    assert speed_up(base, own, "decoder") is None


def test_the_document_shows_what_the_files_hold() -> None:
    """Numbers are generated: `--show results/measurements/*.json` between the two marks."""
    files = sorted((ROOT / "results/measurements").glob("*.json"))
    if not files:
        pytest.skip("results/measurements has no measurement yet")
    document = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- engines -->\n(.*)<!-- /engines -->", document, flags=re.DOTALL)
    assert block == markdown([read_measurement(path) for path in files])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "32x128"], "'32x128' is not BATCHxSOURCExTARGET"),
        (["--shapes", "2x3x1"], "2 tokens (one ends"),
        (["--shapes", "2xax4"], "'a' is not a whole number above 0"),
        (["--shapes", "2x3x4,2x3x4"], "2x3x4 is there twice"),
        (["--beams", "4,4"], "beams: 4 is there twice"),
        (["--engines", "gqa,fast"], "unknown engine 'fast': choose of gqa, gqa+stock"),
        (["--engines", "gqa,gqa"], "mha, gqa is there twice"),
        (["--kv-heads", "3", "--shapes", "1x2x2"], "--kv-heads: num_kv_heads 3 does not divide 8"),
        (["--kv-heads", "1", "--engines", "stock"], "stock is multi-head only, and the decoder"),
        (["--repeats", "0"], "'0' is not a whole number"),
        (["--job", "nowhere"], "nowhere/record.json: cannot be read"),
        (["--job", "a", "--kv-heads", "8"], "--kv-heads goes with --shapes"),
        (["--job", "a", "--vocab-size", "8"], "--vocab-size goes with --shapes"),
        (["--show", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--job", "a", "--shapes", "1x2x2"], "not allowed with argument"),
        (["--size", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [] if {"--job", "--size"} & set(arguments) else ["--size", "small"]
    assert benchmark.main([*small, *arguments]) == 2
    lines = [x for x in capsys.readouterr().err.split("\n") if x and "left out" not in x]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_measurement(path, measurement([samples("gqa", [1.0, 2.0], [0.5, 0.5])]))
    content = msgspec.json.decode(path.read_bytes())
    content["timings"][0]["samples"][0]["encoder_s"] = [0.5]
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(ExperimentError, match="encoder_s and total_s have different numbers"):
        read_measurement(path)


@pytest.mark.parametrize("arguments", [["--help"], ["--show", "FILE"], ["--repeats", "0"]])
def test_help_tables_and_refusals_import_neither_torch_nor_fairseq(
    arguments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    write_measurement(path, measurement([samples("gqa", [1.0, 2.0], [0.5, 0.5])]))
    given = [str(path) if part == "FILE" else part for part in arguments]
    code = (
        "import sys\n"
        "from experiments import benchmark\n"
        "try: benchmark.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'fairseq'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.endswith("loaded []\n")
    if arguments == ["--help"]:
        assert all(name in done.stdout for name in ENGINES)


def test_everything_that_computes_has_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = compute_environment(3)
    assert found["GOMP_SPINCOUNT"] == SPIN_COUNT
    assert (found["OMP_NUM_THREADS"], found["PYTHONHASHSEED"]) == ("3", "0")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert compute_environment(3)["GOMP_SPINCOUNT"] == "5"


def test_the_measurement_starts_with_that_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def start(command: list[str], **options: Any) -> Any:
        seen.update(options["env"])
        raise ExperimentError("stop")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with pytest.raises(ExperimentError, match="stop"):
        benchmark.measure_in_process(request(threads=3), lambda measured: None)
    assert (seen["GOMP_SPINCOUNT"], seen["OMP_NUM_THREADS"]) == (SPIN_COUNT, "3")


@pytest.mark.parametrize("has_int8", [False, True])
def test_a_probe_multiplies_a_steps_rows_by_weights_in_turn(
    has_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_READ_BYTES", {"cpu": 4096})
    monkeypatch.setattr(machine, "_MATRIX_ROWS", {"cpu": 16})
    monkeypatch.setattr(machine, "_STREAM_BYTES", {"cpu": 4 * 16 * 16 * 4})
    plain = machine.MachineProbe(CPU, torch.float32)
    assert plain.step_flops_per_s(3) is plain.int8_flops_per_s() is None
    probe = machine.MachineProbe(CPU, torch.float32, has_int8, of_steps=True)
    # As many bytes of weights, so four times as many matrices in 8 bits.
    assert len(probe.products) == (16 if has_int8 else 4)
    times = iter([1.0, 3.0])
    monkeypatch.setattr(machine, "now", lambda device: next(times))
    assert probe.step_flops_per_s(3) == len(probe.products) * 2 * 3 * 16 * 16 / 2


def test_a_probe_on_its_own_gives_the_best_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_READ_BYTES", {"cpu": 4096})
    monkeypatch.setattr(machine, "_MATRIX_ROWS", {"cpu": 8})
    device = torch.device("cpu")
    probed = msgspec.convert(machine.best(device, rounds=1), _Probe)
    assert probed.flops_per_s.keys() == {"float32", "bfloat16", "int8"}
    assert min(probed.bytes_per_s, *probed.flops_per_s.values()) > 0
    reads, products = iter([3.0, 9.0, 5.0]), iter([1.0, 6.0, 4.0, 2.0, 3.0, 1.0])
    monkeypatch.setattr(machine.MachineProbe, "read_bytes_per_s", lambda _: next(reads))
    monkeypatch.setattr(machine.MachineProbe, "flops_per_s", lambda _: next(products))
    in_8_bits = iter([7.0, 8.0, 5.0])
    monkeypatch.setattr(machine.MachineProbe, "int8_flops_per_s", lambda _: next(in_8_bits))
    assert machine.best(device, rounds=3) == {
        "bytes_per_s": 9.0,
        "flops_per_s": {"float32": 4.0, "bfloat16": 6.0, "int8": 8.0},
        "memory": None,
    }
