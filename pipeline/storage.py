"""Bytes in and out of a disk or a bucket, through fsspec: the only module that writes a job's output."""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from prelabel.schemas.errors import JobError, PrelabelError, UserError, one_line, redacted

TEMPORARY = "_manifest/temporary"
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "prelabel")
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
FINAL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG)


def _is_transient(error: BaseException) -> bool:
    """Whether trying again may help: what a disk or a server answers for good is not tried again."""
    return isinstance(error, OSError) and not isinstance(error, FINAL_ERRORS) and error.errno not in FINAL_NUMBERS


patiently = retry(
    retry=retry_if_exception(_is_transient),
    stop=stop_after_attempt(5),
    wait=wait_exponential_jitter(initial=0.2, max=10),
    reraise=True,
)
"""Decorator: repeats a storage call on a transient failure, five times at most, with growing pauses."""


def open_url(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL or local path, and the path within it; `options` are the file system's own.

    Raises:
        UserError: no file system answers to the URL's protocol, or its package is not installed.
    """
    try:
        return cast("tuple[fsspec.AbstractFileSystem, str]", fsspec.core.url_to_fs(os.fspath(url), **options))
    except (ImportError, ValueError) as error:
        extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "http": "http", "https": "http"}
        scheme = url.split("://")[0]
        how = f"pip install 'prelabel[{extra[scheme]}]'" if scheme in extra else "check the part before ://"
        raise UserError(f"can't open {url}: {error}; {how}") from error


def _tried_once(url: str) -> dict[str, Any]:
    """Options with which botocore repeats nothing: s3fs does, and `patiently`, and 5 x 5 x 5 times would be minutes."""
    if not url.startswith(("s3://", "s3a://")) or "config_kwargs" in fsspec.config.conf.get("s3", {}):
        return {}
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}}}


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is this machine's own."""
    return isinstance(fs, LocalFileSystem)


@contextmanager
def _asking(path: str) -> Iterator[None]:
    """Sorts what storage libraries answer: refusals name the object, and their own exceptions become OSErrors."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(f"{path}: {_reason(error)}") from error
    except Exception as error:
        if isinstance(error, OSError | PrelabelError) or type(error).__module__ == "builtins":
            raise
        raise OSError(f"{path}: {_reason(error)}") from error


@patiently
def read_file(fs: fsspec.AbstractFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or its range [start, end); a short answer counts as a failure and is asked for again."""
    with _asking(path):
        data = fs.cat_file(path, start=start, end=end)
    if end is not None and len(data) != end - (start or 0):
        raise OSError(f"{path}: {len(data)} bytes came back for the range {start or 0}-{end}")
    return cast(bytes, data)


def read_input(url: str, what: str) -> bytes:
    """The bytes of a small file that the user named; `what` is the option that named it.

    Raises:
        UserError: it can't be read, in whatever way its file system puts that.
    """
    with _reading(f"{what} {url}"):
        return read_file(*open_url(url))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except PrelabelError:
        raise
    except Exception as error:  # each file system has its own, down to builtin ones
        raise UserError(f"{what} can't be read: {_reason(error)}; check the path") from error


class Storage:
    """One folder of a local disk or a bucket; names are relative to it, with forward slashes."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a URL that holds a secret."""
        if "://" in url and redacted(url) != url:
            raise UserError(f"{redacted(url)} holds a secret: keep credentials where fsspec looks for them")
        # What other processes have written is seen at once only where no listing is kept.
        self.fs, self.root = open_url(url, use_listings_cache=False, **_tried_once(url))
        self.url: str = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.url,)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine (or mounted there)."""
        return is_local(self.fs)

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

    @patiently
    def names(self, folder: str) -> list[str]:
        """The sorted base names of the files in a folder; an absent folder has none."""
        try:
            with _asking(self.path(folder)):
                listed = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for path in listed if not (name := posixpath.basename(path)).startswith("."))

    @patiently
    def put(self, name: str, data: bytes) -> None:
        """Writes the file whole or not at all, replacing an older one; on return the bytes are safe.

        A local disk gets a temporary file, fsync and a rename; a bucket's single put is atomic by itself. Temporary
        files lie in a folder of their own, so that what a crash leaves is never beside the parts.
        """
        path = self.path(name)
        if not self.is_local:
            with _asking(path):
                self.fs.pipe_file(path, data)
            return
        temporary = self.path(f"{TEMPORARY}/{uuid.uuid4().hex}")
        for folder in (os.path.dirname(path), os.path.dirname(temporary)):
            _make_folder(folder)
        try:
            _write_and_sync(temporary, data)
            os.replace(temporary, path)
        except FileNotFoundError as error:  # another runner has swept the temporary files: try again
            raise OSError(f"{temporary} has gone before it was {path}") from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        _sync_folder(os.path.dirname(path))

    @patiently
    def add(self, name: str, data: bytes) -> None:
        """Writes a file of a folder that nobody reads before it is whole: without the care that `put` takes."""
        if self.is_local:
            path = Path(self.path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            self.fs.pipe_file(self.path(name), data)

    @patiently
    def create(self, name: str, data: bytes) -> bool:
        """Writes the file only if there is none of that name; False if there is one. One of two racers wins."""
        path = self.path(name)
        try:
            if self.is_local:
                _make_folder(os.path.dirname(path))
                _write_and_sync(path, data)
            else:
                with _asking(path):
                    self.fs.pipe_file(path, data, mode="create")
        except OSError as error:
            # What was reported as failed may have been done: only reading it back tells.
            try:
                return self.read(name) == data
            except FileNotFoundError:
                raise error from None
        return True

    @patiently
    def delete(self, name: str) -> None:
        """Removes the file if it is there."""
        try:
            with _asking(self.path(name)):
                self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return
        if self.is_local:
            _sync_folder(os.path.dirname(self.path(name)))  # so that deletes come in order after a power failure

    def delete_temporary(self) -> None:
        """Removes what writes that were cut short have left."""
        with suppress(OSError):  # they are harmless
            for name in self.names(TEMPORARY):
                self.delete(f"{TEMPORARY}/{name}")

    def check_shared(self) -> None:
        """Raises JobError for a file system that lives in this process alone: workers are other processes."""
        if isinstance(self.fs, MemoryFileSystem):
            raise JobError(f"{self.url} can't be seen by worker processes: choose another --output")

    def check_writable(self) -> None:
        """Raises JobError if nothing can be written here."""
        probe = f"{TEMPORARY}/{uuid.uuid4().hex}"
        with reaching(f"write to {self.url}"):
            self.put(probe, b"")
            self.delete(probe)


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Makes one JobError of whatever a file system answers when it can't do `what`; a bug stays what it is."""
    try:
        yield
    except Exception as error:  # each file system has its own: no credentials, no such host, no such bucket
        is_bug = type(error).__module__ == "builtins" and not isinstance(error, OSError | NotImplementedError)
        if is_bug or isinstance(error, PrelabelError):
            raise
        raise _unable(what, error) from error


