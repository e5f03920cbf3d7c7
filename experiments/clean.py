"""Remove what nothing needs any more, and keep records, hypotheses, measurements and final weights.

    python -m experiments.clean            # says what it would remove
    python -m experiments.clean --yes      # removes it

Removed are checkpoints of finished trainings that were not evaluated (where a mean was), what
trainings that diverged left, and downloads of prepared data. What can be made again goes only if it
is asked for: unfinished stages (`--unfinished`), and prepared data (`--data`: models translate
without it, and are neither trained nor evaluated). A stage that a process works on is left alone.
"""

import argparse
import fcntl
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from experiments.arguments import Parser, add_outputs, command
from experiments.errors import ExperimentError
from experiments.records.storage import read_json
from experiments.stages.folders import RESULT_NAME, Done, ModelFolder, Trained, TrainResult
from experiments.stages.status.inventory import Outputs, StageFolder, in_bytes, size_of


class Removable(NamedTuple):
    """A file or a folder of a stage, and why it can go."""

    stage: StageFolder
    path: Path
    why: str


def removable(stages: list[StageFolder], *, unfinished: bool, data: bool) -> Iterator[Removable]:
    """What can go of stages on which no process works."""
    for stage in stages:
        if stage.state == "unfinished" and unfinished:
            note = f" ({stage.note})" if stage.note else ""
            yield Removable(stage, stage.path, f"unfinished{note}: it would start over")
        elif stage.kind == "prepare" and stage.state == "done":
            if data:
                yield Removable(stage, stage.path, "prepared data: it would be made again")
            elif (downloads := stage.path / "downloads").is_dir():
                yield Removable(stage, downloads, "downloads: the prepared data has what is needed")
        elif stage.kind == "train" and stage.state in ("done", "diverged"):
            yield from _spare_checkpoints(stage)


def _spare_checkpoints(stage: StageFolder) -> Iterator[Removable]:
    """The checkpoints beside the one that was evaluated, if that one is there and whole."""
    model = ModelFolder(stage.path)
    result = read_json(stage.path / RESULT_NAME, Done[TrainResult]).result
    final, why = None, "its training diverged"
    if isinstance(result, Trained):
        final, why = model.path / result.checkpoint, f"{result.checkpoint} is the model"
        if not zipfile.is_zipfile(final):
            return
    for path in sorted(model.checkpoints.glob("*.pt")):
        if path != final:
            yield Removable(stage, path, why)


def remove(found: list[Removable]) -> int:
    """Remove them, unless a process works there now; returns the bytes that were freed."""
    freed = 0
    for stage, path, _ in found:
        with ExitStack() as locks:
            try:
                for lock in stage.path.glob(".*lock"):
                    stream = locks.enter_context(lock.open("ab"))
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{path}: a process works there now: left alone")
                continue
            size = size_of(path)
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise ExperimentError(f"{path}: cannot be removed: {error.strerror}") from error
            freed += size
    return freed


@command()
def main(arguments: list[str] | None = None) -> int:
    """Say what can be removed, or remove it; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.clean",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_outputs(parser)
    parser.add_argument("--unfinished", action="store_true", help="interrupted stages as well")
    parser.add_argument("--data", action="store_true", help="prepared data as well")
    parser.add_argument("--yes", action="store_true", help="remove it, and do not only say so")
    options = parser.parse_args(arguments)
    outputs = Outputs(options.outputs)
    outputs.check()
    found = list(removable(outputs.stages(), unfinished=options.unfinished, data=options.data))
    for each in found:
        print(f"{in_bytes(size_of(each.path)):>8}  {each.path}  ({each.why})")
    if not found:
        print(f"{outputs.path}: nothing to remove")
    elif options.yes:
        print(f"removed: {in_bytes(remove(found))}")
    else:
        size = in_bytes(sum(size_of(each.path) for each in found))
        print(f"{size} would be removed, and nothing was: give --yes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
