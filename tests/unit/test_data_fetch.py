"""Downloads: whole and with the right sum, or one line that says why not; they go on where they
stopped."""

import hashlib
import os
import socket
import threading

import pytest
from range_server import serve
from rich.console import Console

import data_prep.download.transfer
from data_prep.corpora.corpus import Download
from data_prep.download.fetch import fetch, fetch_all
from data_prep.spec import DataError

CONTENT = bytes(range(256)) * 5_000
SUM = hashlib.sha256(CONTENT).hexdigest()
NAME = "train.en.gz"
URL = f"https://corpora.invalid/path/{NAME}"
SIZE = len(CONTENT)
THIRD = len(CONTENT) * 3 // 10


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(data_prep.download.transfer, "_WAITS_S", (0, 0, 0))


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    return folder


@pytest.fixture
def server(mirror):
    with serve(mirror) as (url, faults):
        yield url, faults


@pytest.fixture
def get(tmp_path):
    def get(mirror, url=URL, checksum=SUM, size_bytes=SIZE):
        counted = []
        download = Download(url=url, checksum=checksum, size_bytes=size_bytes)
        path = fetch(download, tmp_path / "out", str(mirror), counted.append)
        return path, sum(counted)

    return get


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "http"])
@pytest.mark.parametrize("size_bytes", [len(CONTENT), None])
def test_from_a_mirror(get, mirror, server, kind, size_bytes, tmp_path):
    place = {"folder": mirror, "file": mirror.as_uri(), "http": f"{server[0]}/"}[kind]
    path, size = get(place, size_bytes=size_bytes)
    assert path.read_bytes() == CONTENT
    assert size == len(CONTENT)
    assert left_in(tmp_path / "out") == [NAME]


def test_an_md5(get, server):
    md5 = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"
    assert get(server[0], checksum=md5)[0].read_bytes() == CONTENT
    with pytest.raises(DataError, match="checksum is md5:"):
        get(server[0], checksum="md5:" + "0" * 32)


def test_what_is_there_is_not_fetched_again(get, server):
    get(server[0])
    assert get(server[0])[1] == len(CONTENT)
    assert len(server[1].requests) == 1


def test_a_damaged_file_is_fetched_again(get, mirror):
    path, _ = get(mirror)
    path.write_bytes(b"damaged")
    assert get(mirror)[0].read_bytes() == CONTENT


@pytest.mark.parametrize("size_bytes", [len(CONTENT), None])
def test_a_connection_cut_at_30_percent_goes_on_there(get, server, size_bytes):
    url, faults = server
    faults.cut_at[NAME] = THIRD
    path, counted = get(url, size_bytes=size_bytes)
    assert path.read_bytes() == CONTENT
    assert counted == len(CONTENT)
    assert faults.ranges_of(NAME) == [None, f"bytes={THIRD}-"]


def test_an_interrupted_run_goes_on_in_the_next(get, server, tmp_path):
    url, faults = server
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{NAME}.part").write_bytes(CONTENT[:THIRD])
    path, counted = get(url)
    assert path.read_bytes() == CONTENT
    assert counted == len(CONTENT)
    assert faults.ranges_of(NAME) == [f"bytes={THIRD}-"]
    assert left_in(tmp_path / "out") == [NAME]


@pytest.mark.parametrize("size_bytes", [len(CONTENT), None])
def test_a_server_without_ranges_starts_over(get, server, size_bytes):
    url, faults = server
    faults.ranges = False
    faults.cut_at[NAME] = THIRD
    path, counted = get(url, size_bytes=size_bytes)
    assert path.read_bytes() == CONTENT
    assert counted == len(CONTENT)
    assert len(faults.requests) == 2


@pytest.mark.parametrize(
    "part", [b"other" * 9, CONTENT + b"more", CONTENT], ids=["other", "long", "whole"]
)
@pytest.mark.parametrize("size_bytes", [len(CONTENT), None])
def test_any_part_ends_with_the_right_bytes(get, server, tmp_path, part, size_bytes):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{NAME}.part").write_bytes(part)
    path, counted = get(server[0], size_bytes=size_bytes)
    assert path.read_bytes() == CONTENT
    assert counted == len(CONTENT)


