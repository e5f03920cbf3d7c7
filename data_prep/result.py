"""The folder that prepared data lies in: one process at a time, complete when it has a manifest."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.spec import MANIFEST_NAME, DataError, DataSpec, Manifest, load_manifest
from data_prep.steps import Step
from data_prep.system.files import sha256_of_file, write_json
from data_prep.system.locks import hold

WORK = "work"
LOCK_NAME = ".data_prep.lock"
# What a finished folder holds; everything else that the steps made is for other steps.
RESULTS = ("text", "bin", "baselines", "spm.model", "spm.vocab")


@contextmanager
def only_one(out: Path, console: Console) -> Iterator[None]:
    """Make `out` and hold its lock, which the system frees when the process ends, however it ends.

    Commands that `run_logged` starts hold it too: they write on when this process is killed, and
    the next process must not work beside them. Another process that prepares the same folder
    waits, and then finds the work done. Raises DataError when `out` cannot be written or holds
    files that are not of this package.
    """
    lock = out / LOCK_NAME

    def say_waiting() -> None:
        console.print(f"{out}: another process prepares it; waiting")

    try:
        out.mkdir(parents=True, exist_ok=True)
        # In this order: another process that begins now makes its lock before all else.
        if any(out.iterdir()) and not lock.exists() and not _has_manifest(out):
            raise DataError(f"{out} holds other files: give --out a new folder")
        stream = hold(lock, say_waiting)
    except OSError as error:
        raise DataError(
            f"{out}: {error.strerror}: give --out a folder that you may write"
        ) from error
    with stream:
        yield


def _has_manifest(out: Path) -> bool:
    """Whether `out` is a finished folder, perhaps a copy of one that has no lock."""
    try:
        load_manifest(out / MANIFEST_NAME)
    except DataError:
        return False
    return True


def read_finished(
    out: Path, spec: DataSpec, inputs: Mapping[str, str], request: str
) -> Manifest | None:
    """The manifest in `out` if it answers `request` and every file of it is as it was written.

    It writes nothing, so that the folder may be read-only. It returns None where data has to be
    prepared, and raises DataError when the folder holds data of another request; the message says
    how that data differs from `spec` and the checksums of its `inputs`.
    """
    try:
        manifest = load_manifest(out / MANIFEST_NAME)
    except DataError:
        return None
    if manifest.request != request:
        raise DataError(
            f"{out} holds other data ({_difference(manifest, spec, inputs)}): give another --out, "
            "or --force to replace it"
        )
    try:
        whole = all(sha256_of_file(out / name) == sha for name, sha in manifest.files.items())
    except OSError:
        return None
    return manifest if whole else None


def _difference(manifest: Manifest, spec: DataSpec, inputs: Mapping[str, str]) -> str:
    """What the data of `manifest` was made of, where that is not what is asked for now."""
    settings = [field for field in DataSpec.__struct_fields__ if hasattr(manifest, field)]
    there = {field: getattr(manifest, field) for field in settings}
    differ = [field for field in settings if there[field] != getattr(spec, field)]
    if differ:
        return ", ".join(
            f"{field} is {there[field]}, not {getattr(spec, field)}" for field in differ
        )
    names = sorted(manifest.inputs.keys() | inputs.keys())
    changed = [name for name in names if manifest.inputs.get(name) != inputs.get(name)]
    if changed:
        return f"made of other contents of {', '.join(changed)}"
    return "made by another version of data_prep"


def result_files(steps: Sequence[Step[Any]]) -> dict[str, str]:
    """The sha256, by path in the finished folder, of what the steps made for it."""
    files = {name: sha256 for step in steps for name, sha256 in step.files.items()}
    return {name: files[name] for name in sorted(files) if name.split("/")[0] in RESULTS}


def publish(steps: Sequence[Step[Any]], manifest: Manifest, out: Path) -> None:
    """Put the steps' files in place of what `out` held before, the manifest last.

    The work goes after it: whoever is interrupted there has the results.
    """
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    for name in RESULTS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    for step in steps:
        for name in manifest.files.keys() & step.files.keys():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(step.folder / name, out / name)
    write_json(out / MANIFEST_NAME, manifest)
    shutil.rmtree(out / WORK)
