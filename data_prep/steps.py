"""Steps that are done once: each has a folder that appears whole, with a stamp of its inputs.

A step builds into `<name>.part`, which is renamed to `<name>` when it is complete. A folder whose
stamp has the right key is done and is not built again; half a folder is thrown away.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from rich.console import Console

from data_prep.spec import digest
from data_prep.system.files import sha256_of_file, write_json
from data_prep.system.progress import Advance, Timing, show

STAMP_NAME = "stamp.json"

Result = TypeVar("Result")


class _Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    files: dict[str, str]
    result: msgspec.Raw


class Step(msgspec.Struct, Generic[Result], frozen=True):
    """A step that is done: its folder, the sha256 of its files by path there, and its result."""

    folder: Path
    files: dict[str, str]
    result: Result


class Steps:
    """The steps of one preparation, in `root`, with progress on `console`.

    Steps of another `recipe`, a version of the code, count as not done. `timings` has those that
    were built, by name.
    """

    def __init__(self, root: Path, recipe: int, console: Console) -> None:
        self._root = root
        self._recipe = recipe
        self._console = console
        self.timings: dict[str, Timing] = {}

    def run(
        self,
        name: str,
        inputs: object,
        build: Callable[[Path, Advance], Result],
        result_type: type[Result],
    ) -> Step[Result]:
        """The step `name`, built by `build(folder, advance)` unless it is done for these `inputs`.

        `inputs` is whatever decides what comes out, and can be written as JSON.
        """
        key = digest([self._recipe, name, inputs])
        folder = self._root / name
        stamp = self._read_stamp(folder)
        if stamp is None or stamp.key != key:
            stamp = self._build(folder, key, build)
        result = msgspec.json.decode(stamp.result, type=result_type)
        return Step(folder=folder, files=stamp.files, result=result)

    def _read_stamp(self, folder: Path) -> _Stamp | None:
        try:
            stamp = msgspec.json.decode((folder / STAMP_NAME).read_bytes(), type=_Stamp)
        except (OSError, msgspec.DecodeError):
            return None
        # Files leave when they are published; after a crash there, the step is built again.
        return stamp if all((folder / name).is_file() for name in stamp.files) else None

    def _build(self, folder: Path, key: str, build: Callable[[Path, Advance], Result]) -> _Stamp:
        part = folder.with_name(f"{folder.name}.part")
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        try:  # a signal that comes within mkdir is raised after it, with the folder there
            part.mkdir(parents=True)
            timing = self.timings[folder.name] = Timing()
            with show(self._console, folder.name, timing) as advance:
                result = build(part, advance)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):
                self._root.rmdir()  # unless earlier steps are there
            raise
        files = {
            path.relative_to(part).as_posix(): sha256_of_file(path)
            for path in sorted(part.rglob("*"))
            if path.is_file()
        }
        stamp = _Stamp(key, files, msgspec.Raw(msgspec.json.encode(result)))
        write_json(part / STAMP_NAME, stamp)
        os.replace(part, folder)
        return stamp
