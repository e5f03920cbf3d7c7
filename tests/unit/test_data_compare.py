"""What dev and test share with train, and hypotheses that no model made, on cases done by hand."""

import tracemalloc
from itertools import islice
from pathlib import Path

import numpy
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from data_prep.corpora.sample_en_de import Sample
from data_prep.transform import baselines
from data_prep.transform.baselines import nearest, write_baselines
from data_prep.transform.overlap import measure_overlap

TRAIN = [
    ("Open the file menu now.", "Öffnen Sie jetzt das Menü Datei."),
    ("Save the table.", "Speichern Sie die Tabelle."),
    ("Save the table.", "Die Tabelle speichern."),
    ("A b c", "A b c"),
]


def overlap_of(*lines):
    return measure_overlap((source for source, _ in TRAIN), {"test": list(lines)})["test"]


def test_overlap_by_hand():
    # 4-grams: 2 of 2 seen; 1 of 3 seen ("the file menu now"); none; a line of 3 words has none.
    found = overlap_of(
        "open THE file, menu now",
        "the file menu now and then",
        "new words only here",
        "Save it all",
    )
    assert found.four_grams_seen_share == 3 / 6
    assert found.lines_covered_share == 1 / 4
    assert found.duplicate_lines == 1


def test_overlap_counts_a_gram_as_often_as_it_occurs():
    found = overlap_of("the file menu now", "the file menu now", "x y z w")
    assert found.four_grams_seen_share == 2 / 3
    assert found.lines_covered_share == 2 / 3
    assert found.duplicate_lines == 0


def test_no_four_grams_at_all():
    found = overlap_of("", "a b")
    assert (found.four_grams_seen_share, found.lines_covered_share) == (0, 0)


def test_nearest_takes_the_first_of_equals():
    assert nearest(lambda: TRAIN, ["save table", "menu", "a"]) == [
        "Speichern Sie die Tabelle.",
        "Öffnen Sie jetzt das Menü Datei.",
        "A b c",
    ]


def test_nearest_to_nothing_known_is_the_first_line():
    assert nearest(lambda: TRAIN, ["", "xyzzy"]) == [TRAIN[0][1]] * 2


def test_one_hypothesis_a_test_line(tmp_path):
    sources = ["save the table", "", "x\u2028y"] * 50
    write_baselines(lambda: TRAIN, sources, "de", tmp_path)
    copied = (tmp_path / "copy.test.de").read_text(encoding="utf-8")
    assert copied == "".join(f"{line}\n" for line in sources)
    assert (tmp_path / "nearest.test.de").read_text(encoding="utf-8").count("\n") == len(sources)


def test_no_nearest_without_the_training_text(tmp_path):
    write_baselines(None, ["a"], "fr", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.test.fr"]


@pytest.mark.parametrize("text", ["😀", "!?", "", " \u200b "])
def test_text_without_a_word_gives_the_first_line(text):
    assert nearest(lambda: [(text, "eins"), (text, "zwei")], [text, "a", "1"]) == ["eins"] * 3


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_nearest_is_that_of_all_vectors_at_once(monkeypatch, chunk):
    """What streams in chunks is, bit for bit, what scikit-learn gives with all text in memory."""
    monkeypatch.setattr(baselines, "CHUNK_PAIRS", chunk)
    train = list(islice(Sample().pairs("train", Path()), 300))
    sources = [source for source, _ in islice(Sample().pairs("test", Path()), 150)]
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    vectors = vectorizer.fit_transform([source for source, _ in train]).T.tocsr()
    cosines = (vectorizer.transform(sources) @ vectors).toarray()
    expected = [train[index][1] for index in numpy.argmax(cosines, axis=1)]
    assert nearest(lambda: train, sources) == expected
    assert len(set(expected)) > 50


def test_its_memory_does_not_grow_with_the_lines():
    """Ten times the lines of the same words take no more memory."""

    def peak(lines: int) -> int:
        tracemalloc.start()
        nearest(lambda: ((f"word{n % 1000} and {n % 7}", "x") for n in range(lines)), ["word9"])
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # imports
    assert peak(100_000) < 1.2 * peak(20_000)


def test_a_baseline_that_fails_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_WORDS", 3)
    said = []
    write_baselines(lambda: TRAIN, ["a"], "fr", tmp_path, said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.test.fr"]
    assert said == [
        "the nearest-line baseline is left out: the training text has more than 3 different words"
    ]
