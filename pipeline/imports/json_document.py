"""A JSON document that may be larger than memory: its lists are read a few elements at a time, in any order.

A parser of whole documents needs several times their size in memory. Here the text is looked at once, for brackets,
commas and quotes alone, which says where each element of each list is; what is asked for is cut out and parsed alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import orjson

from prelabel.pipeline.storage import is_local, open_url, patiently
from prelabel.schemas.errors import PrelabelError, UserError, one_line

CHUNK = 2**22
"""Bytes of the text that are looked at, or parsed, together."""
_QUOTE, _COMMA, _OPEN, _CLOSE = 1, 2, 3, 4
_KINDS = np.zeros(256, np.uint8)
for _kind, _letters in ((_QUOTE, b'"'), (_COMMA, b","), (_OPEN, b"[{"), (_CLOSE, b"]}")):
    _KINDS[list(_letters)] = _kind


class Tokens(NamedTuple):
    """Brackets and commas outside of strings: their places int64 (N,), kinds, and how many brackets they are in."""

    places: np.ndarray
    kinds: np.ndarray
    depths: np.ndarray


class JsonDocument:
    """An object in a file, whose members are lists for the most part.

    Attributes:
        digest: SHA-256 of the text, hexadecimal

    Raises:
        UserError: it can't be read, or is no JSON object as far as brackets tell.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._file = _opened(url)
        tokens, self.digest = _scan(self._file)
        places = tokens.places[(tokens.depths == 1) & (tokens.kinds != _COMMA)]
        self._commas = tokens.places[tokens.depths == 2]
        if len(places) % 2:
            raise self._wrong("its brackets do not match; was it cut off?")
        self._members = self._outline(places.reshape(-1, 2))

    def _outline(self, spans: np.ndarray) -> dict[str, Any]:
        """The document's members: for a list or an object where it begins and ends, anything else as it is."""
        edges = [0, *(spans + np.array((0, 1))).ravel().tolist(), os.fstat(self._file.fileno()).st_size]
        outside = [self._text(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
        stand_ins = [*(b"[%d,%d]" % (begin, end + 1) for begin, end in spans.tolist()), b""]
        text = b"".join(piece for pair in zip(outside, stand_ins, strict=True) for piece in pair)
        members = self._loads(text.removeprefix(b"\xef\xbb\xbf"), 0)
        if not isinstance(members, dict):
            raise self._wrong("it is no object")
        return members

    def spans(self, name: str) -> np.ndarray | None:
        """Where the elements of a list begin and end, int64 (N, 2); None where there is no list of that name."""
        member = self._members.get(name)
        if not isinstance(member, list):
            return None
        begin, end = member
        if self._text(begin, begin + 1) + self._text(end - 1, end) != b"[]":
            return None
        first, last = np.searchsorted(self._commas, (begin, end))
        edges = np.concatenate([[begin], self._commas[first:last], [end - 1]])
        if len(edges) == 2 and not self._text(begin + 1, end - 1).strip():
            return np.zeros((0, 2), np.int64)
        return np.stack([edges[:-1] + 1, edges[1:]], axis=1)

    def parse(self, spans: np.ndarray) -> Iterator[Any]:
        """The elements at these places, one after another; neighbours are read together."""
        apart = np.flatnonzero(spans[1:, 0] != spans[:-1, 1] + 1) + 1
        for run in np.split(spans, apart):
            for some in np.split(run, _cuts(run)):
                if len(some):
                    begin = int(some[0, 0])
                    yield from self._loads(b"[" + self._text(begin, int(some[-1, 1])) + b"]", begin - 1)

    def _text(self, begin: int, end: int) -> bytes:
        self._file.seek(begin)
        return self._file.read(end - begin)

    def _loads(self, text: bytes, begin: int) -> Any:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise self._wrong(f"{one_line(error.msg)} near byte {begin + error.pos:,}") from error

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self._url} is not a JSON document that can be read: {what}")


def _cuts(run: np.ndarray) -> np.ndarray:
    """Where to cut a run of neighbours, so that pieces are of about CHUNK bytes."""
    return np.flatnonzero(np.diff(run[:, 1] // CHUNK)) + 1


def _scan(file: BinaryIO) -> tuple[Tokens, str]:
    """The tokens at depths 0 to 2 of a text, of those at depth 2 the commas alone; and the text's SHA-256."""
    digest, found = hashlib.sha256(), [Tokens(*np.zeros((3, 0), np.int64))]
    begin, in_string, depth, kept = 0, 0, 0, b""
    while text := file.read(CHUNK):
        digest.update(text)
        text = kept + text
        cut = len(text) - (len(text) - len(text.rstrip(b"\\"))) % 2  # an escape belongs to what comes next
        text, kept = text[:cut], text[cut:]
        plain = text.replace(rb"\\", b"__").replace(rb"\"", b"__")  # neither escapes nor quotes within strings are left
        kinds = _KINDS[np.frombuffer(plain, np.uint8)]
        places = np.flatnonzero(kinds)
        kinds = kinds[places]
        strings = np.cumsum(kinds == _QUOTE) + in_string
        outside = (strings % 2 == 0) & (kinds != _QUOTE)
        in_string = int(strings[-1]) % 2 if len(strings) else in_string
        places, kinds = places[outside], kinds[outside]
        opens = kinds == _OPEN
        after = depth + np.cumsum(opens.astype(np.int64) - (kinds == _CLOSE))
        depth = int(after[-1]) if len(after) else depth
        depths = after - opens
        wanted = (depths < 2) | ((depths == 2) & (kinds == _COMMA))
        found.append(Tokens(places[wanted] + begin, kinds[wanted], depths[wanted]))
        begin += len(text)
    return Tokens(*map(np.concatenate, zip(*found, strict=True))), digest.hexdigest()


def _opened(url: str) -> BinaryIO:
    """A file on this machine's disk: the document's own, or a copy that goes when it is closed."""
    try:
        fs, path = open_url(url)
        if is_local(fs):
            return open(path, "rb")
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        with patiently(fs.open)(path, "rb") as file:
            shutil.copyfileobj(file, copy, CHUNK)
        copy.seek(0)
        return cast(BinaryIO, copy)
    except PrelabelError:
        raise
    except Exception as error:  # each file system has its own
        raise UserError(f"{url} can't be read: {one_line(error)}; check the path") from error
