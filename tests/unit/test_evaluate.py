"""Loss and scores against their definitions; held-out lines are counted, fit, or are refused."""

import hashlib
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sentencepiece
import torch
from fairseq.data import LanguagePairDataset
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import build, dictionary, randomize, task
from sacrebleu.metrics import BLEU, CHRF

from data_prep.spec import DataSpec, Manifest, SplitCounts, Subset
from experiments.config import DecodeConfig
from experiments.errors import ExperimentError
from experiments.metrics import METRICS
from experiments.stages import corpus
from experiments.stages.corpus import (
    check_lengths,
    prepare_command,
    prepare_data,
    read_lines,
    read_subsets,
)
from experiments.stages.evaluation.evaluate import (
    nll_nats,
    perplexity_of,
    score_lines,
    searches,
    translate,
)
from experiments.stages.evaluation.translation import batches
from experiments.stages.folders import DataFolder
from experiments.stages.graph import Stage


def dataset(lengths: list[tuple[int, int]]) -> LanguagePairDataset:
    """Random pairs of (source, target) words, each with its end of sentence."""
    vocabulary = dictionary()
    generator = torch.Generator().manual_seed(3)

    def sentence(words: int) -> torch.Tensor:
        ids = torch.randint(vocabulary.nspecial, len(vocabulary), (words,), generator=generator)
        return torch.cat([ids, torch.tensor([vocabulary.eos()])])

    source = [sentence(words) for words, _ in lengths]
    target = [sentence(words) for _, words in lengths]
    return LanguagePairDataset(
        source, [len(s) for s in source], vocabulary,
        target, [len(t) for t in target], vocabulary,
    )  # fmt: skip


def test_the_loss_is_the_sum_over_every_target_token() -> None:
    data = dataset([(3, 5), (9, 0), (1, 7), (4, 4), (2, 12)])
    model = build(dictionary()).double()
    expected = 0.0
    for pair in data:  # one sentence at a time: no padding
        target = pair["target"]
        inputs = torch.cat([target[-1:], target[:-1]])[None]
        source = pair["source"][None]
        logits, _ = model(source, torch.tensor([source.shape[1]]), inputs)
        log_probs = torch.log_softmax(logits[0], dim=-1)
        expected -= log_probs[torch.arange(len(target)), target].sum().item()
    nll, tokens = nll_nats(model, data, batch_sentences=2)
    assert tokens == 5 + 0 + 7 + 4 + 12 + 5
    assert math.isclose(nll, expected, rel_tol=1e-6)  # log-probabilities are float32


def test_a_loss_that_is_no_result_ends_the_evaluation_before_it_translates() -> None:
    assert perplexity_of(2.0) == math.exp(2.0)
    for nats in (math.nan, math.inf, 800.0):
        with pytest.raises(ExperimentError, match=r"the loss on dev is .* nothing was translated"):
            perplexity_of(nats)


def test_batches_hold_every_sentence_once() -> None:
    data = dataset([(n % 4, 2) for n in range(11)])
    found = [i for batch in batches(data, 3) for i in batch["id"].tolist()]
    assert sorted(found) == list(range(11))


def test_scores_are_sacrebleus_with_their_signatures() -> None:
    references = ["Das ist ein Test .", "Öffnen Sie die Datei!", "", "Zeile\u2028mit Trenner"]
    hypotheses = ["Das ist der Test .", "Öffnen Sie eine Datei!", "", "Zeile\u2028mit Trenner"]
    found = score_lines(hypotheses, references, {"test": range(4)}, "de")
    bleu_13a, bleu_intl, chrf = found.scores
    metric = BLEU(tokenize="13a")
    assert bleu_13a["value"] == metric.corpus_score(hypotheses, [references]).score
    assert bleu_13a["signature"] == str(metric.get_signature())
    assert "tok:intl" in bleu_intl["signature"]
    assert [score["metric"] for score in found.scores] == ["bleu", "bleu_intl", "chrf"]
    expected = CHRF()
    assert chrf["value"] == expected.corpus_score(hypotheses, [references]).score
    assert chrf["signature"] == str(expected.get_signature())
    assert (bleu_13a["split"], bleu_13a["lines"]) == ("test", 4)
    text = "".join(f"{line}\n" for line in hypotheses).encode("utf-8")
    assert bleu_13a["hypotheses_sha256"] == hashlib.sha256(text).hexdigest()


def test_every_metrics_counts_of_every_line_come_with_the_scores() -> None:
    references, hypotheses = ["a b c d e", "f g h"], ["a b c d x", "f g"]
    found = score_lines(hypotheses, references, {"test": [0, 1], "test_filtered": [1]}, "de")
    assert [counts.metric for counts in found.counts] == list(METRICS)
    for counts in found.counts:
        assert len(counts.lines) == 2
        assert {s["signature"] for s in found.scores if s["metric"] == counts.metric} == {
            counts.signature
        }


