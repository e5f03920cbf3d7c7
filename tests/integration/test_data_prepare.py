"""From text to what fairseq reads, with the real commands: bytes, interruption, two at a time."""

import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from data_prep_corpus import SIZES, command_line, write_local_files
from msgspec.structs import replace
from rich.console import Console

from data_prep import pipeline
from data_prep.corpora.local import Local
from data_prep.corpora.multi30k_en_de import Multi30k
from data_prep.corpora.registry import RECIPE
from data_prep.download.fetch import fetch_all
from data_prep.pipeline import prepare
from data_prep.result import LOCK_NAME
from data_prep.spec import SPLITS, DataError, digest, load_manifest
from data_prep.system.files import sha256_of_file
from data_prep.text import read_lines
from data_prep.transform.clean import clean_splits
from data_prep.transform.encode import encode_splits
from data_prep.transform.vocabulary import load_pieces, train_vocabulary

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return write_local_files(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def prepared(spec, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(spec, out, workers=2, console=QUIET)


def files_of(out: Path) -> dict[str, str]:
    """Sums of all that a finished folder holds but logs, which have paths and times."""
    return {
        path.relative_to(out).as_posix(): sha256_of_file(path)
        for path in out.rglob("*")
        if path.is_file() and path.parent.name != "logs"
    }


def test_manifest_tells_what_is_there(spec, prepared):
    out, manifest = prepared
    assert load_manifest(out / "manifest.json") == manifest
    held = files_of(out)
    assert held.keys() == {*manifest.files, "manifest.json", ".data_prep.lock"}
    assert manifest.files.items() <= held.items()
    for split, size in SIZES.items():
        for lang in manifest.languages:
            lines = list(read_lines(out / "text" / f"{split}.{lang}"))
            assert len(lines) == manifest.splits[split].kept
            assert split == "train" or len(lines) == manifest.splits[split].read == size
    dropped = dict(manifest.splits["train"].dropped)
    assert dropped.pop("ratio") > 1  # "one" with forty words, and real ones
    assert dropped == {"empty": 1, "control_characters": 1, "held_out": 1, "too_long": 0}
    for name in ("copy", "nearest"):
        assert len(list(read_lines(out / "baselines" / f"{name}.test.de"))) == SIZES["test"]
    assert manifest.overlap.keys() == {"dev", "test"}


def test_fairseq_reads_the_text_back(prepared):
    from fairseq.data import Dictionary, data_utils

    out, manifest = prepared
    pieces = load_pieces(out / "spm.model")
    dictionary = Dictionary.load(str(out / "bin" / "dict.en.txt"))
    assert (out / "bin" / "dict.de.txt").read_bytes() == (out / "bin" / "dict.en.txt").read_bytes()
    assert len(dictionary) == manifest.vocab_size + 1  # fairseq's <pad>
    for split in SPLITS:
        for side, lang in zip(("source", "target"), manifest.languages, strict=True):
            subset = "valid" if split == "dev" else split
            dataset = data_utils.load_indexed_dataset(
                str(out / "bin" / f"{subset}.en-de.{lang}"), dictionary
            )
            lines = list(read_lines(out / "text" / f"{split}.{lang}"))
            assert len(dataset) == len(lines)
            total = 0
            for line, tensor in zip(lines, dataset, strict=True):
                assert tensor[-1] == dictionary.eos()
                total += len(tensor) - 1
                expected = [dictionary.index(piece) for piece in pieces.encode_as_pieces(line)]
                assert tensor[:-1].tolist() == expected
            assert total == getattr(manifest.splits[split], f"{side}_pieces")


def test_bytes_are_those_of_fairseq_preprocess(prepared, tmp_path):
    out, manifest = prepared
    pieces = load_pieces(out / "spm.model")
    for split in SPLITS:
        for lang in manifest.languages:
            with (tmp_path / f"{split}.{lang}").open("w", encoding="utf-8", newline="\n") as stream:
                for line in read_lines(out / "text" / f"{split}.{lang}"):
                    stream.write(" ".join(pieces.encode_as_pieces(line)) + "\n")
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary"]
    command += ["--source-lang", "en", "--target-lang", "de", "--destdir", str(tmp_path / "bin")]
    command += ["--trainpref", str(tmp_path / "train"), "--validpref", str(tmp_path / "dev")]
    command += ["--testpref", str(tmp_path / "test"), "--srcdict", str(out / "bin" / "dict.en.txt")]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "bin" / "preprocess.log").unlink()
    assert files_of(tmp_path / "bin") == files_of(out / "bin")


def test_what_is_done_is_not_done_again(spec, prepared, monkeypatch):
    out, manifest = prepared
    monkeypatch.setattr(pipeline, "Steps", None)  # any step would fail
    assert prepare(spec, out, console=QUIET) == manifest


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the prepared folder."""
    return shutil.copytree(prepared[0], tmp_path / "copied")


def everything_in(folder: Path) -> dict[str, int]:
    """When each file and folder was written, by its path."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_read_only_folder_is_used_as_it_is(spec, prepared, copied):
    (copied / LOCK_NAME).unlink()
    folders = [copied, *(path for path in copied.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = everything_in(copied)
    try:
        assert prepare(spec, copied, console=QUIET) == prepared[1]
    finally:
        for folder in folders:
            folder.chmod(0o755)
    # The superuser may write anywhere: that nothing was written is what counts.
    assert everything_in(copied) == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"vocab_size": 400}, "vocab_size is 500, not 400"),
        ({"max_pieces": 9, "max_ratio": 3.0}, "max_pieces is 250, not 9, max_ratio is 1.5, not 3"),
        ({"source_lang": "fr"}, "source_lang is en, not fr"),
        ({"name": "sample_en_de"} | dict.fromkeys(Local.settings), "name is local, not sample_en"),
    ],
)
def test_another_request_is_refused_unless_forced(spec, prepared, copied, change, difference):
    before = files_of(copied)
    with pytest.raises(DataError) as refusal:
        prepare(replace(spec, **change), copied, console=QUIET)
    assert str(refusal.value).startswith(f"{copied} holds other data ({difference}")
    assert str(refusal.value).endswith("give another --out, or --force to replace it")
    assert files_of(copied) == before


