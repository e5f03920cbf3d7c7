"""Every command in the documents is one that the suite takes: parsed, and dry-run where it can be.

Those that really run, one of each family, are in tests/integration/test_documented_commands.py.
"""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT, Command, documented_commands, documents, dry_runs

FOREIGN = ("source", "wandb", "echo")  # the shell's and other people's
# Of the options that `gqa_fairseq.checkpoints.convert` prints, those that name what is trained.
CONVERTED = ["--task", "gqa_translation", "--arch", "gqa_transformer", "--num-kv-heads", "1"]
TEXT_FILE = re.compile(r"data\.(train|dev|test)_(source|target)=(.+)")
EXPERIMENTS = ROOT / "conf/experiment"
OWN_TEXT = re.compile(r"^  (?:train|dev|test)_(?:source|target): (.+)$", re.MULTILINE)


def plain(words: list[str]) -> list[str]:
    """Without variables in front, the environment's folder and what hands the command on."""
    while re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if words[0] == "srun":
        words = words[next(i for i, word in enumerate(words[1:], 1) if word[0] != "-") :]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


COMMANDS = documented_commands()
BY_PROGRAM: dict[str, list[Command]] = {}
for each in COMMANDS:
    BY_PROGRAM.setdefault(plain(each.words)[0], []).append(each)


def test_the_documents_have_commands_of_every_kind_that_is_checked_here() -> None:
    ours = {"make", "python", "fairseq-train", "fairseq-generate", "fairseq-interactive"}
    assert ours <= set(BY_PROGRAM)
    assert set(BY_PROGRAM) - ours <= set(FOREIGN)
    assert len(COMMANDS) > 40


def recipe(words: list[str]) -> list[list[str]]:
    """The commands that a target would run, without installing anything."""
    done = subprocess.run(
        ["make", "-n", "-o", "setup", *words[1:]],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = re.sub(r"\\\n\s*", " ", done.stdout).split("\n")
    return [plain(shlex.split(line)) for line in lines if line.startswith(".venv/bin/python -m")]


@pytest.mark.long
def test_commands_of_make_and_python_are_dry_run(tmp_path: Path) -> None:
    """What make would run is checked as the commands that stand in the documents themselves."""
    asked: dict[str, list[str]] = {}
    for command in BY_PROGRAM["make"]:
        for words in recipe(plain(command.words)):
            asked[f"{command.text}: {shlex.join(words)}"] = words
    asked |= {command.text: plain(command.words) for command in BY_PROGRAM["python"]}
    modules = {text: words[2:] for text, words in asked.items() if words[1] == "-m"}
    tests = {text: words for text, words in modules.items() if words[0] == "pytest"}
    for words in tests.values():
        assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))
    dry = {text: words for text, words in modules.items() if text not in tests}
    for words in dry.values():
        write_inputs(tmp_path, words)
    for (text, words), result in zip(dry.items(), dry_runs(dry.values(), tmp_path), strict=True):
        if words[0] in ("experiments.run", "experiments.prepare"):
            assert result["code"] == 0, f"{text}: {result['output']}"
            assert "# train " in result["output"], text
        else:
            assert result["code"] in (None, 0), f"{text}: {result['output']}"


def write_inputs(folder: Path, words: list[str]) -> None:
    """The files that a command of `experiments.run` names, as the request is a checksum of them."""
    for word in words:
        named = [text[3]] if (text := TEXT_FILE.fullmatch(word)) else []
        if word.startswith("experiment="):
            named += OWN_TEXT.findall((EXPERIMENTS / f"{word[11:]}.yaml").read_text("utf-8"))
        for name in named:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("one line\n", encoding="utf-8")
        if word.startswith("data.sources="):
            table = folder / word.partition("=")[2]
            table.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "data_prep/corpora/wmt14_en_de.json", table)


def test_scripts_are_python() -> None:
    scripts = [command for command in BY_PROGRAM["python"] if command.words[1] == "-"]
    assert scripts
    for command in scripts:
        names = [
            node.module for node in ast.walk(ast.parse(command.heredoc))
            if isinstance(node, ast.ImportFrom)
        ]  # fmt: skip
        assert "data_prep.text" in names
        assert all(importlib.util.find_spec(str(name)) for name in names)


def test_fairseqs_commands_are_read_by_fairseqs_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq import options

    import gqa_fairseq.models
    import gqa_fairseq.tasks  # noqa: F401  both register what the commands name

    monkeypatch.chdir(ROOT)  # --user-dir gqa_fairseq
    parsers = {
        "fairseq-train": options.get_training_parser,
        "fairseq-generate": options.get_generation_parser,
        "fairseq-interactive": lambda: options.get_generation_parser(interactive=True),
        "fairseq-validate": options.get_validation_parser,
    }
    seen = 0
    for program, parser in parsers.items():
        for command in BY_PROGRAM.get(program, ()):
            words = [word for word in plain(command.words)[1:] if word != "…"]
            if "$(cat" in words:  # what a conversion printed, with its file's name in two words
                at = words.index("$(cat")
                words[at : at + 2] = CONVERTED
            read = options.parse_args_and_arch(parser(), words)
            assert (read.user_dir, read.task.startswith(("gqa_", "trans"))) == ("gqa_fairseq", True)
            seen += 1
    assert seen >= 8


def test_inline_commands_name_targets_and_modules_that_are_there() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z0-9-]+)[^`]*`", text):
            assert target in targets, f"{path}: make {target}"
            seen += 1
        for module in re.findall(r"`(?:\.venv/bin/)?python -m ([\w.]+)[^`]*`", text):
            assert importlib.util.find_spec(module), f"{path}: python -m {module}"
            seen += 1
    assert seen > 10


def test_output_that_a_document_shows_is_what_the_command_prints() -> None:
    sessions = [command for command in COMMANDS if command.output]
    assert sessions
    for command in sessions:
        words = [sys.executable, *plain(command.words)[1:]]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
        shown = [line.split() for line in command.output.strip().split("\n")]
        assert [line.split() for line in done.stdout.strip().split("\n")] == shown
        assert done.stderr == ""
