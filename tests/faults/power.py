"""What a disk may hold after the power has gone: every legal rest of the writes made until then.

A write is safe once its file has been synced, a name (of a new folder, or after a rename) once its folder has been.
Of what is not safe all, none, any single one, or all but one may be there; a file that was not synced is cut in half.
"""

from __future__ import annotations

import builtins
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest.mock import patch

from fsspec.implementations.local import LocalFileSystem

from prelabel.pipeline import storage


@dataclass
class Content:
    """Of a file, whatever it is called."""

    data: bytes = b""
    is_safe: bool = False


@dataclass
class Entry:
    """A name given (to a folder: no content) or taken away."""

    path: str
    content: Content | None = None
    is_removal: bool = False
    is_safe: bool = False


@dataclass
class Disk:
    """The names and contents in the order in which they came."""

    root: str
    entries: list[Entry] = field(default_factory=list)
    moments: list[list[tuple[Entry, bool, bytes, bool]]] = field(default_factory=list)
    """After each change, of each entry: whether its name is safe, its content and whether that is safe."""

    def note(self) -> None:
        """A moment at which the power may go."""
        self.moments.append(
            [
                (one, one.is_safe, one.content.data if one.content else b"", bool(one.content and one.content.is_safe))
                for one in self.entries
            ]
        )

    def make_folder(self, path: str) -> None:
        self.entries.append(Entry(path))
        self.note()

    def write(self, path: str, data: bytes) -> None:
        self.entries.append(Entry(path, Content(data)))
        self.note()

    def sync(self, path: str) -> None:
        for one in self.entries:
            if one.path == path and one.content:
                one.content.is_safe = True
            if os.path.dirname(one.path) == path:
                one.is_safe = True
        self.note()

    def rename(self, path: str, to: str) -> None:
        found = next(one for one in reversed(self.entries) if one.path == path)
        self.entries.append(Entry(to, found.content))
        self.entries.remove(found)
        self.note()

    def remove(self, path: str) -> None:
        self.entries.append(Entry(path, is_removal=True))
        self.note()

    def states(self) -> Iterator[dict[str, bytes | None]]:
        """What may be there: the content of each file, None for a folder; each state once."""
        seen = set()
        for moment in self.moments:
            for kept in _choices([number for number, (_, is_safe, *_) in enumerate(moment) if not is_safe]):
                state = self._state(moment, kept)
                key = frozenset(state.items())
                if key not in seen:
                    seen.add(key)
                    yield state

    def _state(self, moment: list[tuple[Entry, bool, bytes, bool]], kept: set[int]) -> dict[str, bytes | None]:
        state: dict[str, bytes | None] = {}
        for number, (entry, is_safe, data, is_whole) in enumerate(moment):
            parent = os.path.dirname(entry.path)
            if not (is_safe or number in kept) or (parent != self.root and parent not in state):
                continue
            if entry.is_removal:
                state.pop(entry.path, None)
            else:
                state[entry.path] = None if entry.content is None else data if is_whole else data[: len(data) // 2]
        return state

    def restore(self, state: dict[str, bytes | None]) -> None:
        shutil.rmtree(self.root)
        os.mkdir(self.root)
        for path, data in state.items():
            if data is None:
                os.mkdir(path)
            else:
                Path(path).write_bytes(data)


def _choices(unsafe: list[int]) -> Iterator[set[int]]:
    yield set()
    yield set(unsafe)
    for one in unsafe:
        yield {one}
        yield set(unsafe) - {one}


@contextmanager
def recorded(root: str) -> Iterator[Disk]:
    """Keeps account of what `storage` does to a folder on a disk."""
    disk = Disk(root)
    opened: dict[int, str] = {}

    def makedirs(path: str, exist_ok: bool = False) -> None:
        if not os.path.isdir(path):
            makedirs(os.path.dirname(path))
            os.mkdir(path)
            disk.make_folder(path)

    def replace(path: str, to: str) -> None:
        os.replace(path, to)
        disk.rename(path, to)

    def open_folder(path: str, flags: int) -> int:
        descriptor = os.open(path, flags)
        opened[descriptor] = path
        return descriptor

    def open_file(path: str, mode: str) -> IO[Any]:
        file = builtins.open(path, mode)  # noqa: SIM115
        opened[file.fileno()] = path
        if "x" in mode:
            write = file.write
            return _Watched(file, lambda data: (disk.write(path, data), write(data)))  # type: ignore[return-value]
        return file

    def rm_file(fs: LocalFileSystem, path: str) -> None:
        os.remove(path)
        disk.remove(path)

    own = {"makedirs": makedirs, "replace": replace, "open": open_folder, "fsync": lambda fd: disk.sync(opened[fd])}
    watched = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)} | own)
    with (
        patch.object(storage, "os", watched),
        patch.object(storage, "open", open_file, create=True),
        patch.object(LocalFileSystem, "rm_file", rm_file),
    ):
        yield disk


class _Watched:
    """A file whose writes are told."""

    def __init__(self, file: IO[Any], write: Callable[[bytes], object]) -> None:
        self.file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
