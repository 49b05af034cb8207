"""What lies on web servers, read-only: bounded in time and bytes; where that is asked, on public addresses alone."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractBufferedFile

from prelabel.pipeline.sources.base import MAX_IMAGE_BYTES
from prelabel.pipeline.sources.fetch import Fetched, RefusedError, TooLargeError, fetch
from prelabel.schemas.errors import one_line, redacted

TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=10, sock_read=30)
"""Seconds: for all of an answer, for a connection, and between two pieces of an answer."""
_CHUNK = 2**18
_PASSING_STATUS = (408, 425, 429)  # "not now" among the refusals
_NOT_PUBLIC = "not on a public address"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address

_AZURE = ipaddress.ip_address("168.63.129.16")  # the machine's own host there, under a public address
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: beyond it are ways into networks of one's own


class UnreachableError(OSError):
    """There is no connection to a host: its name is not known, or it does not answer."""


class WebFileSystem(HTTPFileSystem):
    """As fsspec's, and: what goes wrong is sorted as on a disk, and no more bytes are read than asked for.

    Args:
        public_only: whether to refuse servers on this machine or in its network. What counts is the address that a
            connection is about to be made to, so neither a name nor a redirect leads around it.
        max_bytes: of a whole file
        options: fsspec's
    """

    def __init__(self, public_only: bool = False, max_bytes: int = MAX_IMAGE_BYTES, **options: Any) -> None:
        super().__init__(get_client=_public_client if public_only else _client, **options)
        self.max_bytes = max_bytes

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        options = {**self.kwargs, **kwargs}
        whole = start is None and end is None
        if not whole:
            last = "" if end is None else end - 1
            options["headers"] = {**options.get("headers", {}), "Range": f"bytes={start or 0}-{last}"}
        if end is not None and end <= (start or 0):
            return b""
        most = self.max_bytes if end is None else end - (start or 0)
        session = await self.set_session()
        try:
            async with session.get(self.encode_url(url), **options) as answer:
                answer.raise_for_status()
                if not whole and answer.status != 206:
                    raise RefusedError("the server gives whole files alone: copy them to a disk or a bucket first")
                return await _read(answer, most)
        except Exception as error:  # noqa: BLE001  aiohttp's own are of many kinds
            _raise_sorted(error, url)

    async def _info(self, url: str, **kwargs: Any) -> dict[str, Any]:
        try:
            return cast("dict[str, Any]", await super()._info(url, **kwargs))
        except FileNotFoundError as error:  # its word for whatever went wrong
            _raise_sorted(error.__cause__ or error, url)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> _WebFile:
        cache = options.get("cache_type") or "bytes"
        return _WebFile(self, path, mode, block_size or self.block_size, cache_type=cache)


class _WebFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return cast(bytes, self.fs.cat_file(self.path, start, end))


class WebReader:
    """Reads the images of one unit from web servers; a host that can't be reached is soon asked no more."""

    def __init__(self, public_only: bool, max_bytes: int) -> None:
        self._fs = WebFileSystem(public_only, max_bytes)
        self._unreachable: dict[str, str] = {}
        self._answered: set[str] = set()

    def fetch(self, url: str) -> Fetched:
        """As `fetch`; a refusal concerns this image alone, unless its URL is a signed one."""
        try:
            parts = urlsplit(url)
            host, _ = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.port
        except ValueError as error:
            return Fetched(None, "read_error", f"{redacted(url)}: no web address: {error}")
        if host in self._unreachable:
            return Fetched(None, "read_error", self._unreachable[host])
        try:
            fetched = fetch(self._fs, url, self._fs.max_bytes, alone=redacted(url) == url)
        except UnreachableError as error:
            self._unreachable[host] = str(error)
            return Fetched(None, "read_error", str(error))
        if fetched.error_code in (None, "missing"):
            self._answered.add(host)
        return fetched

    def check(self) -> None:
        """Raises OSError if it may be the network that is at fault, and not some hosts that are no more."""
        flaky = self._answered & self._unreachable.keys()
        if self._unreachable and (flaky or not self._answered):
            raise OSError(next(iter(self._unreachable.values())))


async def _client(**options: Any) -> aiohttp.ClientSession:
    options.setdefault("timeout", TIMEOUT)
    # No cookies: what a server gives must not depend on what it gave before.
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), **options)


async def _public_client(**options: Any) -> aiohttp.ClientSession:
    return await _client(connector=aiohttp.TCPConnector(socket_factory=_public_socket), **options)


def _public_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address
    if not _is_public(host):
        raise OSError(errno.EACCES, _NOT_PUBLIC)
    return socket.socket(family, kind, protocol)


def _is_public(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif address not in _GLOBAL_UNICAST or address.sixtofour:
            return False
    return address.is_global and not address.is_multicast and address != _AZURE


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > most:
            raise TooLargeError(f"more than {most} bytes")
    return bytes(data)


def _raise_sorted(error: BaseException, url: str) -> NoReturn:
    """Raises what a disk would. `from None`, for the library's own errors show the URL with its secrets."""
    if isinstance(error, (RefusedError, TooLargeError)):
        raise error
    status = getattr(error, "status", None) or 0
    text = f"{redacted(url)}: {one_line(error) or type(error).__name__}"
    if status in (404, 410):
        raise FileNotFoundError(redacted(url)) from None
    if status in (401, 403):
        raise PermissionError(f"the server answers {status}") from None
    if 0 < status < 500 and status not in _PASSING_STATUS:
        raise RefusedError(f"the server answers {status}") from None
    if isinstance(error, aiohttp.TooManyRedirects):
        raise RefusedError("redirects without an end") from None
    if _NOT_PUBLIC in text:
        raise RefusedError(f"{_NOT_PUBLIC}; --allow-private-addresses allows it") from None
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        raise UnreachableError(text) from None
    if isinstance(error, (ValueError, aiohttp.NonHttpUrlClientError)):  # of a host's name; a redirect may lead there
        raise RefusedError(f"no web address: {one_line(error)}") from None
    raise OSError(text) from None
