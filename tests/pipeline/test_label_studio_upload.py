"""Uploads to a server that is made up: what it is asked, and what becomes of its refusals."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner
from jobs import write_images, write_job

from prelabel.pipeline.cli import cli
from prelabel.pipeline.exports import exporter_of, label_studio
from prelabel.pipeline.label_studio_server import TOKEN, Project, UploadSummary, upload
from prelabel.schemas.errors import JobError, UserError

PERSONAL = "head.personal.signature"


class Server(ThreadingHTTPServer):
    """Keeps the tasks of a project; `refusal` is what it answers to the import after the first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tasks: list[Any] = []
        self.imports: list[int] = []
        self.configured = ""
        self.tokens: set[str] = set()
        self.refusal: tuple[int, str, bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/projects/3/data?tab=1"

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        query = {name: int(one) for name, (one,) in parse_qs(urlsplit(path).query).items() if one.isdigit()}
        if path.startswith("/api/token/refresh/"):
            return 200, {"access": f"access of {body['refresh']}"}
        if path.startswith("/api/tasks/"):
            start = (query["page"] - 1) * query["page_size"]
            return 200, {"total": len(self.tasks), "tasks": self.tasks[start : start + query["page_size"]]}
        if method == "POST" and self.refusal and self.imports:
            return self.refusal[0], None
        if method == "POST":
            self.tasks += ({"data": task["data"]} for task in body)
            self.imports.append(len(body))
            return 201, {"task_count": len(body)}
        if method == "PATCH":
            self.configured = body["label_config"]
        return 200, {"config_has_control_tags": bool(self.configured)}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", "none"))
        status, answer = self.server.answer(self.command, self.path, json.loads(body) if body else None)
        text = json.dumps(answer).encode()
        self.send_response(status)
        if self.server.refusal and answer is None:
            _, location, text = self.server.refusal
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of six images, two in a file."""
    folder = tmp_path_factory.mktemp("tasks")
    labels = write_job(write_images(f"{folder}/images"), f"{folder}/labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_studio, "TASKS", 2)
        exporter_of("label-studio").write(labels, f"{folder}/tasks")
    return f"{folder}/tasks"


def test_tasks_are_sent_once_however_often_they_are_uploaded(tasks: str, server: Server) -> None:
    project = Project(server.url, PERSONAL)
    seen: list[int] = []
    first = upload(tasks, project, seen.append)
    assert first == UploadSummary(f"http://127.0.0.1:{server.server_port}/projects/3", 6, 0, True)
    assert (server.imports, seen) == ([2, 2, 2], [2, 2, 2])
    assert server.configured == (Path(tasks) / "config.xml").read_text(encoding="utf-8")
    again = upload(tasks, Project(server.url, PERSONAL))
    assert (again.sent, again.there, again.configured) == (0, 6, False)
    assert len(server.tasks) == 6
    assert server.tokens == {"none", f"Bearer access of {PERSONAL}"}


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            (400, "", b'{"detail": "Validation error", "validation_errors": {"x": ["bad"]}}'),
            "400 .*Validation error.*bad",
        ),
        ((401, "", b"{}"), "401 .*must be a token of an account"),
        (
            (302, "https://elsewhere/?token=abc", b""),
            r"refuses: 302 Found; give the .*, https://elsewhere/\?token=\*\*\*$",
        ),
        ((201, "", b"<html>"), "does not answer as Label Studio does"),
        ((201, "", b"[]"), "does not answer as Label Studio does"),
    ],
)
def test_refusal_is_one_line_and_what_is_missing_is_sent_later(
    refusal: tuple[int, str, bytes], message: str, tasks: str, server: Server
) -> None:
    server.refusal = refusal
    with pytest.raises(JobError, match=message):
        upload(tasks, Project(server.url, "legacy"))
    assert server.imports == [2]
    server.refusal = None
    server.tasks.append({"data": {"text": "of somebody else"}})
    assert upload(tasks, Project(server.url, "legacy")).sent == 4
    assert server.imports == [2, 2, 2]
    assert server.tokens == {"Token legacy"}


def test_command_says_what_was_sent(tasks: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "legacy")
    done = CliRunner().invoke(cli, ["upload", "label-studio", tasks, server.url])
    assert "6 tasks sent, with a labeling configuration; 0 were there before" in done.stderr
    done = CliRunner().invoke(cli, ["upload", "label-studio", tasks, server.url, "--json"])
    assert json.loads(done.stdout)["there"] == 6
    monkeypatch.delenv(TOKEN)
    done = CliRunner().invoke(cli, ["upload", "label-studio", tasks, server.url])
    assert "LABEL_STUDIO_API_KEY is not set" in str(done.exception)


@pytest.mark.parametrize("text", ["[", "null", "[5]", "[{}]", '[{"data": 5}]'])
def test_file_of_something_else_is_one_line(text: str, tasks: str, tmp_path: Path, server: Server) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    (folder / "tasks-000001.json").write_text(text)
    with pytest.raises(UserError, match=r"tasks-000001\.json is no list of tasks: export once more"):
        upload(str(folder), Project(server.url, "legacy"))


def test_what_can_not_be_sent_is_one_line(tasks: str, tmp_path: Path) -> None:
    for url in ("http://host/", "ftp://host/projects/3", "http://host/projects/x"):
        with pytest.raises(UserError, match="is no Label Studio project"):
            Project(url, "t")
    for url in ("http://127.0.0.1:9/projects/3", "http://[/projects/3"):
        with pytest.raises(JobError, match=r"can't be reached: .*; the same command goes on"):
            upload(tasks, Project(url, "t"))
    with pytest.raises(UserError, match="has no task files"):
        upload(str(tmp_path), Project("http://127.0.0.1:9/projects/3", "t"))
