"""A bucket in memory that fails to order."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import fsspec
from fsspec import AbstractFileSystem

T = TypeVar("T")
Fault = Callable[[str, str, Callable[[], Any]], Any]


class CrashError(BaseException):
    """The process is gone: nobody may catch this."""


def no_fault(call: str, path: str, effect: Callable[[], T]) -> T:
    return effect()


class Bucket(AbstractFileSystem):
    """Objects by name; each call goes through `fault`, which may make its effect or not, and fail or not."""

    protocol = "bucket"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    fault: ClassVar[Fault] = staticmethod(no_fault)

    @classmethod
    def reset(cls, files: dict[str, bytes] | None = None, fault: Fault = no_fault) -> None:
        cls.files.clear()
        cls.files.update(files or {})
        cls.fault = staticmethod(fault)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        return self.fault("ls", path, lambda: self._list(path, detail))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return self.fault("cat", path, lambda: self._find(path)[start:end])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.fault("create" if mode == "create" else "put", path, lambda: self._put(path, value, mode))

    def rm_file(self, path: str) -> None:
        self.fault("rm", path, lambda: self._remove(path))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        return io.BytesIO(self._find(path))

    def _find(self, path: str) -> bytes:
        try:
            return self.files[self._strip_protocol(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    def _put(self, path: str, data: bytes, mode: str) -> None:
        if mode == "create" and path in self.files:
            raise FileExistsError(path)
        self.files[path] = data

    def _remove(self, path: str) -> None:
        self._find(path)
        del self.files[path]

    def _list(self, path: str, detail: bool) -> list[Any]:
        inside = [name[len(path) + 1 :] for name in self.files if name.startswith(f"{path}/")]
        if not inside:
            raise FileNotFoundError(path)
        names = sorted({f"{path}/{name.partition('/')[0]}" for name in inside})
        return [self.info(name) for name in names] if detail else names


fsspec.register_implementation("bucket", Bucket, clobber=True)


def bury(files: dict[str, bytes]) -> None:
    """Makes the lock one of a process that has died, as seen from this machine."""
    for name in files:
        if name.endswith("lock.json"):
            files[name] = json.dumps(json.loads(files[name]) | {"started": -1.0}).encode()


def told(files: dict[str, bytes]) -> dict[str, Any]:
    """What a job promises of its files: all bytes, but for what a clock has said, a failure that is over, or a lock."""
    clocks = {"timings": None, "committed": None, "created": None}
    kept = {name: data for name, data in files.items() if not any(part in name for part in UNPROMISED)}
    return {name: json.loads(data) | clocks if name.endswith(".json") else data for name, data in kept.items()}


UNPROMISED = ("/_manifest/failures/", "/_manifest/temporary/", "/_manifest/lock.json")
