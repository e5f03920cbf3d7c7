"""Cleaning: kept + dropped = read, held-out text stays out of train, dev and test stay whole."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.spec import DataError
from data_prep.text import read_text, same_text_key
from data_prep.transform.clean import REASONS, TextRules, clean_splits, piece_reason_to_drop
from data_prep.transform.near import NearLines

# Few words, so that lines often say the same; the rest is what rules look for.
LINE = st.lists(
    st.sampled_from(["Open", "open", "file", "2", "31", ".", "\t", "\x07", "\u2028", "ß", " "]),
    max_size=4,
).map(" ".join)
PAIRS = st.lists(st.tuples(LINE, LINE), min_size=1, max_size=12)
LANGUAGES = ("en", "de")
LENGTHS = st.integers(min_value=0, max_value=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clean")


@given(train=PAIRS, dev=PAIRS, test=PAIRS)
def test_every_pair_is_kept_or_counted(folder, train, dev, test):
    splits = {"train": train, "dev": dev, "test": test}
    rules = TextRules(dev + test)
    kept = [pair for pair in train if rules.reason_to_drop(pair) is None]
    clean = partial(
        clean_splits, lambda split: iter(splits[split]), LANGUAGES, folder, lambda _: None
    )
    if not kept:
        with pytest.raises(DataError, match="no training pair"):
            clean()
        return
    counts = clean()
    assert counts.read == {split: len(pairs) for split, pairs in splits.items()}
    assert list(read_text(folder, "dev", LANGUAGES)) == dev
    assert list(read_text(folder, "test", LANGUAGES)) == test
    assert len(kept) + sum(counts.dropped.values()) == len(train)
    assert list(read_text(folder, "train", LANGUAGES)) == kept
    for side in (0, 1):
        held_out = {same_text_key(pair[side]) for pair in dev + test}
        assert held_out.isdisjoint(same_text_key(pair[side]) for pair in kept)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (("A file.", "Eine Datei."), None),
        (("a\tb", "a\tb"), None),
        ((" \t", "Eine Datei."), "empty"),
        (("A file.", "\u2028"), "empty"),
        (("A\x00", "Eine"), "control_characters"),
        (("A", "Eine\x85Datei"), "control_characters"),
        (("press F3", "anders"), "held_out"),
        (("other", "drücken sie f9!"), "held_out"),
    ],
)
def test_text_rules(pair, reason):
    assert TextRules([("Press F1.", "Drücken Sie F1.")]).reason_to_drop(pair) == reason


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (("Press F3 to save.", "anders"), "held_out"),  # press 0 to save: 3 of 5 are shared
        (("Open this file now.", "anders"), None),  # 1 of 7
        (("other", "Zum Speichern drücken Sie Esc."), "held_out"),  # 3 of 6
        (("other", "Zum Speichern drücken Sie einmal Esc."), None),  # 3 of 7
    ],
)
def test_near_duplicates_go_where_they_are_unwanted(pair, reason):
    held_out = [("Press F1 to open.", "Zum Speichern F1 drücken.")]
    assert TextRules(held_out, near_duplicates=True).reason_to_drop(pair) == reason
    assert TextRules(held_out).reason_to_drop(pair) is None


@given(lines=st.sets(LINE.map(same_text_key)), line=LINE.map(same_text_key))
def test_near_is_a_jaccard_index_of_a_half(lines, line):
    def is_near(other):
        one, two = set(line.split()), set(other.split())
        return 2 * len(one & two) >= len(one | two)

    assert NearLines(lines).has_one_near(line) == any(map(is_near, lines))


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (1, 1, None),
        (250, 250, None),
        (251, 250, "too_long"),
        (0, 3, "empty"),
        (2, 3, None),
        (3, 2, None),
        (4, 7, "ratio"),
    ],
)
def test_piece_rule(source, target, reason):
    assert piece_reason_to_drop(source, target, 250, 1.5) == reason


@given(LENGTHS, LENGTHS, LENGTHS, st.floats(min_value=1.01, max_value=9))
def test_piece_rule_is_symmetric_and_known(source, target, most, ratio):
    reason = piece_reason_to_drop(source, target, most, ratio)
    assert reason == piece_reason_to_drop(target, source, most, ratio)
    assert reason is None or reason in REASONS
    if reason is None:
        assert min(source, target) >= 1
        assert max(source, target) <= min(most, ratio * min(source, target))
