"""Runs fairseq's commands for tests: their own entry points, in processes that share one import.

Importing fairseq takes five seconds. A fork server imports its command modules once (and nothing
of the plugin); each command is then a fresh process with an argument vector, a working directory
and a log file of its own.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

# The first one imported sets the format of the log for all: training's is the one that is read.
COMMANDS = ("train", "generate", "interactive", "validate", "hydra_train", "preprocess")
TIMEOUT_S = 120

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([f"fairseq_cli.{name}" for name in COMMANDS])


@dataclass(frozen=True)
class Result:
    """Exit status and everything written to the terminal."""

    status: int
    output: str

    def lines(self, start: str) -> list[str]:
        return [line for line in self.output.split("\n") if line.startswith(start)]


def _enter(command: str, arguments: Sequence[str], folder: str, log: str) -> None:
    """In the new process: becomes `fairseq-<command> <arguments>`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.argv = [f"fairseq-{command.replace('_', '-')}", *arguments]
    importlib.import_module(f"fairseq_cli.{command}").cli_main()


@dataclass
class Running:
    """A command that was started."""

    process: BaseProcess
    log: Path

    def wait(self) -> Result:
        self.process.join(TIMEOUT_S)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running: {self.log.read_text(encoding='utf-8')[-2000:]}")
        return Result(self.process.exitcode, self.log.read_text(encoding="utf-8"))


def start(command: str, *arguments: object, folder: Path, log: Path | str = "log.txt") -> Running:
    """Starts `fairseq-<command>` in `folder`, its output going to `folder / log`."""
    texts = [str(argument) for argument in arguments]
    names = (command, texts, str(folder), str(folder / log))
    process = _context.Process(target=_enter, args=names)
    process.start()
    return Running(process, folder / log)


def run(command: str, *arguments: object, folder: Path, log: Path | str = "log.txt") -> Result:
    """Runs `fairseq-<command>` to its end."""
    return start(command, *arguments, folder=folder, log=log).wait()


def succeed(command: str, *arguments: object, folder: Path, log: Path | str = "log.txt") -> Result:
    """Runs `fairseq-<command>`, which must end well."""
    result = run(command, *arguments, folder=folder, log=log)
    assert result.status == 0, result.output[-4000:]
    return result


def make_corpus(folder: Path, lines: dict[str, int]) -> Path:
    """Text of so many lines a split in `folder`, and its binarized form; returns the latter.

    The target is the source, in twelve words.
    """
    draw = random.Random(0)
    for split, count in lines.items():
        texts = [
            " ".join(draw.choice("abcdefghijkl") for _ in range(draw.randint(2, 9)))
            for _ in range(count)
        ]
        for language in ("en", "de"):
            path = folder / f"{split}.{language}"
            path.write_text("\n".join(texts) + "\n", encoding="utf-8", newline="\n")
    prefixes = [word for split in lines for word in (f"--{split}pref", folder / split)]
    languages = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary"]
    succeed("preprocess", *languages, *prefixes, "--destdir", folder / "bin", folder=folder)
    return folder / "bin"


def losses(result: Result, name: str = "loss") -> dict[int, str]:
    """Training loss of each update, or another figure, as it was printed."""
    found = {}
    for line in result.output.split("\n"):
        _, is_there, text = line.partition("| train_inner | ")
        if is_there:
            entry = json.loads(text)
            found[int(entry["num_updates"])] = entry[name]
    return found
