"""The settings of a corpus: cheap to import, spelled once; what they ask for has an identity."""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from data_prep_corpus import write_local_files
from msgspec.structs import replace
from omegaconf import OmegaConf
from wmt14_mirror import small_mirror

from data_prep.corpora.local import FILES
from data_prep.corpora.registry import CORPORA, open_corpus, request
from data_prep.spec import DataError, DataSpec

ROOT = Path(__file__).parents[2]
CONF = [path for path in sorted((ROOT / "conf" / "data").glob("*.yaml")) if path.stem != "base"]

IMPORT = """
import sys
before = set(sys.modules)
import {module}
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(*sorted(loaded - sys.stdlib_module_names))
"""


@pytest.mark.parametrize("module", ["data_prep.spec", "data_prep.corpora.registry"])
def test_a_spec_and_its_request_import_nothing_heavy(module):
    code = IMPORT.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    loaded = set(done.stdout.split()) - {"typing_extensions"}  # msgspec imports it where it is
    assert loaded == {"data_prep", "msgspec"}


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_the_configuration_of_each_corpus_is_a_spec(path):
    merged = OmegaConf.merge(OmegaConf.load(path.with_name("base.yaml")), OmegaConf.load(path))
    settings = OmegaConf.to_container(merged)
    assert settings.pop("defaults") == ["base"]
    values = {key: None if value == "???" else value for key, value in settings.items()}
    spec = msgspec.convert(values, DataSpec)
    corpus = CORPORA[path.stem]
    defaults = DataSpec(name=path.stem, vocab_size=corpus.vocab_size)
    assert spec == defaults


def test_each_corpus_has_its_configuration():
    assert {path.stem for path in CONF} == CORPORA.keys()


@pytest.fixture
def local(tmp_path):
    return write_local_files(tmp_path / "in")


@pytest.fixture
def wmt14(tmp_path):
    return small_mirror(tmp_path / "mirror")


@pytest.mark.parametrize(
    "other",
    [
        {"vocab_size": 501},
        {"max_pieces": 251},
        {"max_ratio": 1.6},
        {"source_lang": "fr"},
        {"source_lang": "de", "target_lang": "en"},
    ],
)
def test_another_setting_is_another_request(local, other):
    assert request(replace(local, **other)) != request(local)


def test_every_setting_is_tested_here():
    tested = {"name", "vocab_size", "max_pieces", "max_ratio", "source_lang", "target_lang"}
    places = {"mirror", "sources", *CORPORA["local"].settings}
    assert set(DataSpec.__struct_fields__) == tested | places


def test_the_nearest_line_left_out_is_another_request_and_kept_is_not(local):
    assert request(replace(local, nearest=False)) != request(local)
    assert request(replace(local, nearest=True)) == request(local)


@pytest.mark.parametrize("setting", FILES)
def test_other_content_of_a_file_is_another_request(local, setting):
    before = request(local)
    path = Path(getattr(local, setting))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"e", b"a", 1))
    assert request(local) != before
    path.write_bytes(content)
    assert request(local) == before


def test_two_files_that_change_places_are_another_request(local):
    turned = replace(local, train_source=local.train_target, train_target=local.train_source)
    assert request(turned) != request(local)


def test_the_same_files_elsewhere_are_the_same_request(local, tmp_path):
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    moved = {setting: getattr(local, setting).replace("/in/", "/copy/") for setting in FILES}
    assert request(replace(local, **moved)) == request(local)


def test_stray_files_are_no_part_of_the_request(local, tmp_path):
    before = request(local)
    (tmp_path / "in" / "train.source.txt~").write_text("stray")
    assert request(local) == before


def test_where_downloads_come_from_is_no_part_of_the_request(wmt14, tmp_path):
    before = request(wmt14)
    table = shutil.copy(wmt14.sources, tmp_path / "other.json")
    elsewhere = replace(wmt14, mirror="http://127.0.0.1/nowhere", sources=str(table))
    assert request(elsewhere) == request(replace(wmt14, mirror=None)) == before


def test_other_archives_are_another_request(wmt14):
    assert request(wmt14) != request(replace(wmt14, sources=None))


def test_requests_are_known_without_the_archives(wmt14, tmp_path):
    before = request(wmt14)
    for archive in (tmp_path / "mirror").glob("*.tgz"):
        archive.unlink()
    assert request(wmt14) == before


@pytest.mark.parametrize("name", ["sample_en_de", "multi30k_en_de", "wmt14_en_de"])
def test_registered_corpora_have_both_directions_and_no_other(name):
    spec = DataSpec(name=name, vocab_size=100)
    back = replace(spec, source_lang="de", target_lang="en")
    assert request(back) != request(spec)
    with pytest.raises(DataError) as refusal:
        request(replace(spec, source_lang="fr"))
    assert str(refusal.value) == (
        f"{name} has no text from fr to de: choose source_lang=en target_lang=de, or "
        "source_lang=de target_lang=en"
    )


def test_whole_numbers_are_the_same_in_python_and_in_a_file(local):
    spec = replace(local, max_ratio=2)
    read = msgspec.json.decode(msgspec.json.encode(spec), type=DataSpec)
    assert request(read) == request(spec)


def test_a_copy_of_the_table_of_wmt14_is_wmt14(wmt14, tmp_path):
    table = ROOT / "data_prep" / "corpora" / "wmt14_en_de.json"
    copy = replace(wmt14, sources=shutil.copy(table, tmp_path / "copy.json"))
    assert open_corpus(copy).note == ""
    assert "not checked to be WMT14" in open_corpus(wmt14).note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "wmt15"}, "no corpus is called 'wmt15': choose one of sample_en_de, multi30k"),
        ({"train_source": ""}, "local needs train_source: "),
        ({"test_target": None}, "local needs test_target: "),
        ({"dev_source": "nowhere.txt"}, "nowhere.txt: No such file or directory: dev_source "),
        ({"target_lang": "../x"}, "local: Expected `str` matching regex "),
        ({"max_pieces": 0}, "local: Expected `int` >= 1 - at `$.max_pieces`"),
        ({"sources": "table.json"}, "local does not take sources: wmt14_en_de does"),
    ],
)
def test_what_cannot_be_asked_for(local, change, message):
    with pytest.raises(DataError) as refusal:
        request(replace(local, **change))
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 0},
        {"max_pieces": 0},
        {"max_ratio": 1},
        {"max_ratio": float("nan")},
        {"max_ratio": float("inf")},
        {"mirror": ""},
        {"sources": ""},
        {"source_lang": "english"},
        {"source_lang": "EN"},
        {"target_lang": "../x"},
        {"target_lang": "de\n"},
        {"target_lang": "en"},
        {"surprise": 1},
    ],
)
def test_settings_that_no_corpus_takes(settings):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "sample_en_de", "vocab_size": 4000} | settings, DataSpec)


@pytest.mark.parametrize("language", ["fr", "gsw", "zh_Hans", "pt_BR"])
def test_language_codes(language):
    values = {"name": "local", "vocab_size": 9, "target_lang": language}
    assert msgspec.convert(values, DataSpec).languages == ("en", language)