def test_a_training_file_that_was_replaced_is_another_request(copied, tmp_path, spec):
    changed = write_local_files(tmp_path / "in")
    assert prepare(changed, copied, console=QUIET) == load_manifest(copied / "manifest.json")
    with Path(changed.train_source).open("a", encoding="utf-8") as source:
        source.write("One more line.\n")
    with Path(changed.train_target).open("a", encoding="utf-8") as target:
        target.write("Eine Zeile mehr.\n")
    before = files_of(copied)
    with pytest.raises(DataError, match="made of other contents of train_source, train_target"):
        prepare(changed, copied, console=QUIET)
    assert files_of(copied) == before
    manifest = prepare(changed, copied, force=True, console=QUIET)
    assert manifest.splits["train"].read == SIZES["train"] + 5
    assert manifest == load_manifest(copied / "manifest.json")


def test_a_file_that_changes_while_it_is_read_gives_no_data(tmp_path, monkeypatch):
    changing = write_local_files(tmp_path / "in")

    def clean_and_change(*arguments, **settings):
        cleaned = clean_splits(*arguments, **settings)
        with Path(changing.test_target).open("a", encoding="utf-8") as stream:
            stream.write("\n")
        return cleaned

    monkeypatch.setattr(pipeline, "clean_splits", clean_and_change)
    with pytest.raises(DataError, match="an input file has changed while it was read"):
        prepare(changing, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out" / "work").exists()


def test_a_copy_without_its_lock_can_be_replaced(spec, prepared, copied):
    (copied / LOCK_NAME).unlink()
    assert prepare(spec, copied, force=True, console=QUIET) == prepared[1]
    assert files_of(copied) == files_of(prepared[0])


def test_other_results_need_another_recipe(prepared):
    """When this fails, the same request gives other data: raise RECIPE and say why beside it.

    The `nearest` baseline is left out: processors may round its cosines differently.
    """
    _, manifest = prepared
    files = {name: sha for name, sha in manifest.files.items() if "nearest" not in name}
    assert RECIPE == 1
    assert digest(files) == "f98808f0638767022cd10f80e21954eed946f8b6b8c4ee4f81185aca704e702a"


def test_a_damaged_folder_is_mended_in_its_place(spec, prepared, copied):
    (copied / "text" / "train.en").write_text("damaged")
    assert prepare(spec, copied, console=QUIET) == prepared[1]
    assert files_of(copied) == files_of(prepared[0])


def test_stray_files_change_nothing(spec, prepared, copied, tmp_path, monkeypatch):
    for name in ("text/train.en~", "bin/.swp", "notes.ipynb"):
        (copied / name).write_text("stray")
    assert prepare(spec, copied, console=QUIET) == prepared[1]

    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(pipeline, "binarize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, out, console=QUIET)
    monkeypatch.undo()
    for name in ("work/clean/train.en~", "work/encode/text/train.fr", "work/encode/x.ipynb"):
        (out / name).write_text("stray")
    assert prepare(spec, out, console=QUIET) == prepared[1]
    assert files_of(out) == files_of(prepared[0])


def test_steps_of_an_interrupted_run_are_used_with_another_setting(
    spec, prepared, tmp_path, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(pipeline, "encode_splits", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(spec, vocab_size=400), out, console=QUIET)
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "clean_splits", None)  # done, and not done again
    assert prepare(spec, out, console=QUIET) == prepared[1]
    assert files_of(out) == files_of(prepared[0])


@pytest.mark.long
def test_steps_of_the_other_direction_are_not_used(spec, prepared, tmp_path, monkeypatch):
    """Cleaned files have the same names and bytes in both directions, the vocabulary differs."""

    def interrupt(*_):
        raise KeyboardInterrupt

    other_side = {"source": "target", "target": "source"}
    sides = [setting.split("_") for setting in Local.settings if "_" in setting]
    back = {
        f"{split}_{side}": getattr(spec, f"{split}_{other_side[side]}") for split, side in sides
    }
    turned = replace(spec, source_lang="de", target_lang="en", **back)
    expected = prepare(turned, tmp_path / "expected", console=QUIET)
    out = tmp_path / "out"
    monkeypatch.setattr(pipeline, "binarize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, out, console=QUIET)
    monkeypatch.undo()
    assert prepare(turned, out, console=QUIET) == expected


def test_interrupted_again_and_again_it_ends_with_the_same_bytes(
    spec, prepared, tmp_path, monkeypatch
):
    def die_after(work, *arguments, **settings):
        if work:
            work(*arguments, **settings)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    # Before a step does anything, or when all its files are there and it is not yet done.
    for name, work in (
        ("clean_splits", None),
        ("train_vocabulary", train_vocabulary),
        ("encode_splits", encode_splits),
        ("binarize", None),
        ("_compare", None),
    ):
        monkeypatch.setattr(pipeline, name, partial(die_after, work))
        with pytest.raises(KeyboardInterrupt):
            prepare(spec, out, console=QUIET)
        monkeypatch.undo()
    killed = out / "work" / "compare.part"  # a process that is killed does not tidy up
    killed.mkdir()
    (killed / "half").write_text("half")
    assert prepare(spec, out, console=QUIET) == prepared[1]
    assert files_of(out) == files_of(prepared[0])


def test_bad_input_leaves_what_was_prepared(spec, prepared, tmp_path):
    out, _ = prepared
    before = files_of(out)
    other = write_local_files(tmp_path / "in")
    Path(other.dev_target or "").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        prepare(other, out, force=True, console=QUIET)
    assert files_of(out) == before


def test_two_processes_at_once(spec, prepared, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep", *command_line(spec, out), "--workers", "1"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[0][0] == printed[1][0]
    # One of them did the work: steps are named once.
    assert sum("binarize" in errors for _, errors in printed) == 1
    assert files_of(out) == files_of(prepared[0])


def test_multi30k_from_a_mirror(tmp_path):
    corpora = os.environ.get("CORPORA_DIR")
    if not corpora:
        pytest.skip("CORPORA_DIR is not set: no Multi30k files to read")
    corpus = Multi30k()
    mirror = str(Path(corpora) / "multi30k")
    downloads, texts = tmp_path / "downloads", tmp_path / "texts"
    downloads.mkdir()
    texts.mkdir()
    fetch_all(corpus.downloads, downloads, mirror, QUIET)
    corpus.extract(downloads, texts)
    counts = {split: sum(1 for _ in corpus.pairs(split, texts)) for split in SPLITS}
    assert counts == {"train": 29_000, "dev": 1_014, "test": 2_000}
    ((source, target),) = islice(corpus.pairs("test", texts), 1)
    assert source == "A man in an orange hat starring at something."
    assert target == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."
    subsets = corpus.subsets(texts)
    assert subsets == {"2016_flickr": [*range(1, 1001)], "2017_flickr": [*range(1001, 2001)]}
