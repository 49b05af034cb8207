"""A quiet Ray: started, joined or found running, and what it has to share out."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

import ray

from prelabel.schemas.errors import UserError


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, quiet: the caller's if it is there, the cluster at the address, or one of our own on this machine."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")  # which Ray would follow anyway
    # One processor more than there are: storage waits, mostly, and must never wait for the model.
    own = {} if address else {"num_cpus": (os.cpu_count() or 1) + 1, "include_dashboard": False}
    _check_answers(address)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _stderr_closed(), _own_signals():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError) as error:
        what = f"no Ray cluster answers at --address {address}" if address else "Ray can't be started here"
        raise UserError(f"{what}: {error}") from error
    try:
        with redirect_stdout(cast(TextIO, _WithoutRay(sys.stdout))):
            yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raises UserError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at --address {address}: {error}") from error


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Nothing reaches the terminal past Python: Ray's own libraries greet there, whatever the log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _WithoutRay:
    """Standard output, less what Ray's threads print there of dead workers, also with log_to_driver=False."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self.stream.write(text)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself and exits on the spot; whoever set a handler before gets it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def resources() -> tuple[int, float, float]:
    """Processors that actors may have, GPUs, and bytes of memory, of the whole cluster.

    One processor is left to storage.
    """
    found = ray.cluster_resources()
    return max(1, int(found.get("CPU", 1)) - 1), float(found.get("GPU", 0)), float(found.get("memory", 0))
