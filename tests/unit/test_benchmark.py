"""The command, from its options to the file, the tables, and bad input."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from contenders import FAIRSEQ_ENGINES, MHA, MQA, fixed, request
from suite_configs import compose_config

from experiments import benchmark
from experiments.engines import ENGINES, EXACT_ENGINES
from experiments.engines.ctranslate2 import is_installed
from experiments.environment import SPIN_COUNT, compute_environment
from experiments.errors import ExperimentError
from experiments.records.measurement import (
    Contender,
    Measurement,
    Phase,
    Samples,
    Timing,
    TrainingUpdates,
    read_measurement,
    speed_up,
    write_measurement,
)
from experiments.records.parts import CodeInfo, Hardware, Provenance
from experiments.report.measured import markdown

ROOT = Path(__file__).resolve().parents[2]
MULTI_HEAD_ENGINES = ("stock", "stock+beams", "ctranslate2")


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


def test_models_of_the_configuration_side_by_side(tmp_path: Path) -> None:
    """`--model` measures the architecture that experiments.run trains with the same overrides."""
    out = tmp_path / "models.json"
    own = ["model=tiny", "data=sample_en_de"]
    models = [own, [*own, "attention.window=3"], [*own, "model.d_model=64"]]
    given = [word for model in models for word in ("--model", *model)]
    shape = ["--shapes", "2x6x5", "--beams", "1", "--repeats", "1", "--engines", "gqa"]
    assert benchmark.main([*given, *shape, "--out", str(out)]) == 0
    (timing,) = read_measurement(out).timings
    architectures = [found.contender.architecture for found in timing.samples]
    assert architectures == [compose_config(*model).architecture for model in models]
    assert len(set(architectures)) == len(models)


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


@pytest.mark.parametrize(
    ("document", "mark", "folder"),
    [
        ("decoding", "engines", "measurements"),
        ("study", "training", "measurements/training"),
        ("study", "speed", "measurements/speed"),
        ("study", "variants", "measurements/variants"),
    ],
)
def test_the_document_shows_what_the_files_hold(document: str, mark: str, folder: str) -> None:
    """Numbers are generated: `--show FOLDER/*.json` between the two marks."""
    files = sorted((ROOT / "results" / folder).glob("*.json"))
    text = (ROOT / f"docs/{document}.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"<!-- {mark} -->\n(.*)<!-- /{mark} -->", text, flags=re.DOTALL)
    assert files
    assert block == markdown([read_measurement(path) for path in files])


def test_the_document_says_what_the_native_operators_add() -> None:
    """Its sentence has the medians of the committed rounds."""
    found = []
    for name in ("quickstart-text", "paper-shape"):
        for timing in read_measurement(ROOT / f"results/measurements/{name}.json").timings:
            own, plain = (timing.of("mha", engine) for engine in ("gqa", "gqa+torch"))
            assert own is not None
            assert plain is not None
            ratio = speed_up(plain, own, "decoder")
            assert ratio is not None
            found.append(f"{ratio.median:.1f}")
    text_beam, text_greedy, shape_beam, shape_greedy = found
    sentence = (
        f"with them the decoder is {text_greedy} times as fast in the quickstart's greedy search "
        f"and {text_beam} times with beam 4, and at the paper's shape {shape_greedy} times in "
        f"greedy search and {shape_beam} times with beam 4"
    )
    page = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    assert sentence in " ".join(page.split())


def study() -> str:
    return " ".join((ROOT / "docs/study.md").read_text(encoding="utf-8").split())


def ratio_of(base: Samples, own: Samples, phase: Phase) -> tuple[str, str]:
    """How many times as fast `own` is: the median, and the interval as the study writes it."""
    ratio = speed_up(base, own, phase)
    assert ratio is not None
    return f"{ratio.median:.2f}", f"({ratio.low:.2f} to {ratio.high:.2f})"


def test_the_study_says_how_fast_its_variants_are() -> None:
    """Greedily, against MHA: of the committed rounds."""
    timings = read_measurement(ROOT / "results/measurements/variants/study-shape.json").timings
    (greedy,) = [timing for timing in timings if timing.workload.beam == 1]
    base, *others = (greedy.of(name, "gqa") for name in ("mha", "gqa4", "gqa2", "mqa"))
    assert base
    (four, interval), (two, _), (one, _) = (ratio_of(base, own, "decoder") for own in others if own)
    assert (
        f"four key/value heads make the decoder {four} times as fast as MHA's {interval}, "
        f"two {two} times and one {one} times"
    ) in study()
    four, two, one = (ratio_of(base, own, "total")[0] for own in others if own)
    assert f"With the encoder these are {four}, {two} and {one}" in study()


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        ("total", "take {} of MQA's time greedily {} and {} with beam 4 {}"),
        ("decoder", "96 takes {} times its time there {} and {} with beam 4 {}"),
    ],
)
def test_the_study_says_how_fast_its_smaller_model_is(phase: Phase, sentence: str) -> None:
    said = []
    for timing in read_measurement(ROOT / "results/measurements/width/narrow.json").timings:
        (smaller,) = [s for s in timing.samples if s.contender.architecture.d_model == 96]
        mqa = timing.of("mqa", "gqa")
        assert mqa
        said += ratio_of(smaller, mqa, phase)
    assert sentence.format(*said) in study()


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
        (["--job", "a", "--kv-heads", "8"], "--kv-heads has no use with --job (leave it out)"),
        (["--job", "a", "--vocab-size", "8"], "--vocab-size has no use with --job"),
        (
            ["--training", "experiment=smoke", "--size", "small"],
            "--size has no use",
        ),
        (["--model", "model=mini", "--size", "small"], "--size has no use with --model"),
        (["--model", "model=mini", "--job", "a"], "--model has no use with --job"),
        (
            ["--model", "model=mini", "hardware=gpu8"],
            "hardware=gpu8 is not about a model",
        ),
        (["--model", "uptrain=converted", "uptrain.parent=a.pt"], "uptrain.parent=a.pt: no such"),
        (["--training", "experiment=smoke", "--dtype", "bfloat16"], "--dtype has no use with --tr"),
        (["--training", "experiment=smoke", "--trainers", "foo"], "trainer 'foo' is unknown"),
        (["--show", "a.json", "--repeats", "3"], "--repeats has no use with --show"),
        (["--dtype", "float16"], "a CPU has no float16 of use"),
        (["--vocab-size", "20", "--beams", "30"], "beams: 30 is more than the 20 words"),
        (["--out", "/proc/x.json"], "/proc/x.json: cannot be written"),
        (["--model", "model=huge"], "model=huge: not in conf/model (choose one of base"),
        (["--model", "attention.window=0"], "attention.window"),
        (["--model", "model=mini", "--model", "model=mini"], "mha, gqa is there twice"),
        (["--show", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--job", "a", "--shapes", "1x2x2"], "not allowed with argument"),
        (["--size", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    has_own = {"--job", "--size", "--model", "--training", "--show"} & set(arguments)
    small = [] if has_own else ["--size", "small"]
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


def test_a_job_with_options_of_the_search_is_refused_with_what_can_be_given() -> None:
    job = SimpleNamespace(name="a job", decode=SimpleNamespace(options={"min_len": 3}))
    with pytest.raises(ExperimentError, match="compared without: give another --job, or --shapes"):
        benchmark._request_of_job(argparse.Namespace(), cast(Any, job))
