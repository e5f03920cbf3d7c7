"""Files from the network or a mirror, checked by sha256 before anything reads them.

A mirror is a folder, a `file:` or an `http:` URL that holds files of the same names. A file appears
under its own name only when it is whole and its sum is right.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from data_prep.errors import DataError
from data_prep.progress import Advance
from data_prep.text import sha256_of_file

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30  # to connect, and between two pieces of an answer
_RETRIES = Retry(
    total=3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
)


def fetch_all(
    urls: Sequence[str], sums: Mapping[str, str], folder: Path, mirror: str | None, advance: Advance
) -> None:
    """`fetch` each of `urls`; `sums` has the sha256 by file name."""
    for url in urls:
        fetch(url, sums[url.rsplit("/", 1)[-1]], folder, mirror, advance)


def fetch(url: str, sha256: str, folder: Path, mirror: str | None, advance: Advance) -> Path:
    """Bring the file of `url` into `folder`, unless it is there; `advance` takes bytes.

    With a mirror, the file of the same name there is used instead. Raises DataError when it cannot
    be had or has another sum.
    """
    name = url.rsplit("/", 1)[-1]
    path = folder / name
    if path.is_file() and sha256_of_file(path) == sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    place = _place(url, name, mirror)
    part = path.with_name(f"{name}.part")
    try:
        with part.open("wb") as stream:
            for chunk in _read(place):
                stream.write(chunk)
                advance(len(chunk))
        check_sum(part, sha256, place, "not the file it should be; try another --mirror")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def check_sum(path: Path, expected: str, origin: str, advice: str) -> None:
    """Raise DataError unless `path`, which came from `origin`, has the sha256 `expected`.

    The message has both sums and the `advice`.
    """
    try:
        actual = sha256_of_file(path)
    except OSError as error:
        raise DataError(f"{origin}: {error.strerror}: {advice}") from error
    if actual != expected:
        raise DataError(f"{origin}: sha256 is {actual}, expected {expected}: {advice}")


def read_sums(path: Path) -> dict[str, str]:
    """The sha256 by file name in a file as `sha256sum` writes it."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return {name: value for value, name in (line.split(maxsplit=1) for line in lines if line)}


def _place(url: str, name: str, mirror: str | None) -> str:
    """Where to read from: a URL of http, or a path."""
    if mirror is None:
        return url
    parts = urlsplit(mirror)
    if parts.scheme in ("http", "https"):
        return f"{mirror.rstrip('/')}/{name}"
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(mirror)
    if not folder.is_dir():
        raise DataError(f"--mirror {mirror}: no such folder: give a folder or a URL")
    return str(folder / name)


def _read(place: str) -> Iterator[bytes]:
    if not place.startswith(("http://", "https://")):
        try:
            with open(place, "rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise DataError(f"{place}: {error.strerror}: the mirror lacks this file") from error
        return
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=_RETRIES))
        try:
            with session.get(place, stream=True, timeout=_TIMEOUT_S) as answer:
                answer.raise_for_status()
                # The raw bytes: a server may label .gz files as encoded text, and the sums are
                # those of the files.
                yield from answer.raw.stream(_CHUNK_BYTES, decode_content=False)
        except (requests.RequestException, HTTPError) as error:
            raise DataError(
                f"{place}: {_reason(error)}: check the network, or give --mirror FOLDER_OR_URL"
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, HTTPError):
        return "the connection broke off"
    return f"no answer ({type(error).__name__})"
