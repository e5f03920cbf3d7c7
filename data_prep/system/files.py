"""Files as bytes: checksums, and JSON that a reader sees whole or not at all."""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from data_prep.spec import DataError


def sha256_of_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksum_of_file(path: Path, like: str) -> str:
    """The checksum of a file in the form that `like` has: `md5:...`, or a sha256."""
    if not like.startswith("md5:"):
        return sha256_of_file(path)
    with path.open("rb") as stream:
        return f"md5:{hashlib.file_digest(stream, _unsafe_md5).hexdigest()}"


def check_sum(path: Path, expected: str, origin: str, advice: str) -> None:
    """Raise DataError unless `path`, which came from `origin`, has the checksum `expected`.

    The message has both sums and the `advice`.
    """
    try:
        actual = checksum_of_file(path, expected)
    except OSError as error:
        raise DataError(f"{origin}: {error.strerror}: {advice}") from error
    if actual != expected:
        kind = "checksum" if expected.startswith("md5:") else "sha256"
        raise DataError(f"{origin}: {kind} is {actual}, expected {expected}: {advice}")


def read_sums(path: Path) -> dict[str, str]:
    """The sha256 by file name in a file as `sha256sum` writes it."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return {name: value for value, name in (line.split(maxsplit=1) for line in lines if line)}


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON in one step: a reader sees all of it or none."""
    encoded = msgspec.json.encode(value, order="deterministic")
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    os.replace(temporary, path)


def _unsafe_md5() -> Any:
    """For checksums that others publish; some systems forbid it for anything else."""
    return hashlib.md5(usedforsecurity=False)
