"""Structs in JSON files: written whole or not at all, read strictly.

A reader never sees half a file, because the bytes go to a temporary file of the same folder that
then replaces the target in one step. A reader never sees a surprise either: an unknown field, a
missing one, a wrong type or values that contradict each other end in one line that names file and
field.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from experiments.errors import ExperimentError

StructT = TypeVar("StructT", bound=msgspec.Struct)
Read = TypeVar("Read")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically; missing folders are made.

    Raises ExperimentError when the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with open(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files private; results are to be read by others, as the umask allows.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ExperimentError(
            f"{path}: cannot be written: {error.strerror or error} (choose a folder that you may "
            "write, with space left)"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with its newlines as they are, atomically; raises as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, struct: msgspec.Struct, struct_type: Any = None) -> None:
    """Write `struct` as indented JSON, atomically. A generic one needs its whole `struct_type`.

    Raises ExperimentError when reading it back would be refused: constraints of the types are not
    checked on construction.
    """
    encoded = msgspec.json.encode(struct, order="deterministic", enc_hook=_path_to_text)
    try:
        msgspec.json.decode(encoded, type=struct_type or type(struct), dec_hook=_text_to_path)
    except msgspec.ValidationError as error:
        raise ExperimentError(f"{path}: not written: {_in_words(error)}") from error
    write_text(path, msgspec.json.format(encoded, indent=2).decode() + "\n")


def read_bytes(path: Path) -> bytes:
    """The bytes of `path`; raises ExperimentError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Raise ExperimentError, one line, where `write_bytes` could put no file: before any work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be written: {error.strerror}") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, split at "\n" alone: text holds other separators as characters."""
    # Bytes, as read_text would turn a carriage return into a line of its own.
    return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def read_json(path: Path, struct_type: type[StructT]) -> StructT:
    """Read `path` as `struct_type`; raises ExperimentError, one line with file and field."""
    return decode_json(read_bytes(path), struct_type, path)


def decode_json(raw: bytes, struct_type: type[StructT], path: Path) -> StructT:
    """Decode `raw`, which came from `path`, as `struct_type`; raises as `read_json` does."""
    try:
        return msgspec.json.decode(raw, type=struct_type, dec_hook=_text_to_path)
    except msgspec.ValidationError as error:
        raise ExperimentError(f"{path}: {_in_words(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(
            f"{path}: not JSON: {error} (the file is damaged: remove it and make it again)"
        ) from error


def read_each(
    paths: Iterable[Path], read: Callable[[Path], Read]
) -> tuple[dict[Path, Read], list[str]]:
    """What `read` makes of each path, and a line for each that it refuses with ExperimentError."""
    found: dict[Path, Read] = {}
    refused = []
    for path in paths:
        try:
            found[path] = read(path)
        except ExperimentError as error:
            refused.append(str(error))
    return found, refused


class _Versioned(msgspec.Struct):
    schema_version: int


def read_versioned(path: Path, struct_type: type[StructT], version: int, remedy: str) -> StructT:
    """Read `path` as `struct_type` where its `schema_version` is `version`.

    The version comes first: another version's fields would only give a misleading message.

    Raises ExperimentError, one line that names file and field; `remedy` says what to do about
    another version.
    """
    raw = read_bytes(path)
    found = decode_json(raw, _Versioned, path).schema_version
    if found != version:
        raise ExperimentError(
            f"{path}: schema_version: {found}, but this code reads {version} ({remedy})"
        )
    return decode_json(raw, struct_type, path)


def _path_to_text(value: Any) -> str:
    """Paths are text in JSON; nothing else is unknown to msgspec."""
    if isinstance(value, Path):
        return str(value)
    # What msgspec documents for a hook that gets a type it does not know either.
    raise NotImplementedError(f"{type(value).__name__} in a result file")


def _text_to_path(kind: type, value: Any) -> Any:
    return kind(value)


def _in_words(error: msgspec.ValidationError) -> str:
    """msgspec's "problem - at `$.field`" with the field first."""
    problem, _, field = str(error).partition(" - at ")
    return f"{field.strip('`').removeprefix('$.') or 'top level'}: {problem}"
