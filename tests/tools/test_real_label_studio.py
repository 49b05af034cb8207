"""Label Studio itself, started on this machine: tasks are uploaded, corrected over its API, exported and imported."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from jobs import CATEGORIES, FAILED, HEIGHT, WIDTH, write_images
from labels import Row, annotation_row, write_labels
from unruly import UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.cli import cli
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of, label_studio
from prelabel.pipeline.label_studio_server import TOKEN

PYTHON = os.environ.get("PRELABEL_TOOLS_PYTHON", sys.executable)
USER, PASSWORD = "annotator@example.com", "not-a-secret-1"
PATIENCE = 540
"""Seconds to start in: the first start makes a database, table by table."""

pytestmark = pytest.mark.timeout(1200)


class Studio:
    """A server, and somebody who has logged in as people do."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=120, trust_env=False)

    def log_in(self) -> None:
        self._client.get("/user/login/")
        form = {"email": USER, "password": PASSWORD, "csrfmiddlewaretoken": self._client.cookies["csrftoken"]}
        answer = self._client.post("/user/login/", data=form, headers={"Referer": self.url})
        assert answer.status_code == 302, answer.text

    def get(self, path: str) -> Any:
        answer = self._client.get(path)
        assert answer.status_code == 200, answer.text
        return answer

    def post(self, path: str, body: Any = None) -> Any:
        headers = {"X-CSRFToken": self._client.cookies["csrftoken"], "Referer": self.url}
        answer = self._client.post(path, json=body, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def project(self, title: str) -> int:
        return int(self.post("/api/projects/", {"title": title})["id"])

    def tasks(self, project: int) -> list[Row]:
        """With their predictions."""
        return list(self.get(f"/api/tasks/?project={project}&page_size=1000&fields=all").json()["tasks"])

    def exported(self, project: int, folder: Path) -> Path:
        """The file that people download."""
        document = folder / f"project-{project}.json"
        document.write_bytes(self.get(f"/api/projects/{project}/export?exportType=JSON").content)
        return document


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server serves files of."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def studio(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if subprocess.run([PYTHON, "-c", "import label_studio"], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} has no label_studio: set PRELABEL_TOOLS_PYTHON to one that has")
    home = tmp_path_factory.mktemp("studio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    quiet = {"SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false"}
    serving = {"LOCAL_FILES_SERVING_ENABLED": "true", "LOCAL_FILES_DOCUMENT_ROOT": str(root)}
    own = {"HOME": str(home), "LABEL_STUDIO_BASE_DATA_DIR": f"{home}/data"}
    start = "import sys; from label_studio.server import main; sys.argv[0] = 'label-studio'; main()"
    command = [PYTHON, "-c", start, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", port]
    with open(f"{home}/log", "w+b") as log:
        server = subprocess.Popen(
            [*command, "--username", USER, "--password", PASSWORD],
            env=os.environ | quiet | serving | own,
            cwd=home,
            stdout=log,
            stderr=log,
        )
        try:
            _wait(f"http://127.0.0.1:{port}", server, Path(log.name))
            studio = Studio(f"http://127.0.0.1:{port}")
            studio.log_in()
            yield studio
        finally:
            server.terminate()
            server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            httpx.get(f"{url}/health", timeout=60, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            time.sleep(1)
        else:
            return
    pytest.fail(log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="module")
def token(studio: Studio) -> str:
    return str(studio.post("/api/token/", {})["token"])


@pytest.fixture(autouse=True)
def _token(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def project(studio: Studio, labels: LabelDataset, root: Path) -> int:
    """A project that has no tasks; those of `labels` are exported, a few in a file, into `root/tasks`."""
    project = studio.project("unruly names and masks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_studio, "TASKS", 4)
        exporter_of("label-studio").write(labels, f"{root}/tasks", "copy")
    folder = {"project": project, "path": f"{root}/tasks/images", "use_blob_urls": True}
    studio.post("/api/storages/localfiles", folder)
    return project


def run(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    return dict(json.loads(done.stdout))


def sent(folder: Path) -> dict[int, Row]:
    """The tasks in files, by image_id."""
    tasks = [task for path in folder.glob("tasks-*.json") for task in json.loads(path.read_bytes())]
    return {task["data"]["image_id"]: task for task in tasks}


def test_predictions_are_the_table(
    studio: Studio, project: int, labels: LabelDataset, root: Path, tmp_path: Path, read_with: Callable[..., Any]
) -> None:
    address = f"{studio.url}/projects/{project}"
    files, expected = sent(root / "tasks"), objects_by_image(labels)
    summary = run("upload", "label-studio", root / "tasks", address)
    assert summary == {"url": address, "sent": len(expected), "there": 0, "configured": True}
    again = run("upload", "label-studio", root / "tasks", address)
    assert (again["sent"], again["there"]) == (0, len(expected))
    tasks = studio.tasks(project)
    assert sorted(task["data"]["image_id"] for task in tasks) == [*expected]
    predictions = studio.get(f"/api/predictions/?project={project}").json()
    image_ids = {task["id"]: task["data"]["image_id"] for task in tasks}
    for one in predictions:
        (prediction,) = files[image_ids[one["task"]]]["predictions"]
        assert {name: one[name] for name in prediction} == prediction  # the very RLE, too
    assert sorted(image_ids[one["task"]] for one in predictions) == [*expected]
    (tmp_path / "predictions.json").write_text(json.dumps(predictions), encoding="utf-8")
    decoded = read_with("label_studio_sdk", "read_with_label_studio.py", tmp_path / "predictions.json")
    masks = {}
    for name, bits in decoded.items():
        pixels = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)).reshape(HEIGHT, WIDTH)
        masks[int(name.partition("/")[2])] = pixels.astype(bool)
    for row in (row for rows in expected.values() for row in rows if row["mask"] is not None and row["mask"].any()):
        np.testing.assert_array_equal(masks.pop(row["annotation_id"]), row["mask"])
    assert not masks


def test_labels_are_called_what_categories_are(studio: Studio, project: int) -> None:
    config = studio.get(f"/api/projects/{project}/").json()["parsed_label_config"]
    for control in ("rectangles", "masks", "labels"):
        assert config[control]["labels"] == [*UNRULY.names]
    assert config["keypoints"]["labels"] == [*(UNRULY[7].keypoints or ())]


def test_images_are_served(studio: Studio, project: int, labels: LabelDataset) -> None:
    uris = {row["image_id"]: row["uri"] for row in labels.table("images").to_table().to_pylist()}
    for task in studio.tasks(project):
        served = studio.get(task["data"]["image"]).content
        assert served == Path(uris[task["data"]["image_id"]]).read_bytes()


def test_what_was_accepted_comes_back(studio: Studio, project: int, labels: LabelDataset, tmp_path: Path) -> None:
    for task in studio.tasks(project):
        (prediction,) = task["predictions"]
        studio.post(f"/api/tasks/{task['id']}/annotations/", {"result": prediction["result"]})
    document = studio.exported(project, tmp_path)
    run("import", "label-studio", document, "--job", labels.url, "--output", tmp_path / "imported")
    before, after = objects_by_image(labels), objects_by_image(LabelDataset(f"{tmp_path}/imported"))
    assert [*before] == [*after]
    for image_id, rows in before.items():
        assert [row["category"] for row in after[image_id]] == [row["category"] for row in rows]
        for row, one in zip(rows, after[image_id], strict=True):
            assert one["keypoints"] == (row["keypoints"] and pytest.approx(row["keypoints"], abs=1e-3))
            if row["mask"] is not None and row["mask"].any():
                assert one["segmentation"] == row["segmentation"]
            else:
                assert [*one["bbox"].values()] == pytest.approx([*row["bbox"].values()], abs=1e-3)


def test_three_edits_are_the_three_changes(studio: Studio, tmp_path: Path) -> None:
    """A box is moved, a mask deleted, a class changed; older and cancelled annotations don't count."""

    def rows(image: Row) -> dict[str, list[Row]]:
        image["num_annotations"] = 0 if image["image_id"] == FAILED else 3
        found = [annotation_row(image["image_id"], rank) for rank in range(image["num_annotations"])]
        return {"annotations": found[:2] + [row | {"segmentation": None, "area": 14.0 * 12} for row in found[2:]]}

    labels = write_labels(
        write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", rows, ["detect", "segment_instances"]
    )
    exporter_of("label-studio").write(labels, f"{tmp_path}/tasks", "https://images.example.com/photos")
    project = studio.project("three edits")
    run("upload", "label-studio", tmp_path / "tasks", f"{studio.url}/projects/{project}")
    for task in studio.tasks(project):
        (prediction,) = task["predictions"]
        path, result = f"/api/tasks/{task['id']}/annotations/", prediction["result"]
        studio.post(path, {"result": result[:1]})
        time.sleep(0.01)  # so that the next one is later
        studio.post(path, {"result": edited(result, task["data"]["image_id"])})
        time.sleep(0.01)
        studio.post(path, {"result": [], "was_cancelled": True})
    document = studio.exported(project, tmp_path)
    run("import", "label-studio", document, "--job", labels.url, "--output", tmp_path / "imported")
    found = run("compare", labels.url, tmp_path / "imported")["kinds"]["objects"]
    counts = {name: found["all"][name] for name in ("matched", "moved", "vanished", "reclassified", "appeared")}
    assert counts == {"matched": 3 * 6 - 3, "moved": 1, "vanished": 1, "reclassified": 1, "appeared": 0}


def edited(result: list[Row], image_id: int) -> list[Row]:
    if image_id == 2:
        result[2]["value"]["x"] += 100 * 3 / WIDTH
    if image_id == 3:
        del result[1]
    if image_id == 5:
        (old,) = result[0]["value"]["brushlabels"]
        result[0]["value"]["brushlabels"] = [name for name in CATEGORIES.names if name != old]
    return result
