r"""Keys: the names of images as Arrow can hold them, and which names are images.

A file name on Linux, or a member's name in a tar, is bytes; an Arrow string is UTF-8. A key is the name with each byte
that is no UTF-8 written `\xHH` (lower case), and with a backslash before an `x` written `\x5c`, so that nothing else
looks like an escape: `unescape(escape(name)) == name`, and two names never share a key. No other character changes;
NFC and NFD, spaces, quotes and newlines stay as they are.
"""

from __future__ import annotations

import posixpath
import re
from fnmatch import fnmatchcase

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2"])
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")

_TO_ESCAPE = re.compile(r"[\udc80-\udcff]|\\(?=x)")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


def escape(name: str) -> str:
    r"""The key of a name in which bytes that are no UTF-8 are surrogates (as `os.fsdecode` makes them).

    >>> escape("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    return _TO_ESCAPE.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", name)


def unescape(key: str) -> str:
    """The name of a key: the inverse of `escape`."""
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[1]).decode("utf-8", "surrogateescape"), key)


def is_hidden(key: str) -> bool:
    """Whether the name or a folder above it begins with a dot; `.` and `..` themselves do not count."""
    if not key.startswith(".") and "/." not in key:
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in key.split("/"))


def is_image(key: str, include: tuple[str, ...] = ()) -> bool:
    """Whether a key names an image: by its suffix in any case, or by the `include` globs instead where there are any.

    A glob with a slash is held against the whole key, one without against the last part of it; `*` crosses slashes.
    """
    if is_hidden(key):
        return False
    name = key.rpartition("/")[2]
    if include:
        return any(fnmatchcase(key if "/" in glob else name, glob) for glob in include)
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES
