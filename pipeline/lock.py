"""One runner per job: `lock.json` says who is running, with a heartbeat.

No clock is compared between machines: a lock is fresh while its beat is seen to change. Should two runners work on one
job all the same, both write the same bytes under the same names: work is wasted, nothing is lost or there twice.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import orjson
import psutil

from prelabel.pipeline.manifest import FOLDER, checksum, to_json
from prelabel.pipeline.storage import Storage, reaching
from prelabel.schemas.errors import JobError, one_line

logger = logging.getLogger("prelabel")

LOCK = f"{FOLDER}/lock.json"
CLAIM = f"{FOLDER}/lock-claim-"
"""Files of this name exist for the moment in which the lock of a dead runner is replaced."""
BEAT_SECONDS = 5.0
BEATS_TO_WAIT = 3
_own: set[str] = set()
"""Owners of the locks that this process holds."""


class Lock:
    """Context manager: holds the job's lock, beating on a thread of its own.

    Args:
        storage: the job's output
        take_over: whether to take a lock that someone else holds
        on_lost: called, on another thread, when someone else has taken the lock
        beat_seconds: between heartbeats

    Raises:
        JobError: on entering, someone else holds it.
    """

    def __init__(
        self,
        storage: Storage,
        take_over: bool = False,
        on_lost: Callable[[], object] = bool,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self.storage = storage
        self.take_over = take_over
        self.on_lost = on_lost
        self.beat_seconds = beat_seconds
        self.owner = {"owner": uuid.uuid4().hex, **_this_process()}
        self.lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> Lock:
        _own.add(self.owner["owner"])
        try:
            with reaching(f"lock {self.storage.url}"):
                while not self.storage.create(LOCK, self._content(0)):
                    if self._replace():
                        break
        except BaseException:
            _own.discard(self.owner["owner"])
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        _own.discard(self.owner["owner"])
        try:
            if _owner(_read(self.storage)) == self.owner["owner"]:
                self.storage.delete(LOCK)
        except OSError as problem:  # the next runner sees that it beats no more
            logger.warning("the lock of %s is left behind: %s", self.storage.url, one_line(problem))

    def check(self) -> None:
        """Raises JobError if someone else has taken the job over."""
        if self.lost.is_set():
            raise JobError(f"another runner has taken over {self.storage.url}; this one stops")

    def _content(self, beat: int) -> bytes:
        return to_json({**self.owner, "beat": beat})

    def _replace(self) -> bool:
        """Takes a lock whose runner is gone; False if it is released meanwhile. Of several that try, one may."""
        held = _read(self.storage)
        if held is None:
            return False
        if not self.take_over and self._is_fresh(held, LOCK):
            who = f"process {held['pid']} on {held.get('host')}" if "pid" in held else "another process"
            raise JobError(
                f"{self.storage.url} is being worked on by {who}: wait for it, or take the job over with "
                f"`prelabel resume {self.storage.url} --take-over`"
            )
        claims = self._claim(held)
        try:
            if _owner(_read(self.storage)) != _owner(held):
                raise self._too_late()
            self.storage.put(LOCK, self._content(0))
        finally:
            for name in claims:
                self.storage.delete(name)
        if not self._is_kept(held):
            raise self._too_late()
        return True

    def _claim(self, held: dict[str, Any]) -> list[str]:
        """Claims the lock, past the claims of who died over it; returns their files' names.

        A claim is named after what it follows and is never written over, so that only one can follow.
        """
        names: list[str] = []
        while True:
            names.append(f"{CLAIM}{checksum(to_json([len(names), _owner(held)]))[:16]}.json")
            if self.storage.create(names[-1], self._content(0)):
                return names
            claimed = _read(self.storage, names[-1])
            if claimed is None or self._is_fresh(claimed, names[-1]):
                raise self._too_late()
            held = claimed

    def _too_late(self) -> JobError:
        return JobError(f"another runner took {self.storage.url} at the same moment; this one stops")

    def _is_kept(self, held: dict[str, Any]) -> bool:
        """Whether the lock stays; who is taken over may have been about to beat, and takes it back then."""
        if _is_here(held) and not _is_alive(held):
            return True
        for _ in range(BEATS_TO_WAIT):
            time.sleep(self.beat_seconds / 5)
            owner = _owner(_read(self.storage))
            if owner != _owner(held):
                return owner == self.owner["owner"]
            self.storage.put(LOCK, self._content(0))
        return False

    def _is_fresh(self, held: dict[str, Any], name: str) -> bool:
        if _is_here(held):
            return _is_alive(held)
        for _ in range(BEATS_TO_WAIT):
            time.sleep(self.beat_seconds)
            if _read(self.storage, name) not in (held, None):
                return True
        return False

    def _beat(self) -> None:
        beat = 0
        while not self._done.wait(self.beat_seconds):
            beat += 1
            try:
                if _owner(_read(self.storage)) != self.owner["owner"]:
                    self.lost.set()
                    self.on_lost()
                    return
                self.storage.put(LOCK, self._content(beat))
            except Exception:  # noqa: BLE001  each storage library has its own; a lost beat is no reason to stop
                continue


def holder(storage: Storage) -> dict[str, Any] | None:
    """Who holds the lock, as far as the file says; on this machine, only while the process lives."""
    held = _read(storage)
    if held is None or (_is_here(held) and not _is_alive(held)):
        return None
    return held


def _read(storage: Storage, name: str = LOCK) -> dict[str, Any] | None:
    try:
        content = orjson.loads(storage.read(name))
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _owner(held: dict[str, Any] | None) -> str | None:
    return held.get("owner") if held else None


def _this_process() -> dict[str, Any]:
    """Names this process, and the machine down to its boot and process namespace: pids mean nothing beyond them."""
    host = socket.gethostname()
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        machine = f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = f"{host} {psutil.boot_time()}"
    return {"host": host, "machine": machine, "pid": os.getpid(), "started": _started(os.getpid())}


def _is_here(held: dict[str, Any]) -> bool:
    return bool(held.get("machine") == _this_process()["machine"])


def _is_alive(held: dict[str, Any]) -> bool:
    if held.get("pid") == os.getpid() and held.get("owner") not in _own:
        return False  # it could not be released
    try:
        return _started(int(held["pid"])) == held["started"]
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False


def _started(pid: int) -> float:
    """When a living process began: ticks since boot where Linux says so, since a wall clock may be set in between."""
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    try:
        with open(f"/proc/{pid}/stat") as file:
            return float(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return process.create_time()
