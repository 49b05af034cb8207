"""An S3 server on loopback, and a proxy before it that has faults to order."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
server._thread.join()
"""
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
HEADERS_OF_A_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}

Choose = Callable[[str, str], str]
"""(method, path) -> "" or a fault: 503, deny, reset (in the middle of the body), stall, lost (done, but no answer)."""


@contextmanager
def s3_server() -> Iterator[int]:
    """moto's, in a process of its own; gives its port."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port of this machine, as far as `choose` lets them."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: int, choose: Choose = lambda method, path: "") -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target, self.choose = target, choose
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.seconds_of_a_stall = 2.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, address: object) -> None:
        """Says nothing of connections that were cut."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        server.requests.append((self.command, self.path))
        fault = server.choose(self.command, self.path)
        server.faults[fault] += 1
        if fault == "stall":
            time.sleep(server.seconds_of_a_stall)
        if fault in ("503", "deny"):
            self._answer(503 if fault == "503" else 403, {}, SLOW_DOWN if fault == "503" else DENIED)
            return
        there = http.client.HTTPConnection("127.0.0.1", server.target)
        there.request(self.command, self.path, body, dict(self.headers.items()))
        answer = there.getresponse()
        data, headers = answer.read(), dict(answer.getheaders())
        there.close()
        if fault in ("lost", "stall"):
            self._cut()
        elif fault == "reset":
            self._answer(answer.status, headers, data, len(data) // 2)
            self._cut()
        else:
            self._answer(answer.status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], data: bytes, end: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HEADERS_OF_A_HOP:
                self.send_header(name, value)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), str(len(data)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:end])

    def _cut(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextmanager
def proxy(target: int, choose: Choose = lambda method, path: "") -> Iterator[Proxy]:
    with Proxy(target, choose) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def now_and_then(seed: int, share: float, faults: tuple[str, ...]) -> Choose:
    """A share of all requests, by chance, has one of the faults."""
    chance = random.Random(seed)
    return lambda method, path: chance.choice(faults) if chance.random() < share else ""


def environment(url: str) -> dict[str, str]:
    """What makes s3fs, here and in other processes, ask the server at the URL."""
    secrets = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "no-one-may-read-this"}
    return {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"} | secrets
