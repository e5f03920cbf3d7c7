"""Kept translations: read back as they were, refused when they are others."""

import lzma
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.errors import ExperimentError
from experiments.metrics import METRICS, score_of, sentence_statistics
from experiments.records.hypotheses import (
    Hypotheses,
    LineCounts,
    hypotheses_digest,
    read_hypotheses,
    write_hypotheses,
)

LINES = ["Das ist ein Test.", "", "Zeile\u2028mit Trenner", "carriage\rreturn", "über 🙂"]
COUNTS = [LineCounts(metric="bleu", signature="x", lines=[[n, 2 * n] for n in range(len(LINES))])]


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, write_hypotheses(tmp_path, Hypotheses(LINES, COUNTS))


def test_they_are_read_as_they_were_written(kept: tuple[Path, str]) -> None:
    folder, digest = kept
    assert digest == hypotheses_digest(LINES)
    assert read_hypotheses(folder, digest) == Hypotheses(LINES, COUNTS)
    assert {path.name for path in folder.iterdir()} == {
        f"{digest}.txt.xz",
        f"{digest}.counts.json.xz",
    }
    text = lzma.decompress((folder / f"{digest}.txt.xz").read_bytes()).decode("utf-8")
    assert text == "".join(f"{line}\n" for line in LINES)


@settings(max_examples=30)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_every_text_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    digest = write_hypotheses(folder, Hypotheses(lines, []))
    assert read_hypotheses(folder, digest).lines == lines


def test_the_same_translations_are_one_file(kept: tuple[Path, str]) -> None:
    folder, digest = kept
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert write_hypotheses(folder, Hypotheses(LINES, COUNTS)) == digest
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert write_hypotheses(folder, Hypotheses(LINES[1:], COUNTS)) != digest


def test_where_text_may_not_be_kept_its_counts_are(tmp_path: Path) -> None:
    digest = write_hypotheses(tmp_path, Hypotheses(LINES, COUNTS), keep_text=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{digest}.counts.json.xz"]
    assert read_hypotheses(tmp_path, digest) == Hypotheses([], COUNTS)


def test_counts_are_found_by_metric() -> None:
    hypotheses = Hypotheses(LINES, COUNTS)
    assert hypotheses.of("bleu") is COUNTS[0]
    with pytest.raises(ExperimentError, match="chrf was not counted"):
        hypotheses.of("chrf")


def test_other_text_than_the_digests_is_refused(kept: tuple[Path, str]) -> None:
    folder, digest = kept
    other = write_hypotheses(folder, Hypotheses(LINES[1:], COUNTS))
    (folder / f"{other}.txt.xz").replace(folder / f"{digest}.txt.xz")
    with pytest.raises(ExperimentError, match="its text has another digest"):
        read_hypotheses(folder, digest)


def test_an_emptied_text_is_refused(kept: tuple[Path, str]) -> None:
    folder, digest = kept
    (folder / f"{digest}.txt.xz").write_bytes(lzma.compress(b""))
    with pytest.raises(ExperimentError, match="its text has another digest"):
        read_hypotheses(folder, digest)


@pytest.mark.parametrize("kind", ["txt", "counts.json"])
@pytest.mark.parametrize("left", [0, 20])
def test_what_is_cut_is_refused_in_one_line(kept: tuple[Path, str], kind: str, left: int) -> None:
    folder, digest = kept
    path = folder / f"{digest}.{kind}.xz"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ExperimentError, match=digest) as caught:
        read_hypotheses(folder, digest)
    assert "\n" not in str(caught.value)


def test_missing_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="cannot be read: No such file"):
        read_hypotheses(tmp_path, "0" * 64)


@pytest.mark.parametrize("name", METRICS)
def test_kept_counts_give_sacrebleus_score_of_any_lines(tmp_path: Path, name: str) -> None:
    """No reference is at hand when they are read."""
    draw = random.Random(1)
    words = [
        "das",
        "Haus",
        "ist",
        "grün",
        "und",
        "der",
        "Baum",
        ",",
        "die",
        "Datei",
        "(",
        "neu",
        ")",
    ]
    references = [" ".join(draw.choices(words, k=draw.randint(1, 15))) for _ in range(40)]
    hypotheses = [
        " ".join(word for word in line.split() if draw.random() < 0.8) for line in references
    ]
    scorer = METRICS[name].scorer("de")
    statistics = sentence_statistics(scorer, hypotheses, references)
    counts = LineCounts(metric=name, signature=str(scorer.get_signature()), lines=statistics)
    digest = write_hypotheses(tmp_path, Hypotheses(hypotheses, [counts]))
    lines = read_hypotheses(tmp_path, digest).of(name).lines
    for choice in (range(40), draw.sample(range(40), 7), draw.choices(range(40), k=40)):
        expected = scorer.corpus_score(
            [hypotheses[i] for i in choice], [[references[i] for i in choice]]
        )
        assert score_of(scorer, [lines[i] for i in choice]) == expected.score
