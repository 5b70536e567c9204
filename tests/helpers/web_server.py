"""A web server with ranges that serves a folder, and fails in the ways of real ones."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fsspec.implementations.http import HTTPFileSystem


class Ranged(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges; `cut` = send only half of every tar, `status` = refuse everything with it, `pause` = seconds
    before each quarter of a tar, `query` = what must follow every path, `broken` = files that it fails to read."""

    folder: Path
    cut = False
    status = 0
    pause = 0.0
    query = ""
    broken: tuple[str, ...] = ()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        place, _, query = self.path.partition("?")
        path = self.folder / place.rpartition("/")[2]
        if path.name in self.broken:
            self.send_error(500)
            return
        if self.status or query != self.query or not path.is_file():
            self.send_error(self.status or 404)
            return
        content, span = path.read_bytes(), self.headers.get("Range")
        if span:
            low, high = span.removeprefix("bytes=").split("-")
            content = content[int(low) : int(high) + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if path.suffix == ".tar":
            content = content[: len(content) // 2] if self.cut else content
            with contextlib.suppress(ConnectionError):  # it has hung up
                for start in range(0, len(content), quarter := -(-len(content) // 4)):
                    time.sleep(self.pause)
                    self.wfile.write(content[start : start + quarter])
        else:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No lines among the test's output."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a server of this folder; fsspec keeps nothing of it."""
    HTTPFileSystem.clear_instance_cache()
    Ranged.folder = folder
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranged) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    HTTPFileSystem.clear_instance_cache()
