"""The review server and those who may not ask: other sites' pages, people without the token, paths elsewhere."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from reviewed import built, client_of, say, write_job
from starlette.testclient import TestClient

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.review import open_review

PRELABEL = "from prelabel.pipeline.cli import main; main()"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_job(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def client(dataset: LabelDataset) -> TestClient:
    return client_of(built(open_review(dataset, "anna")))


def test_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/api/job", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/api/job", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert client.get("/api/job", headers={"Host": "[::1]:8000"}).status_code == 200
    assert client.get("/api/job", headers={"Host": "["}).status_code == 400
    body = {"reviews": []}
    for headers in ({"X-Prelabel": "0"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert client.post("/api/verdicts", json=body, headers=headers).status_code == 403
    assert client.post("/api/verdicts", json=body, headers={"Origin": "http://localhost"}).status_code == 200


def test_pages_elsewhere_get_no_answers_from_a_browser(client: TestClient) -> None:
    picture = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for site, how, code in (
        ("cross-site", picture, 403),
        ("same-site", picture, 403),  # another port of this machine
        ("cross-site", link | {"Sec-Fetch-Dest": "iframe"}, 403),
        ("cross-site", link, 200),
        ("same-origin", picture, 200),
        ("none", link, 200),
    ):
        assert client.get("/api/images", headers=how | {"Sec-Fetch-Site": site}).status_code == code


def test_answers_may_not_be_framed_sniffed_or_load_anything_from_elsewhere(client: TestClient) -> None:
    for url in ("/", "/api/job", "/api/images/0/file", "/static/none", "/none"):
        headers = client.get(url).headers
        policy = headers["content-security-policy"]
        assert {"default-src 'self'", "object-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_token_is_asked_of_others(dataset: LabelDataset) -> None:
    client = client_of(open_review(dataset, "anna"), token="s3cret")
    for url in ("/", "/api/job", "/static/app.js", "/?token=wrong", "/?token=%FF", "/?token="):
        assert client.get(url).status_code == 403
    assert client.get("/api/job", headers={"Cookie": "prelabel-token=wrong"}).status_code == 403
    answer = client.get("/?token=s3cret&page=2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?page=2")
    assert {"httponly", "samesite=strict"} <= set(answer.headers["set-cookie"].lower().split("; "))
    assert client.get("/api/job", headers={"Host": "any.example"}).status_code == 200
    assert say(client).status_code == 200


def test_servers_at_two_ports_of_a_host_each_have_their_token(dataset: LabelDataset) -> None:
    servers = {token: client_of(open_review(dataset, "anna"), token) for token in ("one", "two")}
    cookies = {}
    for token, server in servers.items():
        assert server.get(f"/?token={token}").status_code == 303
        cookies |= dict(server.cookies)
    for server in servers.values():
        server.cookies.update(cookies)  # as a browser sends them to all ports of a host
        assert server.get("/api/job").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00", "/etc"],
)
def test_no_file_but_the_page_s_is_served(path: str, client: TestClient) -> None:
    assert client.get(path).status_code in (400, 404)


@pytest.fixture
def serving(dataset: LabelDataset) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as people start it, and its address."""
    command = [sys.executable, "-c", PRELABEL, "review", dataset.url, "--no-open", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/ ", line)
            assert found, line
            yield process, found[0].strip()
        finally:
            process.kill()


def test_ctrl_c_stops_it_though_it_is_asked_much(serving: tuple[subprocess.Popen[str], str]) -> None:
    process, address = serving
    host, port = address.removeprefix("http://").strip("/").split(":")
    endless = "/api/images?sql=(SELECT+count(*)+FROM+range(1000000)+a,+range(10000000)+b)>0"
    with socket.create_connection((host, int(port))) as asking:
        asking.sendall(f"GET {endless} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        with socket.create_connection((host, int(port))) as other:  # the first one is being worked on
            other.sendall(b"GET /api/job HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in other.recv(1_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read().strip() == "stopped"


def test_a_taken_port_is_told_in_a_line(dataset: LabelDataset) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-c", PRELABEL, "review", dataset.url, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"prelabel: can't listen on 127\.0\.0\.1 port \d+: .* choose another --port or --host\n", done.stderr
    )
