"""Downloads: whole and with the right sum, or one line that says why not."""

import hashlib
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3.util.retry import Retry

import data_prep.fetch
from data_prep.errors import DataError
from data_prep.fetch import fetch

CONTENT = b"whole file \xff\x00" * 50_000
SUM = hashlib.sha256(CONTENT).hexdigest()
URL = "https://corpora.invalid/path/train.en.gz"


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; of a file called `cut...` it promises all and sends half."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2] if "cut" in self.path else content)


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "train.en.gz").write_bytes(CONTENT)
    return folder


@pytest.fixture
def server(mirror):
    handler = partial(Server, directory=str(mirror))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def get(tmp_path):
    def get(mirror, url=URL):
        chunks = []
        path = fetch(url, SUM, tmp_path / "out", str(mirror), chunks.append)
        return path, sum(chunks)

    return get


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "http"])
def test_from_a_mirror(get, mirror, server, kind, tmp_path):
    place = {"folder": mirror, "file": mirror.as_uri(), "http": f"{server}/"}[kind]
    path, size = get(place)
    assert path.read_bytes() == CONTENT
    assert size == len(CONTENT)
    assert left_in(tmp_path / "out") == ["train.en.gz"]


def test_what_is_there_is_not_fetched_again(get, mirror):
    get(mirror)
    (mirror / "train.en.gz").unlink()
    assert get(mirror)[1] == 0


def test_a_damaged_file_is_fetched_again(get, mirror):
    path, _ = get(mirror)
    path.write_bytes(b"damaged")
    assert get(mirror)[0].read_bytes() == CONTENT


def test_a_wrong_byte(get, mirror, server, tmp_path):
    wrong = CONTENT[:-1] + b"\x01"
    (mirror / "train.en.gz").write_bytes(wrong)
    with pytest.raises(
        DataError, match=f"sha256 is {hashlib.sha256(wrong).hexdigest()}, "
    ) as caught:
        get(server)
    assert f"expected {SUM}" in str(caught.value)
    assert "--mirror" in str(caught.value)
    assert left_in(tmp_path / "out") == []


def test_a_file_that_the_server_lacks(get, server, tmp_path):
    with pytest.raises(DataError, match=r"/test\.en\.gz: the server answers 404 File not found"):
        get(server, "https://corpora.invalid/test.en.gz")
    assert left_in(tmp_path / "out") == []


def test_a_connection_that_breaks(get, mirror, server, tmp_path):
    (mirror / "cut.en.gz").write_bytes(CONTENT)
    with pytest.raises(DataError, match=r"cut\.en\.gz: the connection broke off: "):
        get(server, "https://corpora.invalid/cut.en.gz")
    assert left_in(tmp_path / "out") == []


def test_no_server(get, monkeypatch):
    monkeypatch.setattr(data_prep.fetch, "_RETRIES", Retry(total=1, backoff_factor=0))
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
