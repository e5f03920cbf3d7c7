"""The embedded corpus: its bytes, its fixed dev and test lines, its licence."""

import hashlib
import shutil
from itertools import combinations

import pytest

from data_prep.corpora.sample_en_de import SAMPLE_FOLDER, Sample
from data_prep.spec import SPLITS, DataError
from data_prep.text import same_text_key
from data_prep.transform.clean import clean_splits


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return {split: list(Sample().pairs(split, tmp_path_factory.mktemp("no"))) for split in SPLITS}


def test_every_pair_is_in_one_split(splits):
    assert {split: len(pairs) for split, pairs in splits.items()} == {
        "train": 24_007,
        "dev": 774,
        "test": 840,
    }


@pytest.mark.parametrize(
    ("split", "sha256"),
    [
        ("dev", "45d0090e365200646c33e5a0f22177659bf72bbd5fb408487f16a8dfa4e3ce91"),
        ("test", "3ff518c73cf7d1756461d98248cc00a7cd87615c0831a5b38b73e8d77b03d572"),
    ],
)
def test_held_out_lines_never_change(splits, split, sha256):
    text = "".join(f"{source}\t{target}\n" for source, target in splits[split])
    assert hashlib.sha256(text.encode()).hexdigest() == sha256


def test_lines_that_say_the_same_are_in_one_split(splits):
    keys = [{same_text_key(source) for source, _ in pairs} for pairs in splits.values()]
    assert all(one.isdisjoint(other) for one, other in combinations(keys, 2))


def test_train_loses_what_is_nearly_a_held_out_line(splits, tmp_path):
    counts = clean_splits(
        lambda split: iter(splits[split]),
        ("en", "de"),
        tmp_path,
        lambda _: None,
        near_duplicates=Sample.drops_near_duplicates,
    )
    assert counts.dropped["held_out"] == 2_607


def test_licence_is_beside_the_text():
    assert "Mozilla Public License Version 2.0" in (SAMPLE_FOLDER / "LICENSE").read_text()
    assert "MPL-2.0" in Sample.licence


def test_a_changed_file_is_refused_when_it_is_read(tmp_path, monkeypatch):
    folder = shutil.copytree(SAMPLE_FOLDER, tmp_path / "sample")
    monkeypatch.setattr("data_prep.corpora.sample_en_de.SAMPLE_FOLDER", folder)
    assert next(Sample().pairs("dev", tmp_path))
    path = folder / "libreoffice-help.de.xz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"help\.de\.xz: sha256 is .*, expected 738f7f2b"):
        Sample().pairs("dev", tmp_path)
