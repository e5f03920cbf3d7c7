"""Languages are data: no step knows English or German."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from data_prep_corpus import write_local_files
from msgspec.structs import replace
from rich.console import Console
from wmt14_mirror import small_mirror

from data_prep.pipeline import prepare
from data_prep.spec import SPLITS, DataSpec, Manifest, load_manifest
from data_prep.system.files import sha256_of_file
from data_prep.text import read_lines, read_text

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Six files that are said to be French and English."""
    return replace(
        write_local_files(tmp_path_factory.mktemp("in")), source_lang="fr", target_lang="en"
    )


@pytest.fixture(scope="module")
def prepared(spec: DataSpec, tmp_path_factory) -> tuple[Path, Manifest]:
    """What the command makes of a spec in a file."""
    folder = tmp_path_factory.mktemp("fr_en")
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", "data_prep", "--spec", str(folder / "spec.json")]
    command += ["--out", str(folder / "out"), "--workers", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert re.search(r"^split .* pieces/line fr +en$", done.stdout, re.MULTILINE)
    return folder / "out", load_manifest(folder / "out" / "manifest.json")


def test_files_are_named_after_the_languages(prepared):
    _, manifest = prepared
    assert manifest.languages == ("fr", "en")
    expected = {"spm.model", "spm.vocab", "bin/dict.fr.txt", "bin/dict.en.txt"}
    expected |= {"baselines/copy.test.en", "baselines/nearest.test.en"}
    for lang in manifest.languages:
        expected |= {f"text/{split}.{lang}" for split in SPLITS}
        expected |= {
            f"bin/{subset}.fr-en.{lang}.{kind}"
            for subset in ("train", "valid", "test")
            for kind in ("bin", "idx")
        }
    assert manifest.files.keys() == expected


def test_the_same_text_has_the_same_bytes_in_any_languages(spec, prepared, tmp_path):
    """But for the names of files, and for what cannot differ: the order of source and target."""
    _, manifest = prepared
    english = prepare(
        replace(spec, source_lang="en", target_lang="de"), tmp_path / "out", console=QUIET
    )
    names = {".fr-en.": ".en-de.", ".en": ".de", ".fr": ".en"}

    def renamed(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, f"\0{new[1:]}")
        return name.replace("\0", ".")

    assert {renamed(name): sha256 for name, sha256 in manifest.files.items()} == english.files
    assert manifest.splits == english.splits
    assert manifest.overlap == english.overlap
    assert manifest.checksum != english.checksum
    assert manifest.request != english.request


def test_fairseq_reads_the_text_back(prepared):
    from fairseq.data import Dictionary, data_utils

    out, manifest = prepared
    for lang, pieces in zip(manifest.languages, ("source_pieces", "target_pieces"), strict=True):
        dictionary = Dictionary.load(str(out / "bin" / f"dict.{lang}.txt"))
        dataset = data_utils.load_indexed_dataset(
            str(out / "bin" / f"test.fr-en.{lang}"), dictionary
        )
        lines = list(read_lines(out / "text" / f"test.{lang}"))
        assert len(dataset) == len(lines) == manifest.splits["test"].kept
        tokens = sum(len(line) - 1 for line in dataset)
        assert tokens == getattr(manifest.splits["test"], pieces)


def test_a_registered_corpus_in_its_other_direction(tmp_path):
    forward = small_mirror(tmp_path / "mirror")
    back = replace(forward, source_lang="de", target_lang="en")
    there = prepare(forward, tmp_path / "there", console=QUIET)
    home = prepare(back, tmp_path / "home", console=QUIET)
    assert home.languages == ("de", "en")
    assert home.inputs == there.inputs
    for split in ("dev", "test"):
        turned = [(b, a) for a, b in read_text(tmp_path / "there" / "text", split, ("en", "de"))]
        assert list(read_text(tmp_path / "home" / "text", split, ("de", "en"))) == turned
    assert home.splits["train"].dropped["empty"] == there.splits["train"].dropped["empty"] == 1
    assert home.splits["train"].dropped["held_out"] == 1
    subset = home.subsets["filtered"]
    assert subset == there.subsets["filtered"]
    assert home.files[subset.file] == there.files[subset.file]
    copied = tmp_path / "home" / "baselines" / "copy.test.en"
    assert sha256_of_file(copied) == home.files["text/test.de"]
