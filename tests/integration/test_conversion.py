"""A stock fairseq model converted, trained on and translated with, by the README's own commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from fairseq_commands import Result, losses, make_corpus, succeed

import gqa_fairseq
from gqa_fairseq.checkpoints.convert import main
from gqa_fairseq.checkpoints.load import load_model

pytestmark = pytest.mark.slow

ROOT = Path(gqa_fairseq.__file__).parents[1]
LINES = {"train": 120, "valid": 11, "test": 13}
PARENT, LAST = 7, 12  # updates; an epoch is longer, so the parent stops in the middle of one
ARCHITECTURE = ["--arch", "transformer"] + [
    word
    for side in ("encoder", "decoder")
    for option, value in (("embed-dim", 32), ("attention-heads", 4), ("layers", 1),
                          ("ffn-embed-dim", 64))
    for word in (f"--{side}-{option}", str(value))
]  # fmt: skip
HERE = ["--cpu", "--num-workers", "0", "--no-progress-bar"]
LOGGED = [*HERE, "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints"]


def commands() -> list[str]:
    """The README's three, as written, without their line ends."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    section = text.split("## I already have an MHA model\n")[1].split("\n## ")[0]
    found = re.findall(r"^    (.+)$", section, flags=re.MULTILINE)
    assert [command.split()[0] for command in found] == [
        "python", "fairseq-train", "fairseq-generate"
    ]  # fmt: skip
    return found


def words(command: str, **replaced: str) -> list[str]:
    """A command's arguments, with the values of options and places that differ here."""
    found = shlex.split(command)
    for name, value in replaced.items():
        option = f"--{name.replace('_', '-')}"
        assert option in found
        found[found.index(option) + 1] = value
    return found


def replace_word(found: list[str], old: str, new: list[str]) -> list[str]:
    at = found.index(old)
    return [*found[:at], *new, *found[at + 1 :]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), LINES)


@pytest.fixture(scope="module")
def parent(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A checkpoint in the middle of stock fairseq's training, which went on after it."""
    folder = tmp_path_factory.mktemp("parent")
    recipe = training(corpus)[2:]  # without the place of the plugin
    at = recipe.index("--restore-file")
    recipe = [*recipe[:at], *recipe[at + 2 :]]
    result = succeed(
        "train", corpus, *ARCHITECTURE, *recipe, "--save-interval-updates", PARENT, folder=folder
    )
    return folder / "uptrained" / f"checkpoint_1_{PARENT}.pt", result


def training(corpus: Path) -> list[str]:
    """The README's second command for a few updates: what follows its data and the model."""
    found = words(commands()[1], max_update=str(LAST), max_tokens="60", warmup_updates="10",
                  user_dir=str(ROOT / "gqa_fairseq"))[1:]  # fmt: skip
    found = replace_word(replace_word(found, "$(cat", []), "mqa.options)", [])
    assert found[0] == "DATA"
    return found[1:] + LOGGED


def convert_as_written(
    parent: Path, folder: Path, capsys: pytest.CaptureFixture, *more: str
) -> str:
    """The README's first command; returns the options that it prints."""
    found = words(commands()[0], num_kv_heads=more[0] if more else "1", out=str(folder / "mqa.pt"))
    assert found[-2:] == [">", "mqa.options"]
    assert found[:3] == ["python", "-m", "gqa_fairseq.checkpoints.convert"]
    capsys.readouterr()
    assert main(replace_word(found[3:-2], "checkpoint_best.pt", [str(parent)])) == 0
    return capsys.readouterr().out


def test_the_readme_converts_trains_on_and_translates(
    corpus: Path,
    parent: tuple[Path, Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Updates, learning rates and batches are those of the parent's own training from there."""
    options = convert_as_written(parent[0], tmp_path, capsys)
    trained = succeed("train", corpus, *options.split(), *training(corpus), folder=tmp_path)
    for figure in ("lr", "wpb", "bsz"):
        whole = losses(parent[1], figure)
        expected = {update: whole[update] for update in range(PARENT + 1, LAST + 1)}
        assert len(set(expected.values())) > 1
        assert losses(trained, figure) == expected
    state = torch.load(tmp_path / "uptrained" / "checkpoint_last.pt", weights_only=True)
    moments = state["last_optimizer_state"]["state"].values()
    assert {each["step"] for each in moments} == {LAST - PARENT}
    assert state["optimizer_history"][-1]["num_updates"] == LAST

    translate = words(commands()[2], user_dir=str(ROOT / "gqa_fairseq"))[1:]
    result = succeed(
        "generate", *replace_word(translate, "DATA", [str(corpus)]), *HERE, folder=tmp_path
    )
    assert len(result.lines("H-")) == LINES["test"]
    model, _ = load_model(tmp_path / "mqa.pt", corpus)
    assert {layer.self_attn.num_kv_heads for layer in model.decoder.layers} == {1}


def test_as_many_heads_are_the_parent_in_training(
    corpus: Path,
    parent: tuple[Path, Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first loss is the parent's, on its batch and with its dropout; then Adam is another."""
    options = convert_as_written(parent[0], tmp_path, capsys, "4")
    trained = succeed("train", corpus, *options.split(), *training(corpus), folder=tmp_path)
    ours, theirs = losses(trained), losses(parent[1])
    assert ours[PARENT + 1] == theirs[PARENT + 1]
    assert ours[LAST] != theirs[LAST]