def test_a_missing_hypothesis_is_refused() -> None:
    with pytest.raises(ExperimentError, match="1 translations for 2 references"):
        score_lines(["one"], ["one", "two"], {"test": range(2)}, "de")


def test_a_subset_is_scored_on_its_lines_of_the_same_file() -> None:
    references = ["Das ist ein Test .", "Öffnen Sie die Datei!", "Und noch eine", "Ende gut"]
    hypotheses = ["Das ist der Test .", "Öffnen Sie eine Datei!", "Ganz anders", "Ende gut"]
    parts = {"test": range(4), "test_filtered": [3, 0, 1]}
    scores = score_lines(hypotheses, references, parts, "de").scores
    assert [score["split"] for score in scores] == ["test", "test_filtered"] * 3
    assert len({score["hypotheses_sha256"] for score in scores}) == 1
    kept = (0, 1, 3)
    expected = BLEU(tokenize="intl").corpus_score(
        [hypotheses[i] for i in kept], [[references[i] for i in kept]]
    )
    on_all, on_some = (score for score in scores if score["metric"] == "bleu_intl")
    assert on_some["value"] == expected.score
    assert on_some["lines"] == 3
    assert on_all["value"] != expected.score


def manifest_of(folder: Path, text: str, lines: int) -> DataFolder:
    """A data folder whose test has a subset of `lines` lines, numbered in `text`."""
    (folder / "text").mkdir()
    (folder / "text/test.filtered.lines").write_text(text, encoding="utf-8")
    counts = SplitCounts(read=5, kept=5, dropped={}, source_pieces=9, target_pieces=9)
    manifest = Manifest(
        name="wmt14_en_de", source_lang="en", target_lang="de", licence="", vocab_size=9,
        max_pieces=9, max_ratio=1.5, request="1" * 64, inputs={}, overlap={},
        splits=dict.fromkeys(("train", "dev", "test"), counts),
        subsets={"filtered": Subset(file="text/test.filtered.lines", lines=lines)},
        note="synthetic", files={}, checksum="0" * 64, versions={},
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return DataFolder(folder, "en", "de")


def test_the_manifests_subsets(tmp_path: Path) -> None:
    data = manifest_of(tmp_path, "5\n1\n3\n", 3)
    assert read_subsets(data, test_lines=5) == {"test_filtered": [4, 0, 2]}


@pytest.mark.parametrize("text", ["1\n3\n", "1\n3\n6\n", "0\n1\n3\n", "1\n3\n3\n", "1\n2\nx\n"])
def test_a_subset_that_is_not_the_manifests_is_refused(tmp_path: Path, text: str) -> None:
    data = manifest_of(tmp_path, text, 3)
    with pytest.raises(ExperimentError, match="not 3 different numbers of test's 5 lines"):
        read_subsets(data, test_lines=5)


def prepare_stage(folder: Path) -> Stage:
    return Stage(
        name="prepare", inputs={}, parents=(), label="wmt14_en_de", folder_of_kind=folder
    )  # fmt: skip


def test_a_subset_without_lines_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = prepare_stage(tmp_path)
    stage.folder.mkdir()
    manifest_of(stage.folder, "", 0)
    monkeypatch.setattr(corpus, "_run_once", lambda command: 0)  # its data is prepared
    config: Any = Namespace(data=DataSpec(name="wmt14_en_de", vocab_size=9))
    with pytest.raises(ExperimentError, match="no line of test is in filtered"):
        prepare_data(config, stage)


def test_data_that_cannot_be_prepared_is_an_error_and_no_exit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its command says why; the jobs that need other data go on."""
    config: Any = Namespace(data=DataSpec(name="multi30k_en_de", vocab_size=9, mirror="/no/such"))
    with pytest.raises(ExperimentError, match="the data could not be prepared"):
        prepare_data(config, prepare_stage(tmp_path))
    printed = capfd.readouterr().err
    assert "/no/such" in printed
    # Other jobs of the sweep that need it are not kept waiting by another try.
    with pytest.raises(ExperimentError, match="the data could not be prepared"):
        prepare_data(config, prepare_stage(tmp_path))
    assert capfd.readouterr().err == ""


def test_the_command_of_data_prep_names_every_setting() -> None:
    spec = DataSpec(
        name="wmt14_en_de", source_lang="de", target_lang="en", vocab_size=11, max_pieces=12,
        max_ratio=2.5, mirror="a folder", sources="table.json",
    )  # fmt: skip
    command = prepare_command(spec, Path("out"))
    assert command[1:6] == ["-m", "data_prep", "wmt14_en_de", "--out", "out"]
    assert dict(zip(command[6::2], command[7::2], strict=True)) == {
        "--source-lang": "de", "--target-lang": "en", "--vocab-size": "11", "--max-pieces": "12",
        "--max-ratio": "2.5", "--mirror": "a folder", "--sources": "table.json",
    }  # fmt: skip


def test_other_data_than_a_model_learned_is_refused(tmp_path: Path) -> None:
    data = manifest_of(tmp_path, "1\n", 1)
    data.check("0" * 64, "train mqa-seed1-0")
    with pytest.raises(ExperimentError, match="train mqa-seed1-0 was made with 111111111111"):
        data.check("1" * 64, "train mqa-seed1-0")


def decode_config(**changes: Any) -> DecodeConfig:
    return DecodeConfig(
        **{
            "engine": "gqa", "beam": 4, "length_penalties": ["fairseq", "gnmt"],
            "length_alpha": 0.6, "max_len_a": 0.0, "max_len_b": 12, "batch_sentences": 3,
        } | changes
    )  # fmt: skip


def test_each_penalty_has_a_beam_search_and_greedy_none() -> None:
    both = [("dev", 1, "fairseq"), ("test", 1, "fairseq"), ("test", 4, "fairseq")]
    assert searches(decode_config()) == [*both, ("test", 4, "gnmt")]
    assert searches(decode_config(length_penalties=["gnmt"])) == [
        ("dev", 1, "gnmt"), ("test", 1, "gnmt"), ("test", 4, "gnmt"),
    ]  # fmt: skip


class Words:
    """Stands in for SentencePiece: a piece is a word."""

    def decode(self, pieces: list[str]) -> str:
        return " ".join(pieces)


def undecided_model() -> BaseFairseqModel:
    """A random model whose hypotheses have 2 to 13 tokens and are close in score."""
    model = build(dictionary(), num_kv_heads=2, seed=3).double()
    randomize(model, scale=1.0, seed=3)
    return model


def translated(model: BaseFairseqModel, beam: int, penalty: str, **changes: Any) -> list[str]:
    data, vocabulary = dataset(LENGTHS), dictionary()
    decode = decode_config(**changes)
    words: Any = Words()  # in the place of a SentencePiece model
    return translate(model, task(vocabulary), data, decode, beam, penalty, words, "test")


LENGTHS = [(3 + n % 5, 2) for n in range(12)]
FORMULAS = {
    "fairseq": lambda total, length: total / length**0.6,
    "gnmt": lambda total, length: total / ((5 + length) / 6) ** 0.6,
}


def test_a_penalty_chooses_among_the_hypotheses_of_fairseqs_search() -> None:
    """The oracle is fairseq's own search: its n best without a penalty, ranked by the formula."""
    model, data, vocabulary = undecided_model(), dataset(LENGTHS), dictionary()
    stock = SequenceGenerator([model], vocabulary, beam_size=4, max_len_a=0.0, max_len_b=12)
    expected: dict[str, list[str]] = {name: [] for name in FORMULAS}
    for index in range(len(data)):
        (hypotheses,) = stock.generate([model], data.collater([data[index]]))
        for name, formula in FORMULAS.items():
            best = max(
                hypotheses,
                key=lambda h: formula(h["positional_scores"].sum().item(), len(h["tokens"])),
            )
            expected[name].append(vocabulary.string(best["tokens"]))
    assert expected["fairseq"] != expected["gnmt"]  # else the formulas could be swapped
    for name, lines in expected.items():
        assert translated(model, 4, name) == lines


def test_no_penalty_changes_a_greedy_translation() -> None:
    model = undecided_model()
    plain = translated(model, 1, "fairseq", length_alpha=0.0)
    assert len(set(plain)) > 1
    for penalty in FORMULAS:
        for alpha in (0.6, 3.0):
            assert translated(model, 1, penalty, length_alpha=alpha) == plain


def test_a_held_out_line_without_positions_is_refused(tmp_path: Path) -> None:
    data = DataFolder(tmp_path, "en", "de")
    (tmp_path / "text").mkdir()
    text = [f"a b c d {n}" for n in range(50)]
    for split in ("dev", "test"):
        for language in ("en", "de"):
            data.text(split, language).write_text("\n".join(text) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(tmp_path / "spm"), vocab_size=20,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces_model))
    long_line = "a b c d " * 30
    needed = len(pieces.encode(long_line)) + 1
    data.text("test", "de").write_text(long_line * 9 + "\n", encoding="utf-8")  # only compared
    data.text("test", "en").write_text(f"a b\n{long_line}\n", encoding="utf-8")
    assert read_lines(data.text("test", "en")) == ["a b", long_line]
    check_lengths(needed, data)
    with pytest.raises(ExperimentError, match=f"test.en, line 2: {needed} tokens"):
        check_lengths(needed - 1, data)
