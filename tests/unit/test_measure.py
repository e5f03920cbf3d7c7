"""Engines side by side: the same hypotheses, taken in turn, counted, and shown from the file."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import synthetic_records as synthetic
import torch
from plugin_models import HEADS, build, dictionary, random_lines, randomize, source_batch

from experiments import benchmark
from experiments.comparison import (
    Comparison,
    ComparisonReport,
    EngineSamples,
    WorkloadInfo,
    markdown,
)
from experiments.engines import (
    EXACT_ENGINES,
    FAIRSEQ_ENGINES,
    MULTI_HEAD_ENGINES,
    build_engine,
    is_installed,
)
from experiments.errors import ExperimentError
from experiments.storage import read_json, write_json
from experiments.workloads import FixedLengths, Workload
from gqa_fairseq.decoding.traffic import Work, decoding_work

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def info(**changes: Any) -> WorkloadInfo:
    values: dict[str, Any] = {
        "model": "wmt_en_de",
        "weights": "random",
        "num_heads": 8,
        "max_positions": 256,
        "beam": 4,
        "batch": 2,
        "sentences": 2,
        "source_tokens": 12,
        "target_tokens": 5,
    }
    return WorkloadInfo(**(values | changes))


def text_workload(num_kv_heads: int, beam: int) -> Workload:
    """Two padded batches for a random model whose hypotheses differ in length."""
    vocabulary = dictionary()
    lines = random_lines(7, vocabulary)
    inputs = [source_batch(part, vocabulary)["net_input"] for part in (lines[:4], lines[4:])]

    def model(kv_heads: int) -> Any:
        built = build(vocabulary, num_kv_heads=kv_heads)
        randomize(built, scale=4.0)
        with torch.no_grad():  # so that some hypotheses end before they are cut
            built.decoder.embed_tokens.weight[vocabulary.eos()] *= 3
        return built

    described = info(
        beam=beam, batch=4, sentences=7, target_tokens=None, weights="trained", max_positions=64
    )
    limits = {"beam_size": beam, "max_len_a": 1.0, "max_len_b": 4, "len_penalty": 0.6}
    return Workload(described, vocabulary, inputs, limits, num_kv_heads, model)


# No engine may end at once. fairseq normalizes the first step's probabilities before it forbids the
# end of sentence, CTranslate2 after: scores differ by a constant, which the length penalty turns
# into another order. Untrained models want to end at once, so CTranslate2 is compared greedily.
@pytest.mark.parametrize(
    ("name", "beam"),
    [(name, beam) for name in FAIRSEQ_ENGINES for beam in (1, 4)] + [("ctranslate2", 1)],
)
def test_every_engine_finds_the_same_translations(name: str, beam: int) -> None:
    if not is_installed(name):
        pytest.skip("ctranslate2 is not installed")
    workload = text_workload(HEADS, beam)
    reference = build_engine("stock", HEADS, workload, CPU, torch.float32)
    engine = build_engine(name, HEADS, workload, CPU, torch.float32)
    expected = [s[0] for s in reference.hypotheses(reference.translate())]
    assert len(set(map(len, expected))) > 3
    assert [s[0] for s in engine.hypotheses(engine.translate())] == expected
    assert (engine.encoder_s is None) == (name == "ctranslate2")


def test_the_8_bit_engine_is_another_model_and_needs_float32() -> None:
    workload = text_workload(2, beam=4)
    exact, rounded = (
        build_engine(name, 2, workload, CPU, torch.float32) for name in ("gqa", "gqa+int8")
    )
    scores = [engine.translate()[0][0][0]["score"] for engine in (exact, rounded)]
    assert scores[0] != scores[1]
    with pytest.raises(ExperimentError, match=r"gqa\+int8: int8 needs float32"):
        build_engine("gqa+int8", 2, workload, CPU, torch.bfloat16)


@pytest.mark.parametrize("name", ["gqa", "gqa+stock"])
def test_work_is_counted_batch_by_batch_with_its_padding(name: str) -> None:
    workload = text_workload(2, beam=4)
    engine = build_engine(name, 2, workload, CPU, torch.float32)
    found = engine.translate()
    longest = [max(len(h["tokens"]) for h in s) for batch in found for s in batch]
    widths = [batch["src_tokens"].shape[1] for batch in workload.batches]
    assert widths[0] != widths[1]
    expected = Work()
    for width, steps in zip(widths, (longest[:4], longest[4:]), strict=True):
        expected += decoding_work(engine.shape, beam=4, source_tokens=width, steps=steps)
    assert engine.work(found) == expected
    assert engine.num_kv_heads == 2


class FakeEngine:
    """Notes its runs; one batch of two sentences, `tokens` each."""

    def __init__(self, name: str, log: list[str], tokens: list[int], kv_heads: int = 8) -> None:
        self.name, self.log, self.num_kv_heads = name, log, kv_heads
        self.tokens = tokens
        self.encoder_s: float | None = None if name == "ctranslate2" else 0.25

    def translate(self) -> list[list[Any]]:
        self.log.append(self.name)
        tokens = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        return [[[[len(self.name)] * tokens], [[3] * tokens]]]

    def hypotheses(self, found: list[list[Any]]) -> list[list[list[int]]]:
        return found[0]

    def work(self, found: list[list[Any]]) -> Work:
        return Work({"weights": 100}, 1000)


def probe(log: list[str]) -> Any:
    rates = iter(range(1, 100))
    return SimpleNamespace(
        device=CPU,
        read_bytes_per_s=lambda: log.append("read") or float(next(rates)),
        flops_per_s=lambda: log.append("matrix") or 7.0,
    )


def run_fakes(engines: list[Any], described: WorkloadInfo, log: list[str]) -> Comparison:
    bleu = None if described.target_tokens else lambda best: float(len(best))
    workload: Any = SimpleNamespace(info=described, bleu=bleu)
    return benchmark.measure(engines, workload, probe(log), 2, {("a", 8): (5, "process_rss")})


def test_engines_run_in_turn_and_the_first_round_is_warm_up() -> None:
    log: list[str] = []
    engines = [FakeEngine(name, log, [5]) for name in ("a", "bb", "ctranslate2")]
    result = run_fakes(engines, info(), log)
    assert log == ["a", "bb", "ctranslate2", "read", "matrix"] * 3
    assert result.read_bytes_per_s == [2.0, 3.0]
    assert result.matrix_flops_per_s == [7.0, 7.0]
    first, second, third = result.engines
    assert [len(e.total_s) for e in result.engines] == [2, 2, 2]
    assert first.encoder_s == [0.25, 0.25]
    assert third.encoder_s is third.decoder_s is None
    assert {e.tokens_produced for e in result.engines} == {10}
    assert (first.differing, second.differing) == (0, 1)
    assert third.differing is None  # it ends a forced length in its own way
    assert (first.peak_memory_bytes, second.peak_memory_bytes) == (5, None)


def test_hypotheses_are_compared_with_as_many_kv_heads() -> None:
    log: list[str] = []
    engines = [FakeEngine("a", log, [4]), FakeEngine("bb", log, [3], kv_heads=1)]
    real_text = info(target_tokens=None, weights="trained")
    found = run_fakes(engines, real_text, log).engines
    assert [e.differing for e in found] == [0, 0]
    assert [e.bleu_0_100 for e in found] == [2.0, 2.0]  # of the best of the two sentences


@pytest.mark.parametrize(
    ("target", "words"), [(5, "bb: 8 tokens, not 10"), (None, "8 tokens, not 10")]
)
def test_other_tokens_than_forced_or_than_before_are_an_error(
    target: int | None, words: str
) -> None:
    log: list[str] = []
    engines = [FakeEngine("a", log, [5]), FakeEngine("bb", log, [5, 4])]
    with pytest.raises(ExperimentError, match=words):
        run_fakes(engines, info(target_tokens=target), log)


def test_forced_lengths_from_the_command_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.json"
    shape = ["--size", "small", "--vocab-size", "90", "--shapes", "2x6x5", "--repeats", "1"]
    assert benchmark.main([*shape, "--kv-heads", "8,2", "--beams", "4,1", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    report = read_json(out, ComparisonReport)
    assert [c.workload.beam for c in report.comparisons] == [4, 1]
    installed = [name for name in EXACT_ENGINES if is_installed(name)]
    assert ("not installed" in shown.err) == (len(installed) < len(EXACT_ENGINES))
    expected = [(name, 8) for name in installed]
    expected += [(name, 2) for name in installed if name not in MULTI_HEAD_ENGINES]
    for comparison in report.comparisons:
        assert [(e.engine, e.num_kv_heads) for e in comparison.engines] == expected
        assert {e.tokens_produced for e in comparison.engines} == {2 * 5}
        differing = {e.differing for e in comparison.engines if e.engine in FAIRSEQ_ENGINES}
        assert differing == {0}
        assert "small (random weights, 256 positions)" in shown.out
    assert report.threads == 1

    assert benchmark.main(["--show", str(out)]) == 0
    assert capsys.readouterr().out == markdown([report])


def test_peak_memory_is_that_of_one_engine_in_a_new_process() -> None:
    spec = FixedLengths("small", 90, batch=2, source=6, target=5, beam=2)
    ballast = torch.ones(400_000_000, dtype=torch.uint8)  # of this process, not of that one
    size, kind = benchmark.peak_memory_in_fresh_process(spec, "gqa", 1, CPU, torch.float32)
    assert kind == "process_rss"
    model = spec.load().build_model(1)
    assert sum(p.nbytes for p in model.parameters()) < size
    own = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    assert size < own - ballast.nbytes // 2


def test_memory_of_a_gpu_is_asked_of_engines_that_torch_sees(monkeypatch) -> None:
    peak = (7, "cuda_allocated")
    monkeypatch.setattr(benchmark, "peak_memory_in_fresh_process", lambda *_: peak)
    monkeypatch.setattr(benchmark, "build_engine", lambda *_: None)
    monkeypatch.setattr(benchmark, "MachineProbe", lambda *_: None)
    monkeypatch.setattr(benchmark, "measure", lambda *arguments: arguments[-1])
    spec = FixedLengths("small", 90, batch=2, source=6, target=5, beam=2)
    engines, heads = ["gqa", "ctranslate2"], spec.load().info.num_heads
    for device, asked in (("cuda", engines[:1]), ("cpu", engines)):
        memory: Any = benchmark.compare(
            spec, engines, [heads], 1, True, torch.device(device), torch.float16
        )
        assert memory == {(engine, heads): peak for engine in asked}


def samples(
    engine: str, total_s: list[float], encoder_s: list[float] | None, **changes: Any
) -> Any:
    values: dict[str, Any] = {
        "engine": engine,
        "num_kv_heads": 8,
        "tokens_produced": 10,
        "differing": 0,
        "bleu_0_100": None,
        "total_s": total_s,
        "encoder_s": encoder_s,
        "bytes_by_part": {"weights": 300, "self_kv": 100},
        "flops": 50,
        "peak_memory_bytes": 3 * 2**20,
        "peak_memory_kind": "process_rss",
    }
    return EngineSamples(**(values | changes))


def report(engines: list[EngineSamples], **changes: Any) -> ComparisonReport:
    record = synthetic.record()
    comparison = Comparison(
        workload=info(**changes),
        warmup_runs=1,
        engines=engines,
        read_bytes_per_s=[100.0, 400.0, 200.0],
        matrix_flops_per_s=[1000.0],
    )
    return ComparisonReport(
        created_utc=datetime(2026, 1, 2, tzinfo=UTC),
        versions={"torch": "2.13.0"},
        hardware=record.hardware,
        code=record.code,
        device="cpu",
        dtype="float32",
        threads=2,
        comparisons=[comparison],
    )


def test_the_table_is_computed_from_the_samples() -> None:
    engines = [
        samples("gqa", [5.0, 9.0, 6.0], [1.0, 2.0, 2.0]),
        samples("stock", [12.0, 14.0, 13.0], [2.0, 2.0, 2.0], flops=10**5, bleu_0_100=12.5),
        samples("ctranslate2", [9.0], None, differing=None, peak_memory_bytes=None),
    ]
    text = markdown([report(engines)])
    heading, ruler, *rows = [line for line in text.split("\n") if line.startswith("|")]
    assert "times as fast as stock: decoder / total" in heading
    assert "times as fast as ctranslate2: decoder / total" in heading
    assert heading.count("|") == ruler.count("|")
    # Decoder medians 4 and 11 s for 10 tokens; 400 bytes at 200 B/s are 2 s, 1e5 operations 100 s.
    assert rows == [
        "| gqa | 8 | 200,000 | 400,000 | 600,000 | 2.75 / 2.17 | - / 1.50 | 2.0 (memory) | 50% "
        "| 3 | 0 of 2 | - |",
        "| stock | 8 | 200,000 | 1,100,000 | 1,300,000 | 1.00 / 1.00 | - / 0.69 "
        "| 0.1 (arithmetic) | 18% | 3 | 0 of 2 | 12.50 |",
        "| ctranslate2 | 8 | - | - | 900,000 | - / 1.44 | - / 1.00 | - | - | - | - | - |",
    ]
    assert "wmt_en_de (random weights, 256 positions), beam 4, batch 2: 6 source and 5" in text


def test_with_several_kv_heads_our_own_multi_head_is_a_reference() -> None:
    engines = [
        samples("gqa", [6.0], [1.0]),
        samples("gqa", [3.5], [1.0], num_kv_heads=1),
    ]
    text = markdown([report(engines, max_positions=1024, beam=1)])
    assert "times as fast as gqa with G = 8: decoder / total" in text
    assert "| 2.00 / 1.71 |" in text
    assert "the same shape with 1,024 positions), greedy" in text


def test_the_document_shows_what_the_files_hold() -> None:
    """Numbers are generated: `--show results/engines/*.json` between the two marks."""
    files = sorted((ROOT / "results/engines").glob("*.json"))
    document = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- engines -->\n(.*)<!-- /engines -->", document, flags=re.DOTALL)
    assert block == markdown([read_json(path, ComparisonReport) for path in files])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "32x128"], "'32x128' is not BATCHxSOURCExTARGET"),
        (["--shapes", "2x3x1"], "2 tokens at least"),
        (["--shapes", "2xax4"], "'a' is not a whole number above 0"),
        (["--engines", "gqa,fast"], "unknown engine 'fast': choose of gqa, gqa+stock"),
        (["--kv-heads", "3", "--shapes", "1x2x2"], "--kv-heads: num_kv_heads 3 does not divide 8"),
        (["--kv-heads", "1", "--engines", "stock"], "stock: multi-head only, and G is 1 of 8"),
        (["--repeats", "0"], "'0' is not a whole number"),
        (["--job", "nowhere"], "nowhere/config.json: cannot be read"),
        (["--show", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--job", "a", "--shapes", "1x2x2"], "not allowed with argument"),
        (["--size", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [] if "--job" in arguments or "--size" in arguments else ["--size", "small"]
    assert benchmark.main([*small, "--vocab-size", "90", *arguments]) == 2
    lines = [x for x in capsys.readouterr().err.split("\n") if x and "left out" not in x]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, report([samples("gqa", [1.0, 2.0], [0.5, 0.5])]))
    content = msgspec.json.decode(path.read_bytes())
    content["comparisons"][0]["engines"][0]["encoder_s"] = [0.5]
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(ExperimentError, match="encoder_s and total_s have different numbers"):
        read_json(path, ComparisonReport)