def check_absent(url: str) -> None:
    """Raises JobError where there is a file, or a folder with something in it."""
    with reaching(f"look at {url}"):
        fs, path = open_url(url)
        folder = fs.isdir(path)
        if fs.exists(path) and not folder:
            raise JobError(f"there is a file {url}: remove it, or choose another --to")
        if folder and fs.ls(path, detail=False, refresh=True):
            raise JobError(f"there is something in {url}: remove it, or choose another --to")


@contextmanager
def writing(url: str) -> Iterator[BinaryIO]:
    """A file to stream into; it takes its place under the URL only when the block ends without an error.

    A link to a file stays a link.

    Raises:
        JobError: no file can be written there, the disk is full, or what is there is a folder or a device.
    """
    fs, path = open_url(url)
    try:
        with _replacing(path) if is_local(fs) else _uploading(fs, path, url) as file:
            yield file
    except OSError as error:  # the block's as well: its writes fail where the disk is full
        raise _unable(f"write {url}", error) from error


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError("what is there is not a regular file")
    path = os.path.realpath(path)
    temporary = f"{path}.{uuid.uuid4().hex}.partial"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def _uploading(fs: fsspec.AbstractFileSystem, path: str, url: str) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile() as here:
        yield cast(BinaryIO, here)
        here.flush()
        with reaching(f"write {url}"):
            patiently(fs.put_file)(here.name, path)


def local_copy(url: str) -> str:
    """The path of a weights file on this machine's disk: its own, or that of a copy in the cache folder.

    Raises:
        UserError: it can't be fetched, or lives in another process's memory.
    """
    with _reading(f"--weights {url}"):
        fs, path = open_url(url)
        if isinstance(fs, MemoryFileSystem):
            raise UserError(f"--weights {url} can't be seen by worker processes: save it on a disk or in a bucket")
        if not is_local(fs):
            options = {"cache_storage": CACHE, "check_files": True}
            path = cast(str, fsspec.open_local(f"filecache::{url}", filecache=options))
    return path


@contextmanager
def writing_folder(url: str) -> Iterator[str]:
    """Where to put the files of a new folder; on a disk, it appears when the block ends without an error.

    Raises:
        JobError: there is something in it already, or it can't be written.
    """
    folder = Storage(url)
    with reaching(f"write {url}"):
        if folder.names(""):
            raise JobError(f"there is something in {url}, where files would go: remove it, or choose another --to")
    try:
        with _replacing_folder(folder.root) if folder.is_local else nullcontext(url) as to:
            yield to
    except OSError as error:  # the block's as well: its writes fail where the disk is full
        raise _unable(f"write {url}", error) from error


@contextmanager
def _replacing_folder(path: str) -> Iterator[str]:
    path = os.path.realpath(path)
    temporary = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        os.makedirs(temporary)
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unable(what: str, error: Exception) -> JobError:
    how = "try again later" if _is_transient(error) else "choose another place, or mend the rights to this one"
    return JobError(f"can't {what}: {_reason(error)}; {how}")


def _reason(error: Exception) -> str:
    """What an error says, in one line, with its name where that is a bare path or nothing at all."""
    text = one_line(error)
    return text if " " in text else f"{type(error).__name__} {text}".rstrip()


def _write_and_sync(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.unlink(path)
            raise


def _make_folder(path: str) -> None:
    """Makes a folder whose name outlives a power failure, as the files in it do."""
    if not os.path.isdir(path):
        _make_folder(os.path.dirname(path))
        os.makedirs(path, exist_ok=True)
        _sync_folder(os.path.dirname(path))


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
