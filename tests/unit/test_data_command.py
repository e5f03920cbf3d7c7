"""The command: bad input ends with one line and exit code 2, and leaves nothing behind."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
import pytest
from data_prep_corpus import command_line, write_local_files
from msgspec.structs import replace

from data_prep.__main__ import main
from data_prep.spec import DataSpec


@dataclass
class Case:
    """Six good files, the command that prepares them, and where it would."""

    files: Path
    out: Path
    spec: DataSpec
    arguments: list[str]


@pytest.fixture
def case(tmp_path):
    out, spec = tmp_path / "out", write_local_files(tmp_path / "in")
    return Case(tmp_path / "in", out, spec, command_line(spec, out))


def error_of(arguments, capsys):
    """The one line that the command prints when it exits with 2."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.split("\n")
    assert [line for line in lines if line.startswith("error: ")] == lines[-2:-1]
    assert "Traceback" not in printed.err
    return lines[-2]


def prepared_files(out):
    """What a reader could take for prepared data."""
    return [path for path in out.rglob("*") if path.is_file() and path.parent.name != "logs"]


def test_a_missing_file(case, capsys):
    (case.files / "dev.source.txt").unlink()
    assert "dev.source.txt: No such file or directory: dev_source" in error_of(
        case.arguments, capsys
    )
    assert not case.out.exists()


def test_an_empty_file(case, capsys):
    (case.files / "train.target.txt").write_bytes(b"")
    assert "train.target.txt is empty: train_target" in error_of(case.arguments, capsys)
    assert not case.out.exists()


def test_a_folder_for_a_file(case, capsys):
    case.arguments[case.arguments.index("--test-source") + 1] = str(case.files)
    assert "in: Is a directory: test_source" in error_of(case.arguments, capsys)


@pytest.mark.parametrize("split", ["train", "test"])
def test_sides_of_different_length(case, capsys, split):
    with (case.files / f"{split}.target.txt").open("a", encoding="utf-8") as stream:
        stream.write("Eine Zeile mehr.\n")
    message = error_of(case.arguments, capsys)
    assert f"{split}.target.txt has" in message
    assert f"{split}.source.txt has" in message
    assert [path.name for path in prepared_files(case.out)] == [".data_prep.lock"]


def test_invalid_utf8(case, capsys):
    path = case.files / "train.source.txt"
    lines = path.read_bytes().split(b"\n")
    lines[6] = "größer".encode("latin-1")
    path.write_bytes(b"\n".join(lines))
    assert "train.source.txt, line 7: not UTF-8" in error_of(case.arguments, capsys)
    assert [path.name for path in prepared_files(case.out)] == [".data_prep.lock"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--vocab-size", "0", "--vocab-size: "),
        ("--max-pieces", "0", "--max-pieces: "),
        ("--max-ratio", "1", "--max-ratio: "),
        ("--max-ratio", "nan", "--max-ratio: "),
        ("--vocab-size", "many", "--vocab-size: "),
        ("--source-lang", "de", "source_lang and target_lang are both de: give two languages"),
        ("--target-lang", "German", "--target-lang: "),
        ("--workers", "0", "--workers 0: "),
    ],
)
def test_settings_out_of_range(case, capsys, option, value, message):
    assert message in error_of([*case.arguments, option, value], capsys)
    assert not case.out.exists()


def test_a_spec_in_a_file_asks_for_what_the_options_ask_for(case, monkeypatch):
    asked = []
    monkeypatch.setattr("data_prep.__main__._print_summary", lambda *_: None)
    monkeypatch.setattr("data_prep.__main__.prepare", lambda spec, *_, **__: asked.append(spec))
    path = case.files / "spec.json"
    path.write_bytes(msgspec.json.encode(case.spec))
    assert main(case.arguments) == 0
    assert main(["--spec", str(path), "--out", str(case.out)]) == 0
    assert main(["--spec", str(path), "--out", str(case.out), "--mirror", "folder"]) == 0
    assert asked == [case.spec, case.spec, replace(case.spec, mirror="folder")]