def test_a_server_in_trouble_is_asked_again(get, server):
    url, faults = server
    faults.status[NAME] = [503, 429]
    assert get(url)[0].read_bytes() == CONTENT
    assert len(faults.requests) == 3


def test_a_server_in_trouble_for_long(get, server):
    url, faults = server
    faults.status[NAME] = [503] * 9
    with pytest.raises(DataError, match="the server answers 503"):
        get(url)
    assert len(faults.requests) == 4  # as often as there are waits, and once


def test_a_wrong_byte(get, mirror, server, tmp_path):
    wrong = CONTENT[:-1] + b"\x01"
    (mirror / NAME).write_bytes(wrong)
    with pytest.raises(
        DataError,
        match=f"sha256 is {hashlib.sha256(wrong).hexdigest()}, expected {SUM}: .*another mirror",
    ):
        get(server[0])
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_a_file_of_another_size(get, mirror, server, tmp_path, kind):
    (mirror / NAME).write_bytes(CONTENT + b"more")
    with pytest.raises(DataError, match=f"{len(CONTENT) + 4} bytes, expected {len(CONTENT)}"):
        get({"folder": mirror, "http": server[0]}[kind])
    assert left_in(tmp_path / "out") == []


def test_a_file_that_ends_early(get, mirror, server):
    (mirror / NAME).write_bytes(CONTENT[:THIRD])
    with pytest.raises(DataError, match=f"{THIRD} bytes, expected {len(CONTENT)}"):
        get(server[0])
    with pytest.raises(DataError, match="sha256 is"):
        get(server[0], size_bytes=None)


def test_a_part_longer_than_what_the_server_has(get, mirror, server, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{NAME}.part").write_bytes(CONTENT[:-1])
    (mirror / NAME).write_bytes(CONTENT[:THIRD])
    with pytest.raises(DataError, match=f"{THIRD} bytes, expected {len(CONTENT)}"):
        get(server[0])


def test_a_file_that_the_server_lacks(get, server):
    with pytest.raises(DataError, match=r"/test\.en\.gz: the server answers 404 Not Found"):
        get(server[0], "https://corpora.invalid/test.en.gz")
    assert len(server[1].requests) == 1  # asking again would not help


def test_no_server(get):
    with socket.socket() as unused:  # bound and never listening: it refuses
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(DataError, match="no answer"):
            get(f"http://127.0.0.1:{port}")


def test_a_file_that_the_folder_lacks(get, mirror):
    with pytest.raises(DataError, match="the mirror lacks this file"):
        get(mirror, "https://corpora.invalid/test.en.gz")


def test_no_such_mirror(get, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        get(tmp_path / "nowhere")


def test_all_at_the_same_time(mirror, tmp_path):
    """Two files that are only sent when both have been asked for."""
    together = threading.Barrier(2, timeout=60)
    for name in ("a", "b"):
        os.mkfifo(mirror / name)

    def write(name):
        with (mirror / name).open("wb") as stream:
            together.wait()
            stream.write(CONTENT)

    writers = [threading.Thread(target=write, args=[name]) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    downloads = [Download(url=f"https://corpora.invalid/{name}", checksum=SUM) for name in "ab"]
    fetch_all(downloads, tmp_path / "out", str(mirror), Console(quiet=True))
    for writer in writers:
        writer.join()
    assert left_in(tmp_path / "out") == ["a", "b"]


def test_the_first_failure_is_the_error_and_others_keep_what_they_have(server, tmp_path):
    url, _ = server
    out = tmp_path / "out"
    downloads = [
        Download(url=URL, checksum=SUM, size_bytes=len(CONTENT)),
        Download(url="https://corpora.invalid/missing", checksum=SUM),
    ]
    with pytest.raises(DataError, match="404"):
        fetch_all(downloads, out, url, Console(quiet=True))
    assert left_in(out) in ([], [NAME], [f"{NAME}.part"])


def test_a_full_disk_keeps_what_came(get, server, monkeypatch, tmp_path):
    def full(count, advance, stop):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_prep.download.transfer, "_keep", full)
    with pytest.raises(OSError, match="No space left"):
        get(server[0])
    assert left_in(tmp_path / "out") == [f"{NAME}.part"]
