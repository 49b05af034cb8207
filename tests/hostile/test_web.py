"""Web servers that fail, lie, lead astray or are gone, against a real one on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, loopback
from shards import tar_bytes, tiny_images, units_of

from prelabel.pipeline.sources import open_source
from prelabel.pipeline.sources.base import SourceOptions
from prelabel.pipeline.sources.shards import check_planned
from prelabel.schemas.errors import SourceError

pytest.importorskip("aiohttp")
from prelabel.pipeline.sources import web

HERE = SourceOptions(allow_private_addresses=True)
IMAGES = {f"/{name.replace('/', '-')}": data for name, data in tiny_images(4).items()}


@pytest.fixture
def site() -> Iterator[Loopback]:
    with loopback() as served:
        served.files |= IMAGES
        yield served


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    monkeypatch.setattr(web, "TIMEOUT", web.aiohttp.ClientTimeout(sock_connect=10, sock_read=2))
    web.WebFileSystem.clear_instance_cache()


def rows(folder: Path, uris: list[str], options: SourceOptions = HERE) -> list[dict[str, Any]]:
    (folder / "list.txt").write_text("\n".join(uris))
    source = open_source(str(folder / "list.txt"), options)
    (unit,) = units_of(source)
    return source.read(unit).to_pylist()


def codes(folder: Path, uris: list[str], options: SourceOptions = HERE) -> list[str | None]:
    return [row["error_code"] for row in rows(folder, uris, options)]


def test_what_passes_is_asked_again(site: Loopback, tmp_path: Path) -> None:
    faults = [[503, 429], ["short"], ["stall"], [404], [500, "short", 503, 408]]
    site.files["/again.png"] = next(iter(IMAGES.values()))
    site.faults = dict(zip(site.files, faults, strict=True))
    found = rows(tmp_path, [site.url + path for path in site.files])
    assert [row["bytes"] for row in found] == list(site.files.values())
    assert [site.asked[path] for path in site.files] == [3, 2, 2, 2, 5]


def test_what_does_not_pass_ends_the_unit_or_the_image(site: Loopback, tmp_path: Path) -> None:
    one, *_ = uris = [site.url + path for path in IMAGES]
    path = next(iter(IMAGES))
    for status, code in {
        404: "missing",
        410: "missing",
        403: "read_error",
        401: "read_error",
        418: "read_error",
    }.items():
        site.faults = {path: [status] * 9}
        assert codes(tmp_path, uris) == [code, None, None, None]
    site.faults, site.asked[path] = {path: [503] * 9}, 0
    with pytest.raises(OSError, match="503"):
        rows(tmp_path, uris)
    assert site.asked[path] == 5
    site.faults = {path: [403] * 9}
    with pytest.raises(SourceError, match=r"sig=\*\*\*: access denied .*403"):
        rows(tmp_path, [f"{one}?sig=S3CRET"])


@pytest.mark.parametrize(
    "address",
    ["http://[::1", "http://[x]/a.png", "http://h:99999/a.png", "http://h:port/a.png", "http://:80/a.png",
     "http://a..b/", f"http://{'a' * 70}.com/", "http://\u200b.com/", "http://h\\@g/a.png"],
)  # fmt: skip
def test_what_is_no_address_costs_itself_alone(address: str, site: Loopback, tmp_path: Path) -> None:
    path = next(iter(IMAGES))
    assert codes(tmp_path, [address, site.url + path]) == ["read_error", None]
    site.faults = {"/elsewhere": [address] * 9}
    if address.isascii():
        assert codes(tmp_path, [f"{site.url}/elsewhere", site.url + path]) == ["read_error", None]


def test_a_site_without_https_costs_the_images_there_alone(site: Loopback, tmp_path: Path) -> None:
    path = next(iter(IMAGES))
    secure = site.url.replace("http", "https") + path
    assert codes(tmp_path, [site.url + path, secure, site.url + path]) == [None, "read_error", None]


def test_no_more_is_read_than_allowed(site: Loopback, tmp_path: Path) -> None:
    site.files["/giant.png"] = bytes(5_000_000)
    options = replace(HERE, max_image_bytes=10_000)
    assert codes(tmp_path, [f"{site.url}/giant.png", *(site.url + path for path in IMAGES)], options) == [
        "too_large", None, None, None, None,
    ]  # fmt: skip


def test_addresses_that_are_not_public_are_refused_also_behind_a_redirect(site: Loopback, tmp_path: Path) -> None:
    path = next(iter(IMAGES))
    (row,) = rows(tmp_path, [site.url + path], SourceOptions())
    assert row["error_code"] == "read_error"
    assert "not on a public address; --allow-private-addresses" in row["error"]
    assert not site.asked
    public = socket.socket
    targets = [f"{site.url}/other", "http://169.254.169.254/latest", "file:///etc/passwd", f"{site.url}{path}"]

    def only_first(address: Any) -> socket.socket:
        """As if the site itself were public, and whatever it leads to not."""
        if address[4][1] == int(site.url.rpartition(":")[2]):
            return public(*address[:3])
        raise OSError(13, web._NOT_PUBLIC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "_public_socket", only_first)
        web.WebFileSystem.clear_instance_cache()
        outcomes = []
        for target in targets:
            site.faults = {path: [target] * 99}
            (row,) = rows(tmp_path, [site.url + path], SourceOptions())
            outcomes.append((row["error_code"], row["error"] or ""))
    assert [code for code, _ in outcomes] == ["missing", "read_error", "read_error", "read_error"]
    assert "public" in outcomes[1][1]
    assert "redirects without an end" in outcomes[3][1]


@pytest.mark.parametrize(
    ("host", "is_public"),
    [("93.184.216.34", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("::1", False), ("10.1.2.3", False),
     ("169.254.169.254", False), ("fe80::1%eth0", False), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False),
     ("64:ff9b:1::7f00:1", False), ("2002:7f00:1::", False), ("fec0::1", False), ("::127.0.0.1", False),
     ("::ffff:0:127.0.0.1", False), ("64:ff9b::808:808", True),
     ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("fd00:ec2::254", False),
     ("168.63.129.16", False), ("::ffff:168.63.129.16", False)],
)  # fmt: skip
def test_public_addresses(host: str, is_public: bool) -> None:
    assert web._is_public(host) is is_public


def test_a_dead_host_costs_its_own_images_alone_and_little_time(site: Loopback, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"http://127.0.0.1:{gone.getsockname()[1]}"
    tried: list[str] = []
    original = web.fetch

    def counted(fs: Any, url: str, *rest: Any, **options: Any) -> Any:
        tried.append(url)
        return original(fs, url, *rest, **options)

    uris = [f"{dead}/{number}.png" for number in range(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "fetch", counted)
        found = rows(tmp_path, [*uris, site.url + next(iter(IMAGES))])
        assert [row["error_code"] for row in found] == ["read_error"] * 200 + [None]
        assert dead.removeprefix("http://") in found[0]["error"]
        assert len(tried) < 100  # of 201: only those that were under way when it was found out
        with pytest.raises(OSError, match=r"127\.0\.0\.1"):  # then the network may be down
            rows(tmp_path, uris)


def test_tars_are_read_in_parts(site: Loopback) -> None:
    site.files["/x.tar"] = tar_bytes({f"{number}.png": bytes([number]) * 3_000_000 for number in range(5)})
    source = open_source(f"{site.url}/x.tar")
    site.sent = 0
    unit, *_ = units_of(source, 1)
    index = site.sent
    assert source.read(unit)["bytes"][0].as_py() == bytes(3_000_000)
    assert index < 6_000_000  # of fifteen
    assert site.sent - index == 3_000_000
    site.files["/x.tar"] = tar_bytes({f"{number}.png": bytes([number + 1]) * 3_000_000 for number in range(5)})
    with pytest.raises(SourceError, match="has changed since the plan was made: ETag"):
        source.read(unit)
    site.faults["/x.tar"] = [503, 503]  # HEAD and GET
    with pytest.raises(OSError, match="503"):  # and not: it is gone
        source.read(unit)


def test_a_server_without_ranges_is_told_in_a_line(site: Loopback) -> None:
    site.files["/x.tar"] = tar_bytes(tiny_images())
    site.ranges = False
    with pytest.raises(SourceError, match="the server gives whole files alone"):
        list(units_of(open_source(f"{site.url}/x.tar")))


def test_a_list_on_a_web_server_leads_to_web_servers_alone(site: Loopback) -> None:
    path = next(iter(IMAGES))
    site.files["/list.txt"] = f"{path[1:]}\nfile:///etc/passwd\n/etc/passwd\n{site.url}{path}\n".encode()
    for options, expected in (
        (HERE, [None, "read_error", "read_error", None]),
        (replace(HERE, allow_scheme=("file",)), [None, None, None, None]),
    ):
        source = open_source(f"{site.url}/list.txt", options)
        (unit,) = units_of(source)
        assert source.read(unit)["error_code"].to_pylist() == expected


def test_secrets_of_names_relative_to_a_list_on_a_server_are_in_no_plan(site: Loopback) -> None:
    path, data = next(iter(IMAGES.items()))
    site.files["/list.txt"] = f"{path[1:]}?sig=S3CRET".encode()
    source = open_source(f"{site.url}/list.txt", HERE)
    (unit,) = units_of(source)
    assert unit.keys == [f"{path[1:]}?sig=***"]
    found = source.read(unit)
    assert found["bytes"].to_pylist() == [data]
    assert "S3CRET" not in str(found.drop_columns("bytes").to_pydict())


def test_signed_urls_are_in_no_plan_and_may_be_signed_anew(site: Loopback, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    signed = [f"{site.url}{path}?X-Amz-Signature=S3CRET&w=1" for path in IMAGES]
    file.write_text("\n".join(["url", *signed]))
    source = open_source(str(file), HERE)
    units = list(units_of(source, 2))
    assert units[1].keys == [f"{site.url}{path}?X-Amz-Signature=***&w=1" for path in list(IMAGES)[2:]]
    for signature in ("S3CRET", "another-longer-S3CRET"):
        file.write_text("\n".join(["url", *(uri.replace("S3CRET", signature) for uri in signed)]))
        check_planned(units)
        found = source.read(units[1])
        assert found["bytes"].to_pylist() == list(IMAGES.values())[2:]
        assert "S3CRET" not in str(found.drop_columns("bytes").to_pydict())
    file.write_text("\n".join(["url", *reversed(signed)]))
    with pytest.raises(SourceError, match="new signatures in their old places"):
        source.read(units[1])
