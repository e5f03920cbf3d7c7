"""The vocabulary: same text, same bytes; a dictionary of every piece; no text is lost."""

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.spec import DataError
from data_prep.transform.encode import Encoder
from data_prep.transform.vocabulary import FAIRSEQ_SPECIALS, load_pieces, train_vocabulary

# Ordinary lines but the last.
TEXT = [
    "Öffnen Sie die Datei, und speichern Sie sie.",
    "Open the file, and then save it.",
    "Größe 10 x 20 cm",
    "<s> <pad> </s> <unk> <pad> <pad> are not special here",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text").write_text("\n".join(TEXT * 3) + "\n", encoding="utf-8")
    train_vocabulary([folder / "text"], 120, folder, folder / "vocabulary.log")
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder(folder / "spm.model")


def dictionary(folder):
    lines = (folder / "dict.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert all(line.split(" ")[1:] == ["1"] for line in lines)
    return [line.split(" ")[0] for line in lines]


def test_dictionary_has_every_piece_once_and_no_special(folder):
    names = dictionary(folder)
    assert len(names) == len(set(names)) == 120 - 3  # sentencepiece's own <unk>, <s>, </s>
    assert FAIRSEQ_SPECIALS.isdisjoint(names)


def test_same_text_same_bytes_in_another_place(folder, tmp_path):
    train_vocabulary([folder / "text"], 120, tmp_path, tmp_path / "log")
    for name in ("spm.model", "spm.vocab", "dict.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_dictionary_size_does_not_depend_on_the_text(folder, tmp_path):
    text = tmp_path / "text"
    text.write_text("something else entirely, and longer words\n" * 3 + "\n".join(TEXT * 3) + "\n")
    train_vocabulary([text], 120, tmp_path, tmp_path / "log")
    assert len(dictionary(tmp_path)) == len(dictionary(folder))


@given(line=st.one_of(st.text(), st.text(alphabet="<>s/padunk ")))
def test_pieces_are_dictionary_words_or_unknown(folder, encoder, line):
    (pieces,) = encoder.encode([line])
    assert set(pieces) <= {*dictionary(folder), "<unk>"}
    assert " ".join(pieces).split() == pieces  # what fairseq does with them


@given(st.text(alphabet=sorted(set("".join(TEXT[:-1])))))
def test_round_trip(folder, encoder, line):
    (pieces,) = encoder.encode([line])
    text = "".join(pieces).replace("▁", " ").strip()
    assert text == " ".join(unicodedata.normalize("NFKC", line).split())
    assert load_pieces(folder / "spm.model").decode(pieces) == text


def test_an_encoder_goes_to_another_process(encoder):
    assert pickle.loads(pickle.dumps(encoder)).encode(TEXT) == encoder.encode(TEXT)


@pytest.mark.parametrize(
    ("size", "message"),
    [(5, "too small: .* at least \\d+"), (100_000, "too large: .* at most \\d+")],
)
def test_size_that_the_text_does_not_give(folder, tmp_path, size, message):
    with pytest.raises(DataError, match=f"vocab_size is {message}"):
        train_vocabulary([folder / "text"], size, tmp_path, tmp_path / "vocabulary.log")
