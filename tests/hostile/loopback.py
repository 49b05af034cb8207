"""A web server on loopback that answers as it is told, and counts what it is asked."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Loopback:
    """`files` by path; `faults` by path: a list of what to answer first, each a status, a Location, "short" or "stall".

    Attributes:
        url: of the server
        asked: path -> how often
        sent: bytes of bodies
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        self.sent = 0
        self.ranges = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        site: Loopback = self.server.site
        path = self.path.partition("?")[0]
        site.asked[path] += with_body
        faults = site.faults.get(path, [])
        fault = faults.pop(0) if faults else None
        data = site.files.get(path)
        if isinstance(fault, str) and "://" in fault:
            self._send(302, b"", with_body, Location=fault)
        elif isinstance(fault, int) or data is None:
            self._send(fault or 404, b"no", with_body)
        elif fault in ("short", "stall"):
            self._break_off(data, stall=fault == "stall")
        else:
            self._send_part(site, data, with_body)

    def _send_part(self, site: Loopback, data: bytes, with_body: bool) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if site.ranges else None
        if found:
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            self._send(206, data[first : last + 1], with_body)
        else:
            self._send(200, data, with_body, ETag=f'"{hash(data):x}"')

    def _send(self, status: int, data: bytes, with_body: bool, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.server.site.sent += len(data)
            self.wfile.write(data)

    def _break_off(self, data: bytes, stall: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if stall:
            time.sleep(5)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Such a server, while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.site = Loopback(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.site  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
