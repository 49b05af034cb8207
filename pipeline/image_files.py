"""Where an export's images are: told by name alone, under a URL, or files beside the labels."""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from prelabel.pipeline.originals import Originals
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.sources.names import IMAGE_SUFFIXES
from prelabel.pipeline.storage import Storage, is_local, open_url, writing_folder
from prelabel.schemas.errors import SourceError, UserError, one_line

THREADS = 16
LONGEST = 200
"""Bytes of a part of a name; file systems take 255, and a format adds some."""
JOINER = "\u200d"
"""What holds an emoji together."""
BY_FORMAT = {"jpeg": ".jpg", "tiff": ".tif", "mpo": ".jpg", "jpeg2000": ".jp2"}
Row = Mapping[str, Any]
Put = Callable[[Row, str], None]
Batches = Iterable[pa.RecordBatch]


class ImageFiles:
    """How an export refers to images.

    Args:
        how: "none" (by name), "copy", "link", or a URL or path that the names are appended to
        dataset: whose images

    Raises:
        UserError: it is none of these.
    """

    def __init__(self, how: str, dataset: Labels) -> None:
        if how not in ("none", "copy", "link") and "/" not in how:
            raise UserError(f"--images takes copy, link, none or a URL that names are appended to, not {how!r}")
        self._how, self._dataset = how, dataset
        self._failures, self._first_failure, self._there = 0, "", 0
        self._counting = threading.Lock()

    @property
    def are_put(self) -> bool:
        """Whether the export holds the images themselves."""
        return self._how in ("copy", "link")

    def url(self, image: Row) -> str | None:
        """Where the image is to be found, percent-encoded; None where nobody said."""
        if self.are_put or self._how == "none":
            return None
        return f"{self._how.rstrip('/')}/{quote(image['key'])}"

    def name(self, image: Row) -> str:
        """A relative path for the image, the same in each export of the job: its key, if a file may be called so.

        No two images have the same one, not even without their suffixes or on a disk that takes A for a.
        """
        stem, suffix = _split_name(image)
        return f"{stem}.{image['image_id']}{suffix}" if hash(_folded(stem)) in self._clashes else stem + suffix

    def flat_name(self, image: Row) -> tuple[str, str]:
        """The stem and suffix of `name` for a folder without folders: no two images have the same stem.

        Percent-encoded are slashes, and the # and spaces that readers of lists take for theirs.
        """
        stem, suffix = os.path.splitext(self.name(image))
        stem = stem.replace("%", "%25").replace("/", "%2F")
        stem = re.sub("^[# ]| $", lambda one: f"%{ord(one[0]):02X}", stem)
        if len(stem.encode()) > LONGEST:
            stem = f"{stem.encode()[:LONGEST].decode(errors='ignore')}.{image['image_id']}"
        return stem, suffix

    @cached_property
    def _clashes(self) -> set[int]:
        """Hashes of the stems that several images have, or would have once others bear their images' ids."""
        clashes: set[int] = set()
        while True:
            stems = np.fromiter(self._stems(clashes), np.dtype((np.int64, 2)))
            _, same, counts = np.unique(stems[:, 1], return_inverse=True, return_counts=True)
            more = set(stems[counts[same] > 1, 0].tolist()) - clashes
            if not more:
                return clashes
            clashes |= more

    def _stems(self, clashes: set[int]) -> Iterator[tuple[int, int]]:
        """Of each image, the hashes of its stem and of that with its id where stems clash."""
        for batch in self._dataset.origin.batches("images", ["image_id", "key", "format"]):
            for image in batch.to_pylist():
                stem = _folded(_split_name(image)[0])
                yield hash(stem), hash(f"{stem}.{image['image_id']}" if hash(stem) in clashes else stem)

    @contextmanager
    def into(self, folder: str) -> Iterator[Put]:
        """What puts images into a folder: a function of an image's row and its name there.

        Several are fetched at a time; all are there when the block ends, but for those that `notes` counts.

        Raises:
            UserError: they are to be linked, and are no files of this machine.
            SourceError: not one can be read.
        """
        if not self.are_put:
            yield lambda image, name: None
            return
        storage, free = Storage(folder), threading.Semaphore(2 * THREADS)
        put = self._link if self._how == "link" else self._copy
        errors: list[BaseException] = []

        def done(future: Future[None]) -> None:
            free.release()
            error = future.exception()
            if error is None or isinstance(error, SourceError):
                self.tell(error)
            else:
                errors.append(error)

        with ThreadPoolExecutor(THREADS) as pool:

            def submit(image: Row, name: str) -> None:
                if errors:
                    raise errors[0]
                free.acquire()
                pool.submit(put, storage, dict(image), name).add_done_callback(done)

            yield submit
        if errors:
            raise errors[0]
        self.check_any()

    def tell(self, error: SourceError | None) -> None:
        """Counts an image that was put, or could not be."""
        with self._counting:
            self._there += error is None
            self._failures += error is not None
            self._first_failure = self._first_failure or one_line(error or "")

    def check_any(self) -> None:
        """Raises SourceError where all images were missing: that is no accident."""
        if self._failures and not self._there:
            raise SourceError(f"none of {self._failures:,} images can be copied: {self._first_failure}")

    @contextmanager
    def beside(self, document: str) -> Iterator[Callable[[Batches], Batches]]:
        """What names the images of a COCO document: of batches of the images table, those with the export's names.

        Copies and links go into the folder `NAME-images` beside `NAME.json`; `file_name` is their path there, and
        otherwise the key. Where there is a URL, there is a column `coco_url`.
        """
        folder = f"{os.path.splitext(document)[0]}-images"
        with writing_folder(folder) if self.are_put else nullcontext("") as to, self.into(to) as put:
            yield lambda batches: (self._named(batch, put) for batch in batches)

    def _named(self, batch: pa.RecordBatch, put: Put) -> pa.RecordBatch:
        if self._how == "none":
            return batch
        rows = batch.to_pylist()
        if not self.are_put:
            return batch.append_column("coco_url", pa.array([self.url(row) for row in rows], pa.string()))
        names = [self.name(row) if row["status"] == "ok" else row["key"] for row in rows]
        for row, name in zip(rows, names, strict=True):
            if row["status"] == "ok":
                put(row, name)
        return batch.set_column(batch.schema.names.index("key"), "key", pa.array(names, pa.string()))

    @cached_property
    def _originals(self) -> Originals:
        return Originals(self._dataset.origin)

    def _copy(self, storage: Storage, image: Row, name: str) -> None:
        storage.add(name, self._originals.read(image))

    def _link(self, storage: Storage, image: Row, name: str) -> None:
        fs, path = open_url(image["uri"])
        if not (is_local(fs) and storage.is_local and os.path.isfile(path)):
            raise UserError(f"--images link: {image['uri']} is no file of this machine: --images copy")
        to = storage.path(name)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        os.symlink(os.path.abspath(path), to)

    def notes(self) -> tuple[str, ...]:
        """What to say of the images that could not be put."""
        if not self._failures:
            return ()
        return (f"{self._failures:,} images could not be copied, such as: {self._first_failure}",)


def _split_name(image: Row) -> tuple[str, str]:
    """The stem and the suffix of an image's name; to readers, what stands behind the last dot is always a suffix."""
    stem, suffix = safe_name(image["key"], image["format"])
    return (stem, suffix) if suffix else os.path.splitext(stem)


def safe_name(key: str, kind: str | None) -> tuple[str, str]:
    """A key as the stem and the suffix of a relative path: no `..`, nothing that a terminal or a disk would mind."""
    suffix = PurePosixPath(key).suffix
    if suffix.lower() not in IMAGE_SUFFIXES:
        suffix = BY_FORMAT.get(kind or "", f".{kind}" if kind else "")
        stem = key
    else:
        stem = key[: -len(suffix)]
    parts = [_safe_part(part) for part in stem.split("/") if part not in ("", ".")]
    return "/".join(parts) or "image", suffix


def _safe_part(part: str) -> str:
    if part == "..":
        return "%2E%2E"
    safe = "".join(
        quote(one, safe="") if one == "\\" or (not one.isprintable() and one != "\u200d") else one for one in part
    )
    if len(safe.encode()) > LONGEST:
        safe = safe.encode()[:LONGEST].decode(errors="ignore")
    return safe


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
