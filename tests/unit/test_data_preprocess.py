"""The dictionary of data_prep's fairseq-preprocess gives what fairseq's own gives."""

import random

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.tokenizer import tokenize_line

from data_prep.transform.preprocess import LineDictionary

WORDS = [f"▁w{number}" for number in range(50)]
# No-break, ideographic and line-separating spaces are white space to fairseq.
LINES = ["", " ", "▁w1\n", "▁w1\u00a0▁w2 \t▁w3\n", "\u3000▁w1\u2028▁w2\x1f▁w3", "<unk> ▁w4 </s>\n"]


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory):
    path = tmp_path_factory.mktemp("dictionary") / "dict.txt"
    path.write_text("".join(f"{word} 1\n" for word in WORDS), encoding="utf-8")
    return LineDictionary.load(str(path)), Dictionary.load(str(path))


@pytest.mark.parametrize("options", [{}, {"append_eos": False}, {"reverse_order": True}])
@pytest.mark.parametrize("tokenizer", [tokenize_line, list])
def test_same_tensors_and_the_same_unknown_words(dictionaries, options, tokenizer):
    draw = random.Random(1)
    lines = LINES + [" ".join(draw.choices([*WORDS, "unknown"], k=40)) for _ in range(20)]
    found = []
    for dictionary in dictionaries:
        unknown: list[str] = []

        def consumer(word, number, dictionary=dictionary, unknown=unknown):
            if number == dictionary.unk_index and word != dictionary.unk_word:
                unknown.append(word)

        tensors = [
            dictionary.encode_line(
                line, tokenizer, add_if_not_exist=False, consumer=consumer, **options
            )
            for line in lines
        ]
        found.append((tensors, unknown))
    (ours, our_unknown), (expected, expected_unknown) = found
    assert our_unknown == expected_unknown
    for tensor, other in zip(ours, expected, strict=True):
        assert tensor.dtype == other.dtype == torch.int32
        assert torch.equal(tensor, other)


def test_words_are_added_as_fairseq_does():
    ours, stock = LineDictionary(), Dictionary()
    for dictionary in (ours, stock):
        for line in ("a b a", "b a"):
            dictionary.encode_line(line)
    assert ours.symbols == stock.symbols
    assert ours.count == stock.count
