"""The review server: the right images for each filter, and verdicts that stay."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jobs import FAILED, HEIGHT, WIDTH
from labels import Row
from PIL import Image
from pycocotools import mask as coco_mask
from reviewed import CHANGED, GONE, IMAGES, TIFF, TURNED, built, client_of, encoded, pixels, say, write_job
from starlette.testclient import TestClient

from prelabel.pipeline.colors import color_of
from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.query import connect
from prelabel.pipeline.review import open_review
from prelabel.pipeline.reviews import Review as Said
from prelabel.pipeline.reviews import write_reviews
from prelabel.pipeline.storage import Storage
from prelabel.schemas.errors import JobError, UserError
from prelabel.schemas.tables import TABLES


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_job(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def tables(dataset: LabelDataset) -> dict[str, list[Row]]:
    return {name: dataset.table(name).to_table().to_pylist() for name in TABLES}


@pytest.fixture(scope="module")
def client(dataset: LabelDataset) -> TestClient:
    return client_of(built(open_review(dataset, "anna")))


@pytest.fixture
def fresh(tmp_path: Path) -> LabelDataset:
    """A job for whom writes reviews."""
    return write_job(tmp_path)


def ids(client: TestClient, query: str) -> list[int]:
    found = client.get(f"/api/images?{query}").json()
    assert found["total"] == len(found["images"])
    return [image["image_id"] for image in found["images"]]


Holds = Callable[[Row, list[Row]], bool]
FILTERS: dict[str, Holds] = {
    "category=2": lambda image, objects: any(one["category_id"] == 2 for one in objects),
    "category=5&min_score=0.45": lambda image, objects: any(
        one["category_id"] == 5 and one["score"] >= 0.45 for one in objects
    ),
    "category=2&category=5&max_score=0.2": lambda image, objects: any(one["score"] <= 0.2 for one in objects),
    "min_score=0.4&max_score=0.6": lambda image, objects: any(0.4 <= one["score"] <= 0.6 for one in objects),
    "status=failed": lambda image, objects: image["status"] == "failed",
    "min_objects=2&max_objects=3": lambda image, objects: 2 <= image["num_annotations"] <= 3,
    f"min_width={WIDTH + 11}": lambda image, objects: (image["width"] or 0) >= WIDTH + 11,
    f"max_height={HEIGHT}&max_width={WIDTH}": lambda image, objects: image["width"] == WIDTH,
    "text=TURNED": lambda image, objects: "turned" in image["key"],
    "text=%25": lambda image, objects: "%" in image["key"],
    "text=1&category=2": lambda image, objects: "1" in image["key"] and any(one["category_id"] == 2 for one in objects),
    "sql=num_annotations=0": lambda image, objects: image["num_annotations"] == 0,
    "sql=category='leaf'+AND+score>0.5&max_objects=3": lambda image, objects: (
        image["num_annotations"] <= 3
        and any(one["category"] == "leaf" and one["score"] > 0.5 and "iscrowd" in one for one in objects)
    ),
    "min_score=": lambda image, objects: True,
}


@pytest.mark.parametrize("query", FILTERS)
def test_filters_let_through_what_plain_python_does(
    query: str, client: TestClient, tables: dict[str, list[Row]]
) -> None:
    objects = [*tables["annotations"], *tables["segments"]]
    expected = [
        image["image_id"]
        for image in tables["images"]
        if FILTERS[query](image, [one for one in objects if one["image_id"] == image["image_id"]])
    ]
    assert ids(client, query) == expected


ORDERS: dict[str, Callable[[list[float]], float]] = {
    "highest": lambda scores: -max(scores, default=-np.inf),
    "lowest": lambda scores: min(scores, default=np.inf),
    "objects": lambda scores: -len(scores),
    "fewest": len,
}


@pytest.mark.parametrize("order", ORDERS)
def test_order_is_that_of_the_annotations(order: str, client: TestClient, tables: dict[str, list[Row]]) -> None:
    scores: dict[int, list[float]] = {image["image_id"]: [] for image in tables["images"]}
    for one in tables["annotations"]:
        scores[one["image_id"]].append(one["score"])
    assert ids(client, f"order={order}") == sorted(scores, key=lambda image: (ORDERS[order](scores[image]), image))


def test_order_looks_at_the_objects_that_are_asked_for(client: TestClient, tables: dict[str, list[Row]]) -> None:
    best = {one["image_id"]: one["score"] for one in reversed(tables["annotations"]) if one["category_id"] == 2}
    assert ids(client, "category=2&order=highest") == sorted(best, key=lambda image: -best[image])


def test_pages_are_the_same_before_and_after_the_index_is_built(dataset: LabelDataset) -> None:
    review = open_review(dataset, "anna")
    client = client_of(review)
    assert client.get("/api/job").json()["ready"] is False
    urls = ["/api/images", "/api/images?offset=2&limit=5", "/api/images?offset=11", "/api/images?offset=99"]
    before = [client.get(url).json() for url in urls]
    built(review)
    assert client.get("/api/job").json()["ready"] is True
    assert [client.get(url).json() for url in urls] == before
    assert [len(page["images"]) for page in before] == [12, 5, 1, 0]
    assert {page["total"] for page in before} == {IMAGES}


def test_an_unfinished_job_shows_what_is_committed(fresh: LabelDataset, tmp_path: Path) -> None:
    (tmp_path / "labels/_manifest/commits/00000001.json").unlink()
    client = client_of(built(open_review(open_dataset(fresh.url), "anna")))
    job = client.get("/api/job").json()
    assert (job["images"], job["is_complete"]) == (9, False)
    assert ids(client, "") == ids(client, "sql=true") == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert client.get("/api/images/4").status_code == 404
    assert say(client, {"image_id": 4, "verdict": "flag"}).json() == {"error": "there is no image 4"}


def test_image_has_all_its_rows(client: TestClient, tables: dict[str, list[Row]]) -> None:
    found = client.get("/api/images/9").json()
    assert found["image"] == next(image for image in tables["images"] if image["image_id"] == 9)
    annotations = [one for one in tables["annotations"] if one["image_id"] == 9]
    for answer, row in zip(found["annotations"], annotations, strict=True):
        assert answer["bbox"] == list(row["bbox"].values())
        assert {"size": answer["size"], "counts": answer["counts"]} == row["segmentation"]
        same = ("annotation_id", "category_id", "score", "keypoints", "iscrowd", "model")
        assert {name: answer[name] for name in same} == {name: row[name] for name in same}
    assert [segment["kind"] for segment in found["segments"]] == ["panoptic"]
    assert len(found["proposals"]) == 100
    assert found["proposals"][0]["score"] == 1
    assert (found["reviews"], found["truth"], found["other"]) == ([], None, None)


def test_truth_and_another_job_are_beside(dataset: LabelDataset, tmp_path: Path) -> None:
    square, size = [[2, 3, 12, 3, 12, 9, 2, 9]], (HEIGHT, WIDTH)
    one = {"id": 7, "image_id": 70, "bbox": [2, 3, 10, 6], "area": 60, "iscrowd": 0}
    masks = [square, {"size": size, "counts": [0, HEIGHT * WIDTH]}, [], [[1e300] * 6], {"size": size, "counts": "zz"}]
    document = {
        "images": [{"id": 70, "file_name": encoded(0)[0], "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "leaf"}, {"id": 2, "name": '"><script>'}],
        "annotations": [one | {"category_id": 1 + k % 2, "segmentation": mask} for k, mask in enumerate(masks)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))
    client = client_of(open_review(dataset, "anna", str(tmp_path / "truth.json"), dataset.url))
    found = client.get("/api/images/0").json()
    truth = found["truth"]["annotations"]
    assert [annotation["category_id"] for annotation in truth] == [5, 6, 5, 6, 5]
    assert {"id": 6, "name": '"><script>'} in found["truth"]["categories"]
    expected = coco_mask.decode(coco_mask.frPyObjects(square, HEIGHT, WIDTH))[..., 0]
    assert np.array_equal(coco_mask.decode({"size": truth[0]["size"], "counts": truth[0]["counts"]}), expected)
    assert coco_mask.decode({"size": truth[1]["size"], "counts": truth[1]["counts"]}).all()
    assert [truth[k]["counts"] for k in (2, 4)] == [None, None]
    beside = client.get("/api/images/9").json()
    assert beside["truth"] is None
    assert beside["other"]["annotations"] == beside["annotations"]
    assert beside["other"]["categories"][0]["name"] == "ball"


def test_file_is_the_original_where_browsers_show_it(client: TestClient) -> None:
    for image_id, kind in ((0, "image/png"), (TURNED, "image/jpeg")):
        answer = client.get(f"/api/images/{image_id}/file")
        assert (answer.content, answer.headers["content-type"]) == (encoded(image_id)[1], kind)
    answer = client.get(f"/api/images/{TIFF}/file")
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), pixels(TIFF))


@pytest.mark.parametrize("what", ["file", "thumbnail"])
@pytest.mark.parametrize(
    ("image_id", "code", "why"),
    [(GONE, 410, "is not there"), (CHANGED, 410, "have changed"), (FAILED, 410, "truncated"), (99, 404, "no image 99")],
)
def test_images_that_are_gone_are_told_in_a_line(
    what: str, image_id: int, code: int, why: str, client: TestClient
) -> None:
    answer = client.get(f"/api/images/{image_id}/{what}")
    assert answer.status_code == code
    assert re.search(why, answer.json()["error"])
    assert "\n" not in answer.json()["error"]


def test_a_plan_that_cannot_be_read_costs_the_pictures_alone(fresh: LabelDataset) -> None:
    client = client_of(built(open_review(fresh, "anna")))
    Path(fresh.url, "_manifest/units/part-00000.parquet").unlink()
    answer = client.get("/api/images/0/file")
    assert (answer.status_code, "can't be read for now" in answer.json()["error"]) == (410, True)
    assert client.get("/api/images/0").status_code == 200


def test_each_start_has_a_key_for_what_browsers_keep(dataset: LabelDataset) -> None:
    keys = {client_of(open_review(dataset, "anna")).get("/api/job").json()["key"] for _ in range(2)}
    assert len(keys) == 2


def test_thumbnail_is_upright_and_small_and_has_boxes(client: TestClient, tables: dict[str, list[Row]]) -> None:
    answer = client.get(f"/api/images/{TURNED}/thumbnail?size=16&min_score=1.1")
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == ("JPEG", (16, 16 * HEIGHT // WIDTH))
    red, blue = np.asarray(image).reshape(2, -1, 3).mean(1)
    assert red[0] > 200 > 50 > red[2]
    assert blue[2] > 200 > 50 > blue[0]
    best = next(one for one in tables["annotations"] if one["image_id"] == 9)
    drawn = np.asarray(Image.open(io.BytesIO(client.get("/api/images/9/thumbnail").content)), float)
    plain = np.asarray(Image.open(io.BytesIO(client.get("/api/images/9/thumbnail?min_score=1.1").content)), float)
    top, left, right = (int(value) for value in (best["bbox"]["y"], best["bbox"]["x"], best["bbox"]["width"]))
    color = color_of(best["category_id"])
    edge = slice(left + 1, left + right - 1)
    assert abs(drawn[top, edge] - color).mean() < abs(plain[top, edge] - color).mean() / 2
    assert client.get("/api/images/9/thumbnail?size=99999").status_code == 400


def test_a_verdict_is_known_at_once_and_by_the_next_server(fresh: LabelDataset) -> None:
    client = client_of(built(open_review(fresh, "anna")))
    assert ids(client, "verdict=none") == list(range(IMAGES))
    first = {"image_id": 3, "verdict": "accept", "note": "<b>\n"}
    assert say(client, first, {"image_id": 5, "verdict": "flag"}).json() == {"written": 2}
    assert say(client, {"image_id": 3, "annotation_id": 3 * 65_536, "verdict": "reject"}).json() == {"written": 1}
    for server in (client, client_of(built(open_review(open_dataset(fresh.url), "bo")))):
        assert ids(server, "verdict=accept") == ids(server, "sql=verdict='accept'") == [3]
        assert server.get("/api/progress").json() == {"accept": 1, "reject": 0, "flag": 1, "none": IMAGES - 2}
        assert server.get("/api/images?text=05").json()["images"][0]["verdict"] == "flag"
        whole, one = server.get("/api/images/3").json()["reviews"]
        assert (whole["verdict"], whole["note"], whole["reviewer"]) == ("accept", "<b>\n", "anna")
        assert (one["verdict"], one["annotation_id"]) == ("reject", 3 * 65_536)


def test_the_last_word_counts_until_it_is_taken_back(fresh: LabelDataset) -> None:
    client = client_of(built(open_review(fresh, "anna")))
    say(client, {"image_id": 3, "verdict": "accept"})
    write_reviews(fresh, "bo", [Said(3, None, "reject")])
    client.app.state.review.verdicts.refresh()  # type: ignore[attr-defined]
    assert ids(client, "verdict=reject") == [3]
    assert [one["reviewer"] for one in client.get("/api/images/3").json()["reviews"]] == ["anna", "bo"]
    write_reviews(fresh, "bo", [Said(3, None, None)])
    client.app.state.review.verdicts.refresh()  # type: ignore[attr-defined]
    assert ids(client, "verdict=accept") == [3]
    say(client, {"image_id": 3})
    assert ids(client, "verdict=none") == list(range(IMAGES))


def test_reviews_that_cannot_be_listed_for_now_are_looked_for_again(
    fresh: LabelDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = open_review(fresh, "anna").verdicts
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "names", lambda self, folder: os.listdir("/dev/null"))
        with pytest.raises(JobError, match="can't read"):
            verdicts.refresh()
    write_reviews(fresh, "bo", [Said(3, None, "accept")])
    verdicts.refresh()
    assert verdicts.progress()["accept"] == 1


def test_two_reviewers_at_once_lose_nothing(fresh: LabelDataset) -> None:
    clients = {name: client_of(open_review(fresh, name)) for name in ("anna", "bo")}

    def work(client: TestClient) -> None:
        for image_id in range(IMAGES):
            assert say(client, {"image_id": image_id, "verdict": "accept"}).status_code == 200

    threads = [threading.Thread(target=work, args=[client]) for client in clients.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with connect(open_dataset(fresh.url)) as connection:
        said = connection.sql("SELECT reviewer, count(DISTINCT image_id), count(*) FROM verdicts GROUP BY 1 ORDER BY 1")
        assert said.fetchall() == [("anna", IMAGES, IMAGES), ("bo", IMAGES, IMAGES)]


@pytest.mark.parametrize(
    "review",
    [
        {"image_id": 99, "verdict": "accept"},
        {"image_id": -1, "verdict": "accept"},
        {"image_id": 2**70, "verdict": "accept"},
        {"image_id": "3", "verdict": "accept"},
        {"image_id": 3, "annotation_id": 3 * 65_536 + 9, "verdict": "accept"},
        {"image_id": 2, "annotation_id": 3 * 65_536, "verdict": "accept"},
        {"image_id": 3, "verdict": "excellent"},
        {"image_id": 3, "note": "x" * 10_001},
        {"image_id": 3, "reviewer": "bo"},
    ],
)
def test_reviews_that_make_no_sense_are_refused_as_a_whole(review: Row, client: TestClient) -> None:
    answer = say(client, {"image_id": 3, "verdict": "accept"}, review)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert client.get("/api/images/3").json()["reviews"] == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"reviews": [' + b" " * 2**24, b"\xff"])
def test_bodies_that_are_no_reviews_are_refused(body: bytes, client: TestClient) -> None:
    assert client.post("/api/verdicts", content=body).status_code == 400
    assert client.post("/api/verdicts", json={"reviews": [{"image_id": 0}] * 10_001}).status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "sql=SELECT",
        "sql=nothing_like_it+=+1",
        "sql=true)+--",
        "sql=true)+UNION+SELECT+1,+2+--",
        "sql=true;DROP+TABLE+reviews",
        "sql=key+IN+(SELECT+content+FROM+read_text('/etc/passwd'))",
        "sql=key+IN+(SELECT+content+FROM+read_text('http://localhost'))",
        "sql=getenv('HOME')='x'",
        "category=x",
        "category=99999999999",
        "min_score=nan",
        "verdict=excellent",
        "order=1;DROP",
        "limit=0",
        "limit=100000",
        "offset=-1",
        "nonsense=1",
    ],
)
def test_questions_that_make_no_sense_get_one_line(query: str, client: TestClient) -> None:
    answer = client.get(f"/api/images?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"].count("\n") == 0
    assert len(ids(client, "")) == IMAGES


def test_text_and_categories_stay_text(fresh: LabelDataset) -> None:
    client = client_of(built(open_review(fresh, '<img src=x onerror="alert(1)">')))
    answer = client.get("/api/images?text=%27%22%25%32%65.tif")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["images"][0]["key"] == fresh.table("images").to_table()["key"][TIFF].as_py()


def test_a_panoptic_truth_is_refused(dataset: LabelDataset, tmp_path: Path) -> None:
    image = {"id": 1, "file_name": encoded(0)[0], "height": HEIGHT, "width": WIDTH}
    document = {"images": [image], "categories": [{"id": 1, "name": "leaf", "isthing": 1}]}
    document["annotations"] = [{"image_id": 1, "file_name": "1.png", "segments_info": []}]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="instances or keypoints"):
        open_review(dataset, "anna", str(tmp_path / "truth.json"))
