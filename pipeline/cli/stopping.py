"""How a job is stopped: the first SIGINT or SIGTERM winds it up within ten seconds, a second one ends it at once."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from prelabel.pipeline.cli.terminal import INTERRUPTED
from prelabel.pipeline.logs import tell
from prelabel.schemas.errors import PrelabelError

SECONDS_TO_STOP = 8.0
"""For what winding up may take; then the process ends as it is, which a job survives."""


@contextmanager
def resumable(output: str) -> Iterator[None]:
    """Tells who stops a job how to go on with it, and exits."""
    how = f"prelabel resume {shlex.quote(output)}"

    def end_at_once(*_: object) -> NoReturn:
        with suppress(Exception):  # a print that was under way
            _tell(f"{how}, or the same command again if nothing was labeled yet")
        os._exit(INTERRUPTED)

    def stop(*_: object) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end_at_once)
        patience.start()
        raise KeyboardInterrupt

    patience = threading.Timer(SECONDS_TO_STOP, end_at_once)
    patience.daemon = True
    try:
        with _on_signals(stop):
            yield
    except KeyboardInterrupt:
        _tell(how if _is_planned(output) else "the same command again: nothing was labeled yet")
        sys.exit(INTERRUPTED)
    finally:
        patience.cancel()


@contextmanager
def _on_signals(handler: signal._HANDLER) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _is_planned(output: str) -> bool:
    from prelabel.pipeline.manifest import Manifest
    from prelabel.pipeline.storage import Storage

    try:
        return bool(Manifest(Storage(output)).read_job())
    except PrelabelError:
        return False


def _tell(how: str) -> None:
    tell("interrupted", f"\ninterrupted; go on with {how}", logging.WARNING, exit_code=INTERRUPTED)
