"""Copy one file, from an http URL or a path, to a `.part` file; a new try continues the part.

A request with a range asks for the bytes that are missing. The part is kept only when the answer
says that it continues the part in a file of the expected size. The checksum is compared later.
"""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from data_prep.spec import DataError
from data_prep.system.progress import Advance

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30  # to connect, and between two pieces of an answer
_WAITS_S = (0.5, 1, 2, 4, 8)  # before each new try; a try that brings bytes starts them again
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class StoppedError(Exception):
    """Another file failed, or the user interrupted: the next run continues the `.part` file."""


class _BrokenError(Exception):
    """A try failed, and another try may succeed."""


def transfer(
    place: str, part: Path, size_bytes: int | None, advance: Advance, stop: threading.Event
) -> None:
    """Complete `part` from `place`; `advance` takes bytes, negative ones where it starts over.

    Raises DataError when it cannot be had, StoppedError soon after `stop` is set, and OSError when
    it cannot be written; `part` then has what came, for the next run.
    """
    if not place.startswith(("http://", "https://")):
        with part.open("wb") as stream:
            for chunk in _read_file(place):
                _keep(stream.write(chunk), advance, stop)
        return
    if part.exists() and size_bytes is not None and part.stat().st_size > size_bytes:
        part.unlink()
    advance(_size(part))
    waits = list(_WAITS_S)
    most = _size(part)
    with requests.Session() as session:  # it honours the proxies of the environment
        while True:
            try:
                _once(session, place, part, size_bytes, advance, stop)
                return
            except _BrokenError as error:
                if _size(part) > most:
                    most, waits = _size(part), list(_WAITS_S)
                if not waits:
                    raise DataError(
                        f"{place}: {error}: run the same command again, check the network, or "
                        "give a mirror"
                    ) from error
                if stop.wait(waits.pop(0)):
                    raise StoppedError from error


def _once(
    session: requests.Session,
    place: str,
    part: Path,
    size_bytes: int | None,
    advance: Advance,
    stop: threading.Event,
) -> None:
    have = _size(part)
    if have and have == size_bytes:
        return
    # Identity: the sums are those of the files, whatever encoding the server would like.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(place, stream=True, timeout=_TIMEOUT_S, headers=headers) as answer:
            if have and not _goes_on(answer, have, size_bytes):
                advance(-have)
                part.unlink()
                if answer.status_code != 200:
                    raise _BrokenError("the server refuses to go on with a part of the file")
            if answer.status_code in _TRANSIENT:
                raise _BrokenError(_status(answer))
            if not answer.ok:
                raise DataError(f"{place}: {_status(answer)}: check the address, or give a mirror")
            _check_size(answer, place, size_bytes)
            with part.open("ab") as stream:
                for chunk in answer.raw.stream(_CHUNK_BYTES, decode_content=False):
                    _keep(stream.write(chunk), advance, stop)
    except HTTPError as error:
        raise _BrokenError("the connection broke off") from error
    except requests.RequestException as error:
        raise _BrokenError(f"no answer ({type(error).__name__})") from error
    if size_bytes is not None and _size(part) < size_bytes:
        raise _BrokenError(f"the file ends after {_size(part)} of {size_bytes} bytes")


def _goes_on(answer: requests.Response, have: int, size_bytes: int | None) -> bool:
    """Whether an answer to a range is its bytes; an error that will pass leaves the part alone."""
    if answer.status_code in (200, 416):  # no ranges here, or none so far out
        return False
    if answer.status_code != 206:
        return True
    match = _RANGE.match(answer.headers.get("Content-Range", ""))
    return bool(match and int(match[1]) == have and match[2] in ("*", str(size_bytes or match[2])))


def _check_size(answer: requests.Response, place: str, size_bytes: int | None) -> None:
    """Raise DataError for another file than the expected one, before its bytes are sent."""
    total = answer.headers.get("Content-Length")
    if answer.status_code == 200 and size_bytes and total and int(total) != size_bytes:
        raise DataError(
            f"{place}: {total} bytes, expected {size_bytes}: not the file it should be; try "
            "another mirror"
        )


def _read_file(place: str) -> Iterator[bytes]:
    try:
        with open(place, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise DataError(f"{place}: {error.strerror}: the mirror lacks this file") from error


def _keep(count: int, advance: Advance, stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError
    advance(count)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _status(answer: requests.Response) -> str:
    return f"the server answers {answer.status_code} {answer.reason}"
