"""Logs for programs: with `--log-json` all that people would read on stderr is one JSON object a line."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from prelabel.schemas.errors import redacted

_events = logging.getLogger("prelabel.events")
_events.setLevel(logging.CRITICAL + 1)  # people are told in other ways


class TextFormatter(logging.Formatter):
    """A log record as a line for people, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging's own."""
        return redacted(super().format(record))


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: time, level, event, message, and the facts that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; what JSON has no word for becomes text."""
        told = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        # Before JSON writes backslashes into what is no English, and after, for what lies deeper.
        shown = {name: redacted(value) if isinstance(value, str) else value for name, value in told.items()}
        return redacted(json.dumps(shown, default=str))


class _Lines(io.TextIOBase):
    """What is written to stderr past the log, as events."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            event("message", line)
        return len(text)


@contextmanager
def json_lines() -> Iterator[None]:
    """Makes JSON lines of stderr: of the log, of events, and of whatever else Python writes there."""
    root, stderr, level = logging.getLogger(), sys.stderr, _events.level
    handlers, handler = root.handlers[:], logging.StreamHandler(stderr)
    handler.setFormatter(JsonFormatter())
    root.handlers, sys.stderr = [handler], _Lines()
    _events.setLevel(logging.INFO)
    try:
        yield
    finally:
        print(file=sys.stderr)  # ends a line that was begun
        root.handlers, sys.stderr = handlers, stderr
        _events.setLevel(level)


def is_json() -> bool:
    """Whether stderr is for programs."""
    return _events.isEnabledFor(logging.INFO)


def event(name: str, message: str, level: int = logging.INFO, exc_info: bool = False, **facts: Any) -> None:
    """Tells programs what has happened; people hear nothing of it."""
    _events.log(level, "%s", message.strip(), exc_info=exc_info, extra={"event": name, "facts": facts})


def tell(name: str, message: str, level: int = logging.INFO, **facts: Any) -> None:
    """Tells programs, or else people: a line on stderr."""
    if is_json():
        event(name, message, level, **facts)
    else:
        print(redacted(message), file=sys.stderr)
