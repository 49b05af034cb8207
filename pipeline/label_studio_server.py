"""A project on a Label Studio server, and the upload of task files to it, which can be repeated without doubling."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

import orjson

from prelabel.pipeline.storage import Storage, reaching
from prelabel.schemas.errors import JobError, UserError, one_line, redacted

TOKEN = "LABEL_STUDIO_API_KEY"
"""The environment variable that Label Studio's own client reads the access token from."""
PAGE = 100
"""Tasks that are asked for at a time: the server reads their predictions, too."""
FRESH = 60.0
"""Seconds for which an access token is used; it is good for 300."""
PATIENCE = 3600.0
"""Seconds that the server has for 500 tasks: a request that is given up may have been done."""
SAID = 300
"""Characters of what a server says that are shown."""

Row = dict[str, Any]


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the token goes to no other server."""

    def redirect_request(self, *_: Any) -> None:
        """None there is."""


class Project:
    """A project, by its address in a browser, http://HOST/projects/NUMBER.

    Args:
        url: the address; what comes behind the number does not matter
        token: a personal access token, or a legacy token, of an account that may change the project

    Raises:
        UserError: it is no such address.
    """

    def __init__(self, url: str, token: str) -> None:
        found = re.fullmatch(r"(https?://[^\s?#]+?)/(?:api/)?projects/(\d+)(?:[/?#].*)?", url)
        if not found:
            raise UserError(
                f"{redacted(url)} is no Label Studio project: give its address, http://HOST/projects/NUMBER"
            )
        self._server, self._number = found.groups()
        self.url = redacted(f"{self._server}/projects/{self._number}")
        self._token = token
        self._access, self._until = "", 0.0
        self._opener = urllib.request.build_opener(_StayHere)

    def configure(self, config: str) -> bool:
        """Sets the labeling configuration where the project has none yet; whether it did.

        Raises:
            JobError: the server can't be reached, or refuses.
        """
        path = f"/api/projects/{self._number}/"
        if self._ask("GET", path).get("config_has_control_tags", True):
            return False
        self._ask("PATCH", path, {"label_config": config})
        return True

    def identities(self) -> Iterator[str]:
        """The image_id and key of each task there.

        Raises:
            JobError: the server can't be reached, or refuses.
        """
        seen, total, page = 0, 1, 1
        while seen < total:
            query = f"project={self._number}&page={page}&page_size={PAGE}&resolve_uri=false"
            answer = self._ask("GET", f"/api/tasks/?{query}")
            try:
                tasks, total = answer["tasks"], int(answer["total"])
                yield from [identity(task) for task in tasks]
            except (KeyError, TypeError, AttributeError, ValueError):
                raise self._stranger() from None
            seen, page = seen + len(tasks), page + 1
            if not tasks:
                break

    def add(self, tasks: list[Row]) -> None:
        """Sends tasks, all of which are there afterwards, or none.

        Raises:
            JobError: the server can't be reached, or refuses.
        """
        self._ask("POST", f"/api/projects/{self._number}/import", tasks)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._send(method, path, body, {"Authorization": self._authorization()})
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def _stranger(self) -> JobError:
        return JobError(f"{self.url} does not answer as Label Studio does: is it the right address?")

    def _authorization(self) -> str:
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        if time.monotonic() > self._until:
            answer = self._send("POST", "/api/token/refresh/", {"refresh": self._token}, {})
            if not isinstance(answer, dict):
                raise self._stranger()
            self._access, self._until = str(answer.get("access")), time.monotonic() + FRESH
        return f"Bearer {self._access}"

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        data = None if body is None else orjson.dumps(body)
        headers = headers | {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            request = urllib.request.Request(self._server + path, data, headers, method=method)
            with self._opener.open(request, timeout=PATIENCE) as response:
                return orjson.loads(response.read())
        except HTTPError as error:
            said = filter(None, [f"{error.code} {error.reason}", _said(error), _advice(error)])
            raise JobError(f"{self.url} refuses: {'; '.join(said)}") from None
        except orjson.JSONDecodeError:
            raise self._stranger() from None
        except (OSError, HTTPException, ValueError) as error:
            what = f"{self.url} can't be reached: {one_line(getattr(error, 'reason', error)) or type(error).__name__}"
            raise JobError(f"{what}; the same command goes on, and sends nothing twice") from error


def _said(error: HTTPError) -> str:
    text = error.read(100 * SAID).decode("utf-8", "replace")
    try:
        answer = orjson.loads(text)
        said = [answer.get("detail"), answer.get("validation_errors")] if isinstance(answer, dict) else [answer]
        return one_line(orjson.dumps([one for one in said if one]).decode()[1:-1])[:SAID]
    except orjson.JSONDecodeError:
        return one_line(text)[:SAID]


def _advice(error: HTTPError) -> str:
    if error.code in (401, 403):
        return f"{TOKEN} must be a token of an account that may change the project (Account & Settings)"
    if 300 <= error.code < 400:
        return f"give the address that it was moved to, {redacted(error.headers.get('Location', 'nowhere'))}"
    return ""


@dataclass(frozen=True)
class UploadSummary:
    """What an upload came to.

    Attributes:
        sent: tasks that were not there before
        there: tasks that were
        configured: whether the project was given its labeling configuration
    """

    url: str
    sent: int
    there: int
    configured: bool


def upload(folder: str, project: Project, progress: Callable[[int], object] = int) -> UploadSummary:
    """Sends those tasks of an export that are not in the project yet, a file of 500 at most in a request.

    Raises:
        UserError: the folder is no export.
        JobError: the server can't be reached, or refuses.
    """
    storage = Storage(folder)
    with reaching(f"read {storage.url}"):
        names = [name for name in storage.names("") if re.fullmatch(r"tasks-\d+\.json", name)]
        if not names or not storage.exists("config.xml"):
            raise UserError(f"{storage.url} has no task files: give what `prelabel export label-studio` wrote")
        configured = project.configure(storage.read("config.xml").decode(errors="replace"))
    before, sent, there = set(project.identities()), 0, 0
    for name in names:
        tasks = _tasks(storage, name)
        missing = [task for task in tasks if identity(task) not in before]
        if missing:
            project.add(missing)
        sent, there = sent + len(missing), there + len(tasks) - len(missing)
        progress(len(tasks))
    return UploadSummary(project.url, sent, there, configured)


def _tasks(storage: Storage, name: str) -> list[Row]:
    with reaching(f"read {storage.path(name)}"):
        text = storage.read(name)
    try:
        tasks: list[Row] = orjson.loads(text)
        [*map(identity, tasks)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{storage.path(name)} is no list of tasks: export once more") from error
    return tasks


def identity(task: Row) -> str:
    """What an export calls a task's image: its image_id and key."""
    return f"{task['data'].get('image_id')} {task['data'].get('key')}"
