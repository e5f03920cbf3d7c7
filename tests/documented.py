"""The commands that stand in the documents, as words; and a process that dry-runs many of them.

    python tests/documented.py < [["experiments.run", "experiment=quickstart"], ...]

runs each module with its arguments, up to the point where it would begin to work, and prints what
came of it as JSON.
"""

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = re.compile(r"(\$ )?(\w+=\S+ )*(make|python|\.venv/bin/\w+|fairseq-\S+|srun|echo) ")
# Their name is enough to see that a block is about commands, whatever its first line is.
GIVEAWAYS = re.compile(r"python3? -m |fairseq-\w+ |^make ", re.MULTILINE)


class Command(NamedTuple):
    """A command of a document: its words, and what the document shows as its output."""

    document: str
    words: list[str]
    heredoc: str = ""
    output: str = ""

    @property
    def text(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def documents() -> list[Path]:
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "data_prep/README.md"]
    return sorted(path for path in paths if path.is_file())


def documented_commands() -> list[Command]:
    """All commands in blocks of code, in the order of the documents."""
    found = []
    for path in documents():
        name = path.relative_to(ROOT).as_posix()
        for block in blocks_of(path.read_text(encoding="utf-8")):
            if PROGRAMS.match(block):
                found += list(_commands_in(name, block))
            else:
                assert not GIVEAWAYS.search(block), f"{name}: commands, or not? {block}"
    return found


def blocks_of(text: str) -> Iterator[str]:
    """Blocks of code: indented ones, and fenced ones that name no other language than a shell."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for language, block in fenced.findall(text):
        if language in ("", "sh", "bash"):
            yield block
    rest = fenced.sub("", text)
    for match in re.finditer(r"(?:^|\n\n)((?: {4}.*(?:\n+|$))+)", rest):
        yield textwrap.dedent(match[1]).strip("\n") + "\n"


def _commands_in(document: str, block: str) -> Iterator[Command]:
    lines = iter(re.sub(r"\\\n\s*", " ", block).split("\n"))
    is_session = block.startswith("$ ")
    output: list[str] = []
    for line in lines:
        if is_session and not line.startswith("$ "):
            output.append(line)  # a session shows one command, the first line
            continue
        if not line.strip():
            continue
        heredoc = re.search(r" <<'(\w+)'$", line)
        body = []
        if heredoc:
            line = line[: heredoc.start()]
            body = list(iter(lambda: next(lines), heredoc[1]))
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "|" in words:
            at = words.index("|")
            yield Command(document, words[:at])
            words = words[at + 1 :]
        if ">" in words:
            words = words[: words.index(">")]
        rest = "\n".join([*output, *lines]) if is_session else ""
        yield Command(document, words, "\n".join(body), rest)


def dry_runs(commands: Iterable[list[str]], folder: Path) -> list[dict[str, Any]]:
    """What comes of commands, each a module and its arguments, in one process in `folder`."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(list(commands)), capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


class Parsed(Exception):  # noqa: N818  no error: as far as a dry run goes
    pass


def dry_run(module: str, arguments: list[str]) -> dict[str, Any]:
    """Exit code and output of a command that stops before its work; None: its options were read."""
    code: Any = None
    sys.argv = [module, *arguments]
    if module == "experiments.prepare":  # it takes the overrides of `run`
        module = "experiments.run"
    if module == "experiments.run":
        sys.argv += ["dry_run=true"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            code = end.code
        except Parsed:
            pass
    return {"code": code, "output": out.getvalue()}


def _parse_and_stop(parse: Any) -> Any:
    def stop(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise Parsed

    return stop


def main() -> None:
    parser = argparse.ArgumentParser
    asked, results = json.load(sys.stdin), []
    kept = {name: getattr(parser, name) for name in ("parse_args", "parse_intermixed_args")}
    for module, *arguments in asked:
        if not module.startswith(("experiments.run", "experiments.prepare")):
            for name, parse in kept.items():
                setattr(parser, name, _parse_and_stop(parse))
        try:
            results.append(dry_run(module, arguments))
        finally:
            for name, parse in kept.items():
                setattr(parser, name, parse)
        if "hydra" in sys.modules:
            from hydra.core.global_hydra import GlobalHydra

            GlobalHydra.instance().clear()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