def test_every_setting_is_an_option(case, monkeypatch):
    asked = []
    monkeypatch.setattr("data_prep.__main__._print_summary", lambda *_: None)
    monkeypatch.setattr("data_prep.__main__.prepare", lambda spec, *_, **__: asked.append(spec))
    texts = {"source_lang": "fr", "vocab_size": "7", "max_pieces": "8", "max_ratio": "2.5"}
    values = {field: texts.get(field, "xy") for field in DataSpec.__struct_fields__[1:]}
    options = [[f"--{field.replace('_', '-')}", value] for field, value in values.items()]
    assert main(["local", "--out", str(case.out), *chain(*options)]) == 0
    numbers = {"vocab_size": 7, "max_pieces": 8, "max_ratio": 2.5}
    assert asked == [DataSpec(name="local", **values | numbers)]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ('{"name": "sample_en_de"}', [], "spec.json: Object missing required field `vocab_size`"),
        ('{"name": "a", "vocab_size": "9"}', [], "spec.json: vocab_size: Expected `int`"),
        ('{"name": "a", "vocab_size": 9}', [], "no corpus is called 'a': choose one of sample_en"),
        ('{"name": "a", "vocab_size": 9, "x": 1}', [], "spec.json: Object contains unknown field"),
        ("[]", [], "spec.json: Expected `object`, got `array`: --spec takes a JSON object"),
        ("name:", [], "spec.json: JSON is malformed"),
        (None, [], "spec.json: No such file or directory: --spec takes a JSON file"),
        ("{}", ["local"], "--spec has all settings: leave out local"),
        ("{}", ["--max-pieces", "9"], "--spec has all settings: leave out --max-pieces"),
    ],
)
def test_a_spec_that_cannot_be_used(case, capsys, content, more, message):
    path = case.files / "spec.json"
    if content is not None:
        path.write_text(content)
    assert message in error_of(["--spec", str(path), "--out", str(case.out), *more], capsys)
    assert not case.out.exists()


def test_no_corpus(case, capsys):
    message = error_of(["--out", str(case.out)], capsys)
    assert message == (
        "error: name a corpus (sample_en_de, multi30k_en_de, wmt14_en_de, local), or give "
        "--spec FILE"
    )


def test_an_unknown_corpus(case, capsys):
    message = error_of(["sample", "--out", str(case.out)], capsys)
    assert message.endswith("choose one of sample_en_de, multi30k_en_de, wmt14_en_de, local")


def test_an_unwritable_folder(case, capsys):
    (case.files / "out").write_text("a file, where the folder would be")
    arguments = [*case.arguments, "--out", str(case.files / "out" / "below")]
    assert "give --out a folder that you may write" in error_of(arguments, capsys)


def test_a_folder_with_other_files(case, capsys):
    arguments = [*case.arguments, "--out", str(case.files)]
    assert "holds other files" in error_of(arguments, capsys)
    assert len(list(case.files.iterdir())) == 6


def test_local_without_its_files(tmp_path, capsys):
    assert "local needs train_source: " in error_of(["local", "--out", str(tmp_path / "o")], capsys)


def test_files_for_a_corpus_that_has_its_own(case, capsys):
    assert (
        "does not take train_source, train_target, dev_source, dev_target, test_source, test_target"
        in error_of(["sample_en_de", *case.arguments[1:]], capsys)
    )


def test_languages_that_a_corpus_does_not_have(case, capsys):
    arguments = ["sample_en_de", "--out", str(case.out), "--target-lang", "fr"]
    assert "choose source_lang=en target_lang=de, or" in error_of(arguments, capsys)
    assert not case.out.exists()


def test_a_mirror_without_the_files(case, tmp_path, capsys):
    arguments = ["multi30k_en_de", "--out", str(case.out), "--mirror", str(tmp_path / "in")]
    assert "in/train.en.gz: No such file or directory: the mirror lacks" in error_of(
        arguments, capsys
    )


def test_text_of_which_nothing_is_left(case, capsys):
    for side in ("source", "target"):
        test = (case.files / f"test.{side}.txt").read_bytes()
        (case.files / f"train.{side}.txt").write_bytes(test)
    assert "no training pair" in error_of(case.arguments, capsys)


def test_limits_that_nothing_meets(case, capsys):
    assert "no training pair" in error_of([*case.arguments, "--max-pieces", "1"], capsys)


def test_a_full_disk(case, capsys, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device", str(case.out / "work"))

    monkeypatch.setattr("data_prep.pipeline.clean_splits", no_space)
    assert "No space left on device" in error_of(case.arguments, capsys)


def test_an_interrupt_says_how_to_go_on(case, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.pipeline.clean_splits", interrupt)
    assert main(case.arguments) == 130
    assert "the same command continues" in capsys.readouterr().err
