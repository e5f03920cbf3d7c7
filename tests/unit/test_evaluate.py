"""Loss and scores against their definitions; held-out lines are counted, fit, or are refused."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sentencepiece
import torch
from experiments.corpus import check_lengths, read_data_info, read_lines, read_subsets
from experiments.layout import DataFolder
from fairseq.data import LanguagePairDataset
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator
from plugin_models import build, dictionary, randomize, task
from sacrebleu.metrics import BLEU

from experiments.config import DecodeConfig, ModelConfig
from experiments.errors import ExperimentError
from experiments.evaluate import batches, nll_nats, score_file, searches, translate


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


def test_batches_hold_every_sentence_once() -> None:
    data = dataset([(n % 4, 2) for n in range(11)])
    found = [i for batch in batches(data, 3) for i in batch["id"].tolist()]
    assert sorted(found) == list(range(11))


def test_scores_are_sacrebleus_with_their_signatures(tmp_path: Path) -> None:
    references = ["Das ist ein Test .", "Öffnen Sie die Datei!", "", "Zeile\u2028mit Trenner"]
    hypotheses = ["Das ist der Test .", "Öffnen Sie eine Datei!", "", "Zeile\u2028mit Trenner"]
    path = tmp_path / "test.greedy.de"
    path.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    bleu_13a, bleu_intl, chrf = score_file(path, references, {"test": range(4)})
    metric = BLEU(tokenize="13a")
    assert bleu_13a["value_0_100"] == metric.corpus_score(hypotheses, [references]).score
    assert bleu_13a["signature"] == str(metric.get_signature())
    assert "tok:intl" in bleu_intl["signature"]
    assert chrf["metric"] == "chrf"
    assert (bleu_13a["split"], bleu_13a["lines"]) == ("test", 4)
    assert bleu_13a["hypotheses_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_hypothesis_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.greedy.de"
    path.write_text("one\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match="1 lines for 2 references"):
        score_file(path, ["one", "two"], {"test": range(2)})


def test_a_subset_is_scored_on_its_lines_of_the_same_file(tmp_path: Path) -> None:
    references = ["Das ist ein Test .", "Öffnen Sie die Datei!", "Und noch eine", "Ende gut"]
    hypotheses = ["Das ist der Test .", "Öffnen Sie eine Datei!", "Ganz anders", "Ende gut"]
    path = tmp_path / "test.beam4.de"
    path.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    scores = score_file(path, references, {"test": range(4), "test_filtered": [3, 0, 1]})
    assert [score["split"] for score in scores] == ["test"] * 3 + ["test_filtered"] * 3
    assert len({score["hypotheses_sha256"] for score in scores}) == 1
    kept = (0, 1, 3)
    expected = BLEU(tokenize="intl").corpus_score(
        [hypotheses[i] for i in kept], [[references[i] for i in kept]]
    )
    assert scores[4]["value_0_100"] == expected.score
    assert scores[4]["lines"] == 3
    assert scores[1]["value_0_100"] != expected.score


def manifest_of(folder: Path, text: str, lines: int) -> DataFolder:
    (folder / "text").mkdir()
    (folder / "text/test.filtered.lines").write_text(text, encoding="utf-8")
    subset = {"file": "text/test.filtered.lines", "lines": lines}
    manifest = {
        "name": "wmt14_en_de", "source_lang": "en", "target_lang": "de", "vocab_size": 9,
        "checksum": "0" * 64, "files": {}, "overlap": {}, "subsets": {"filtered": subset},
        "splits": {
            split: {"read": 5, "kept": 5, "dropped": {}} for split in ("train", "dev", "test")
        },
        "note": "synthetic",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return DataFolder(folder)


def test_the_manifests_subsets(tmp_path: Path) -> None:
    data = manifest_of(tmp_path, "5\n1\n3\n", 3)
    assert read_subsets(data, test_lines=5) == {"test_filtered": [4, 0, 2]}
    info = read_data_info(data.manifest)
    assert info.subsets == {"test_filtered": 3}
    assert info.note == "synthetic"


@pytest.mark.parametrize("text", ["1\n3\n", "1\n3\n6\n", "0\n1\n3\n", "1\n3\n3\n", "1\n2\nx\n"])
def test_a_subset_that_is_not_the_manifests_is_refused(tmp_path: Path, text: str) -> None:
    data = manifest_of(tmp_path, text, 3)
    with pytest.raises(ExperimentError, match="not 3 different numbers of test's 5 lines"):
        read_subsets(data, test_lines=5)


def test_a_subset_without_lines_is_refused_before_any_work(tmp_path: Path) -> None:
    data = manifest_of(tmp_path, "", 0)
    with pytest.raises(ExperimentError, match="no line of test is in filtered"):
        read_data_info(data.manifest)


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
    data = DataFolder(tmp_path)
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
    model = ModelConfig(
        num_heads=2, d_model=8, encoder_layers=1, decoder_layers=1, mha_d_ff=8, bias=False,
        norm_before=True, max_positions=needed,
    )  # fmt: skip
    data.text("test", "de").write_text(long_line * 9 + "\n", encoding="utf-8")  # only compared
    data.text("test", "en").write_text(f"a b\n{long_line}\n", encoding="utf-8")
    assert read_lines(data.text("test", "en")) == ["a b", long_line]
    check_lengths(model, data)
    shorter = msgspec.structs.replace(model, max_positions=needed - 1)
    with pytest.raises(ExperimentError, match=f"test.en, line 2: {needed} tokens"):
        check_lengths(shorter, data)
