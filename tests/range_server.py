"""A server of files on loopback that answers ranges, and fails as it is told to."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Faults:
    """What goes wrong, once for each file that is named, and which requests were made."""

    def __init__(self) -> None:
        self.cut_at: dict[str, int] = {}
        self.status: dict[str, list[int]] = {}
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []

    def ranges_of(self, name: str) -> list[str | None]:
        """The Range header of each request for a file."""
        return [asked for requested, asked in self.requests if requested == name]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Faults]]:
    """The server's URL and its faults, while the body runs."""
    faults = Faults()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            name = self.path.lstrip("/")
            asked = self.headers.get("Range")
            faults.requests.append((name, asked))
            path = folder / name
            if not path.is_file():
                self.send_error(404)
                return
            if faults.status.get(name):
                self.send_error(faults.status[name].pop(0))
                return
            content = path.read_bytes()
            start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and faults.ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : faults.cut_at.pop(name, None)])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", faults
        finally:
            server.shutdown()
            thread.join()
