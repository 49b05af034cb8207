"""Who may ask: this machine's user, or those who were given the token."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "prelabel-token"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware: refuses other sites' pages, and who has no token where one is needed."""

    def __init__(self, app: ASGIApp, token: str | None, host: str) -> None:
        """With a token, only those who have it are answered; without, only by `host` or another name of loopback."""
        self._app, self._token, self._host = app, token, host
        # Servers at several ports of a host share its cookies.
        self._cookie = f"{COOKIE}-{hashlib.sha256((token or '').encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes the request on; each answer gets HEADERS."""
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache")  # a page of one version has scripts of no other
            await send(message)

        answer = self._refusal(HTTPConnection(scope), scope["method"]) or self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, request: HTTPConnection, method: str) -> Response | None:
        if self._token is None:
            if not _is_loopback(request.headers.get("host", ""), self._host):  # a name of another site that leads here
                return _refused("ask by the name localhost", 400)
        else:
            if _equal(request.query_params.get("token"), self._token):
                return self._welcome(request)
            if not _equal(request.cookies.get(self._cookie), self._token):
                return _refused("open the URL that `prelabel review` printed: its token is needed", 403)
        if _is_of_another_page(request) or (method not in ("GET", "HEAD") and not _is_of_the_page(request)):
            return _refused("this is for the review page alone", 403)
        return None

    def _welcome(self, request: HTTPConnection) -> Response:
        """Keeps the token in a cookie, and takes it out of the address that people copy."""
        rest = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "token"])
        answer = RedirectResponse(f"/{request.url.path.lstrip('/')}{'?' * bool(rest)}{rest}", 303)
        answer.set_cookie(self._cookie, self._token or "", httponly=True, samesite="strict")
        return answer


def _is_loopback(header: str, host: str) -> bool:
    with suppress(ValueError):
        name = urlsplit(f"//{header}").hostname or ""
        return name in ("localhost", host.lower()) or ip_address(name).is_loopback
    return False


def _is_of_another_page(request: HTTPConnection) -> bool:
    """Whether a browser says that another site's page asks: for a picture, say. A link that someone follows is not."""
    told = request.headers
    follows = told.get("sec-fetch-mode") == "navigate" and told.get("sec-fetch-dest") == "document"
    return told.get("sec-fetch-site", "none") not in ("none", "same-origin") and not follows


def _is_of_the_page(request: HTTPConnection) -> bool:
    origin = request.headers.get("origin")
    same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return same and request.headers.get("x-prelabel") == "1"


def _equal(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def _refused(why: str, code: int) -> Response:
    return JSONResponse({"error": why}, code)
