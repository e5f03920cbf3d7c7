"""Loss and scores against their definitions; held-out lines are counted, fit, or are refused."""

import hashlib
import math
from pathlib import Path

import msgspec
import pytest
import sentencepiece
import torch
from fairseq.data import LanguagePairDataset
from plugin_models import build, dictionary
from sacrebleu.metrics import BLEU

from experiments.config import ModelConfig
from experiments.corpus import check_lengths, read_lines
from experiments.errors import ExperimentError
from experiments.evaluate import batches, nll_nats, score_file
from experiments.layout import DataFolder


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
    bleu_13a, bleu_intl, chrf = score_file(path, references)
    metric = BLEU(tokenize="13a")
    assert bleu_13a["value_0_100"] == metric.corpus_score(hypotheses, [references]).score
    assert bleu_13a["signature"] == str(metric.get_signature())
    assert "tok:intl" in bleu_intl["signature"]
    assert chrf["metric"] == "chrf"
    assert bleu_13a["lines"] == 4
    assert bleu_13a["hypotheses_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_hypothesis_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.greedy.de"
    path.write_text("one\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match="1 lines for 2 references"):
        score_file(path, ["one", "two"])


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
