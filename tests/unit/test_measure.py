"""A measurement: what is asked for, whose weights, memory, training, and real text."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sentencepiece
import torch
from contenders import BASELINE, CPU, MHA, MQA, contender, request
from fairseq.data import Dictionary, indexed_dataset
from hydra import version
from plugin_models import HEADS, dictionary, random_lines
from torch import Tensor

from experiments.errors import ExperimentError
from experiments.intensity.machines import _Probe
from experiments.measure import machine, memory
from experiments.measure.decoding import Decoder, random_model
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
from experiments.measure.training import Training
from experiments.measure.workloads import load_text
from experiments.records.measurement import (
    RealText,
    TrainingText,
    TrainingUpdates,
    read_measurement,
    write_measurement,
)
from experiments.records.storage import read_json, write_json
from experiments.report.measured import markdown
from gqa_fairseq.architecture import Variant
from gqa_fairseq.decoding.step import Projection

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hydra_of_fairseq() -> None:
    """fairseq composes as Hydra 1.0 did; tests in the same process compose as Hydra 1.3 does."""
    version.setbase("1.1")


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
    multiply, rows = Projection.__call__, list[int]()

    def counted(self: Projection, x: Tensor) -> Tensor:
        rows.append(len(x))
        return multiply(self, x)

    monkeypatch.setattr(Projection, "__call__", counted)
    monkeypatch.setattr(machine, "now", lambda device: float(len(rows)))
    # One pass before the clock, and one while it runs at a second a product.
    assert probe.step_flops_per_s(3) == 2 * 3 * 16 * 16
    assert rows == [3] * 2 * len(probe.products)


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
