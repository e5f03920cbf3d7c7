"""Fetch files from the network or a mirror, all at the same time, and check them.

A mirror is a folder, a `file:` or an `http:` URL that holds files of the same names. A file appears
under its own name only when it is whole and its sum is right.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console

from data_prep.corpora.corpus import Download
from data_prep.download.transfer import StoppedError, transfer
from data_prep.spec import DataError
from data_prep.system.files import check_sum, checksum_of_file
from data_prep.system.progress import Advance, show_each


def fetch_all(
    downloads: Sequence[Download], folder: Path, mirror: str | None, console: Console
) -> None:
    """`fetch` all of `downloads` into `folder` at the same time, with a bar each.

    The first failure stops the others; the next run continues them.
    """
    stop = threading.Event()
    sizes = {download.name: download.size_bytes for download in downloads}
    with (
        show_each(console, "fetch", sizes) as advances,
        ThreadPoolExecutor(max_workers=max(len(downloads), 1)) as pool,
    ):
        futures = [
            pool.submit(fetch, download, folder, mirror, advances[download.name], stop)
            for download in downloads
        ]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error


def fetch(
    download: Download,
    folder: Path,
    mirror: str | None,
    advance: Advance,
    stop: threading.Event | None = None,
) -> Path:
    """Copy a file into `folder`, unless it is there; `advance` takes bytes.

    With a mirror, the file comes from there instead. Raises DataError when the file cannot be read,
    or when it has another size or sum, also after a second download from its first byte.
    """
    path = folder / download.name
    if path.is_file() and checksum_of_file(path, download.checksum) == download.checksum:
        advance(path.stat().st_size)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    place = _place(download, mirror)
    part = path.with_name(f"{download.name}.part")
    resumed = part.exists() and part.stat().st_size > 0
    transfer(place, part, download.size_bytes, advance, stop or threading.Event())
    try:
        _check(download, part, place)
    except DataError:
        advance(-part.stat().st_size)
        part.unlink()
        if not resumed:
            raise
        # The earlier part may be of another file: download all of it again.
        return fetch(download, folder, mirror, advance, stop)
    os.replace(part, path)
    return path


def _check(download: Download, part: Path, place: str) -> None:
    advice = "not the file it should be; try another mirror"
    size = part.stat().st_size
    if download.size_bytes not in (None, size):
        raise DataError(f"{place}: {size} bytes, expected {download.size_bytes}: {advice}")
    check_sum(part, download.checksum, place, advice)


def _place(download: Download, mirror: str | None) -> str:
    """Where to read from: a URL of http, or a path."""
    if mirror is None:
        return download.url
    parts = urlsplit(mirror)
    if parts.scheme in ("http", "https"):
        return f"{mirror.rstrip('/')}/{download.name}"
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(mirror)
    if not folder.is_dir():
        raise DataError(f"mirror {mirror}: no such folder: give a folder or a URL")
    return str(folder / download.name)
