"""Bytes in and out of a disk or a bucket, through fsspec: the only module that writes a job's output."""

from __future__ import annotations

import os
import posixpath
import uuid
from typing import Any, cast

import fsspec
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from prelabel.schemas.errors import JobError, UserError

FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def _is_transient(error: BaseException) -> bool:
    """Whether trying again may help: what a disk or a server answers for good is not tried again."""
    no_space = isinstance(error, OSError) and error.errno == 28
    return isinstance(error, OSError) and not isinstance(error, FINAL_ERRORS) and not no_space


patiently = retry(
    retry=retry_if_exception(_is_transient),
    stop=stop_after_attempt(5),
    wait=wait_exponential_jitter(initial=0.2, max=10),
    reraise=True,
)
"""Decorator: repeats a storage call on a transient failure, five times at most, with growing pauses."""


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL or local path, and the path within it.

    Raises:
        UserError: no file system answers to the URL's protocol, or its package is not installed.
    """
    try:
        return cast("tuple[fsspec.AbstractFileSystem, str]", fsspec.core.url_to_fs(os.fspath(url)))
    except (ImportError, ValueError) as error:
        extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "http": "http", "https": "http"}
        scheme = url.split("://")[0]
        how = f"pip install 'prelabel[{extra[scheme]}]'" if scheme in extra else "check the part before ://"
        raise UserError(f"can't open {url}: {error}; {how}") from error


@patiently
def read_file(fs: fsspec.AbstractFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or its range [start, end); a short answer counts as a failure and is asked for again."""
    data = fs.cat_file(path, start=start, end=end)
    if end is not None and len(data) != end - (start or 0):
        raise OSError(f"{path}: {len(data)} bytes came back for the range {start or 0}-{end}")
    return cast(bytes, data)


class Storage:
    """One folder of a local disk or a bucket; names are relative to it, with forward slashes."""

    def __init__(self, url: str) -> None:
        self.fs, self.root = open_url(url)
        self.url: str = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.url,)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine (or mounted there)."""
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def path(self, name: str) -> str:
        """What the file system calls the file of this name."""
        return posixpath.join(self.root, name)

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        return read_file(self.fs, self.path(name))

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name."""
        return bool(self.fs.exists(self.path(name) if name else self.root))

    def names(self, folder: str) -> list[str]:
        """The sorted base names of the files in a folder; an absent folder has none."""
        try:
            listed = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(name for path in listed if not (name := posixpath.basename(path)).startswith("."))

    @patiently
    def put(self, name: str, data: bytes) -> None:
        """Writes the file whole or not at all, replacing an older one; on return the bytes are safe.

        A local disk gets a hidden temporary name, fsync and a rename; a bucket's single put is atomic by itself.
        """
        path = self.path(name)
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.tmp")
        try:
            _write_and_sync(temporary, data, os.O_EXCL)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
        _sync_folder(os.path.dirname(path))

    def create(self, name: str, data: bytes) -> bool:
        """Writes the file only if there is none of that name; False if there is one. One of two racers wins."""
        path = self.path(name)
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                _write_and_sync(path, data, os.O_EXCL)
            else:
                self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Removes the file if it is there."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def check_writable(self) -> None:
        """Raises JobError if nothing can be written here."""
        probe = f"_manifest/.{uuid.uuid4().hex}.probe"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise JobError(f"can't write to {self.url}: {error}; choose another --output or mend its rights") from error


def _write_and_sync(path: str, data: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
