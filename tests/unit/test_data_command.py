"""The command: bad input ends with one line and exit code 2, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
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
    assert "dev.source.txt: No such file or directory: --dev-source" in error_of(
        case.arguments, capsys
    )
    assert not case.out.exists()


def test_an_empty_file(case, capsys):
    (case.files / "train.target.txt").write_bytes(b"")
    assert "train.target.txt is empty: --train-target" in error_of(case.arguments, capsys)
    assert not case.out.exists()


def test_a_folder_for_a_file(case, capsys):
    case.arguments[case.arguments.index("--test-source") + 1] = str(case.files)
    assert "in: Is a directory: --test-source" in error_of(case.arguments, capsys)


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
    texts["nearest"] = "false"
    values = {field: texts.get(field, "xy") for field in DataSpec.__struct_fields__[1:]}
    options = [[f"--{field.replace('_', '-')}", value] for field, value in values.items()]
    assert main(["local", "--out", str(case.out), *chain(*options)]) == 0
    numbers = {"vocab_size": 7, "max_pieces": 8, "max_ratio": 2.5, "nearest": False}
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
    assert "local needs --train-source: " in error_of(
        ["local", "--out", str(tmp_path / "o")], capsys
    )


def test_files_for_a_corpus_that_has_its_own(case, capsys):
    assert (
        "does not take --train-source, --train-target, --dev-source, --dev-target, --test-source, "
        "--test-target: local does" in error_of(["sample_en_de", *case.arguments[1:]], capsys)
    )


def test_languages_that_a_corpus_does_not_have(case, capsys):
    arguments = ["sample_en_de", "--out", str(case.out), "--target-lang", "fr"]
    assert "choose --source-lang=en --target-lang=de, or" in error_of(arguments, capsys)
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
    def no_space(*_, **__):
        raise OSError(28, "No space left on device", str(case.out / "work"))

    monkeypatch.setattr("data_prep.pipeline.clean_splits", no_space)
    assert "No space left on device" in error_of(case.arguments, capsys)


def test_an_interrupt_says_how_to_go_on(case, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.pipeline.clean_splits", interrupt)
    assert main(case.arguments) == 130
    assert "the same command continues" in capsys.readouterr().err


CASES = {
    "same_splits": ("a b c\n" * 5, "held_out 5", "does not repeat dev and test"),
    "cr_only": ("x y\rz\r\n" * 3, "control_characters 3", "hold no control characters"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reasons_for_which_nothing_is_left_are_counted(case, capsys, name):
    text, counts, advice = CASES[name]
    for side in ("source", "target"):
        (case.files / f"train.{side}.txt").write_text(text, encoding="utf-8", newline="")
        if name == "same_splits":
            (case.files / f"test.{side}.txt").write_text(text, encoding="utf-8")
    message = error_of(case.arguments, capsys)
    assert f"no training pair of {counts.split()[1]} ({counts})" in message
    assert advice in message
    assert "max" not in message


def test_reasons_of_text_and_of_pieces_are_counted_together(case, capsys):
    message = error_of([*case.arguments, "--max-pieces", "1"], capsys)
    assert "no training pair of 404 (empty 1, control_characters 1, held_out" in message
    assert "or raise --max-pieces" in message


def test_a_pipe_is_refused_as_what_it_is(case, capsys):
    pipe = case.files / "pipe"
    os.mkfifo(pipe)
    case.arguments[case.arguments.index("--train-source") + 1] = str(pipe)
    message = error_of(case.arguments, capsys)
    assert "pipe is a pipe or a device, and the text is read several times: --train-s" in message


@pytest.mark.parametrize(
    ("more", "spelled"), [([], "--train-source"), (["--config-names"], "data.train_source")]
)
def test_a_setting_is_spelled_as_the_user_wrote_it(case, capsys, more, spelled):
    (case.files / "train.source.txt").write_bytes(b"")
    assert error_of([*case.arguments, *more], capsys).endswith(
        f"is empty: {spelled} takes a file with text"
    )
    arguments = [*command_line(write_local_files(case.files), case.out), "--vocab-size", "9"]
    spelled = spelled.replace("train", "vocab").replace("source", "size")
    assert f": {spelled} is too small: " in error_of([*arguments, *more], capsys)


def test_a_setting_of_a_file_is_spelled_as_in_the_file(case, capsys):
    spec = case.files / "spec.json"
    spec.write_bytes(msgspec.json.encode(replace(case.spec, train_source="not there")))
    message = error_of(["--spec", str(spec), "--out", str(case.out)], capsys)
    assert message.endswith("No such file or directory: train_source takes a text file")


def test_text_without_a_word_is_prepared(case):
    for split, count in (("train", 300), ("dev", 3), ("test", 3)):
        for side, letters in (("source", "😀😁😂🤣😃😄"), ("target", "0123456789!?.")):
            lines = (
                "".join(letters[(n // 7**k + k + len(split)) % len(letters)] for k in range(5))
                for n in range(count)
            )
            text = "".join(f"{line}\n" for line in lines)
            (case.files / f"{split}.{side}.txt").write_text(text, encoding="utf-8")
    more = ["--vocab-size", "40", "--max-ratio", "9", "--nearest", "true"]
    assert main([*case.arguments, *more]) == 0
    assert (case.out / "baselines" / "nearest.test.de").exists()


def test_the_nearest_line_can_be_left_out(case, capsys):
    assert main([*case.arguments, "--nearest", "False"]) == 0
    assert [path.name for path in (case.out / "baselines").iterdir()] == ["copy.test.de"]
    assert "nearest" not in capsys.readouterr().err


def test_folders_of_odd_names_in_an_ascii_terminal(case, tmp_path):
    """Each character works: fairseq divides at commas, rich reads brackets, ASCII has no ü."""
    odd = tmp_path / "q'[b], ü:😀 [/x] {y} %s \\"
    shutil.copytree(case.files, odd)
    arguments = [each.replace(str(case.files), str(odd)) for each in case.arguments]
    arguments[arguments.index("--out") + 1] = str(odd / "out[/x]")
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments, "--workers", "1"],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONOPTIMIZE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "[b], \\xfc:\\U0001f600 [/x] {y} %s \\/out[/x]/manifest.json\n" in done.stdout
    assert (odd / "out[/x]" / "bin" / "train.en-de.en.bin").stat().st_size
