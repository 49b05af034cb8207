"""What a selection keeps, against plain Python over the rows; and what its SQL can't do."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from jobs import FAILED, write_images
from labels import POSED, Row, rows_of_everything, write_labels
from pycocotools.coco import COCO

from prelabel.pipeline.cli import cli
from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.exports import EXPORTS, exporter_of
from prelabel.pipeline.query import connection
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.pipeline.selection import SortedIds, score_thresholds
from prelabel.schemas.errors import JobError, UserError

IMAGES = 30
TASKS = ("detect_keypoints", "fuse_panoptic", "propose", "segment_instances")
ROW = 65_536


def rows(image: Row) -> dict[str, list[Row]]:
    """Objects and segments of random scores, some segments without one, in images of random sizes."""
    chance = random.Random(image["image_id"])
    if image["status"] == "ok":
        image["num_bytes"] = chance.choice([500, 1500])
    found = rows_of_everything(image)
    scores = sorted((float(np.float32(chance.random())) for _ in found["annotations"]), reverse=True)
    for row, score in zip(found["annotations"], scores, strict=True):
        row["score"] = score
    for row in found["segments"]:
        row["score"] = chance.choice([None, float(np.float32(chance.random()))])
    return found


def write_random_reviews(dataset: LabelDataset) -> None:
    chance = random.Random(7)
    objects = [row["annotation_id"] for row in dataset.table("annotations").to_table(["annotation_id"]).to_pylist()]
    for _ in range(60):
        target: tuple[int, int | None] = (chance.randrange(IMAGES), None)
        if chance.random() < 0.6:
            target = (chance.choice(objects) // ROW, chance.choice(objects))
            target = (target[1] // ROW, target[1]) if target[1] is not None else target
        said = chance.choice([("accept", None), ("reject", "no"), ("flag", None), (None, None), (None, "hm")])
        write_reviews(dataset, chance.choice(["ann", "bob", "cy"]), [Review(*target, *said)])


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("job")
    source = write_images(f"{folder}/images", IMAGES)
    dataset = write_labels(source, f"{folder}/labels", rows, TASKS, POSED, units=9)
    write_random_reviews(dataset)
    return dataset


def last_words(dataset: LabelDataset) -> dict[tuple[int, int | None], Row]:
    """By image and object: the verdict and who gave it, and the note, each the last that is still held."""
    by_person: dict[tuple[Any, ...], Row] = {}
    reviews = dataset.table("reviews").to_table().to_pylist()
    for row in sorted(reviews, key=lambda row: (row["reviewed_at"], row["review_id"])):
        by_person.pop(key := (row["image_id"], row["annotation_id"], row["reviewer"]), None)
        by_person[key] = row
    words: dict[tuple[int, int | None], Row] = defaultdict(lambda: dict.fromkeys(("verdict", "reviewer", "note")))
    for (image_id, annotation_id, reviewer), row in by_person.items():
        word = words[image_id, annotation_id]
        word |= {"verdict": row["verdict"], "reviewer": reviewer} if row["verdict"] else {}
        word |= {"note": row["note"]} if row["note"] else {}
    return words


@cache
def rows_of(dataset: LabelDataset, name: str) -> list[Row]:
    return dataset.table(name).to_table().to_pylist()


@cache
def joined(dataset: LabelDataset) -> list[tuple[int, int | None, Row]]:
    """Each image by itself, and each object with its image."""
    return list(_joined(dataset))


def _joined(dataset: LabelDataset) -> Iterator[tuple[int, int | None, Row]]:
    words = last_words(dataset)
    for image in rows_of(dataset, "images"):
        whole = words[image["image_id"], None]
        yield image["image_id"], None, image | {"score": None, "category": None} | whole
        for row in (one for one in rows_of(dataset, "annotations") if one["image_id"] == image["image_id"]):
            own = words[image["image_id"], row["annotation_id"]]
            verdict = own if own["verdict"] else whole
            said = {name: verdict[name] for name in ("verdict", "reviewer")} | {"note": own["note"] or whole["note"]}
            yield image["image_id"], row["annotation_id"], image | row | said


CONDITIONS: dict[str | None, Callable[[Row], bool]] = {
    None: lambda row: True,
    "verdict = 'accept'": lambda row: row["verdict"] == "accept",
    "verdict IS DISTINCT FROM 'reject'": lambda row: row["verdict"] != "reject",
    "num_bytes > 1000 AND score > 0.5": lambda row: row["num_bytes"] > 1000 and (row["score"] or 0) > 0.5,
    "status = 'ok' AND verdict IS NULL -- to do": lambda row: row["status"] == "ok" and row["verdict"] is None,
    "reviewer = 'ann' OR note = 'no'": lambda row: row["reviewer"] == "ann" or row["note"] == "no",
    "category = 'leaf'": lambda row: row["category"] == "leaf",
    "image_id IN (SELECT image_id FROM segments WHERE kind = 'panoptic' AND area > 200)": lambda row: (
        row["image_id"] % 3 == 2 and row["status"] == "ok"
    ),
    "key LIKE 'sub/%'": lambda row: row["key"].startswith("sub/"),
}


def expected(dataset: LabelDataset, thresholds: dict[str, float], categories: Any, where: Any, limit: Any) -> Row:
    """The image_id of each image, and the row's own id, of every table."""
    images, objects, ok = set(), set(), []
    for image_id, annotation_id, row in joined(dataset):
        if CONDITIONS[where](row):
            images.add(image_id)
            objects.add(annotation_id)
            if row["status"] == "ok" and image_id not in ok:
                ok.append(image_id)
    last = IMAGES if limit is None or len(ok) < limit else ok[limit - 1] if limit else -1

    def wanted(row: Row) -> bool:
        low = row["score"] is not None and row["score"] < np.float32(thresholds.get(row["category"], -1))
        return not low and (not categories or row["category"] in categories) and row["image_id"] in images

    found = {}
    for name in ("images", "annotations", "segments", "proposals"):
        some = [row for row in rows_of(dataset, name) if row["image_id"] <= last]
        if name == "annotations":
            some = [row for row in some if wanted(row) and row["annotation_id"] in objects]
        elif name == "segments":
            some = [row for row in some if wanted(row)]
        found[name] = [row for row in some if row["image_id"] in images]
    return found


@pytest.mark.parametrize("where", CONDITIONS)
def test_selection_is_what_plain_python_finds(
    labels: LabelDataset, where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BATCH_ROWS", 2)
    chance = random.Random(where)
    for _ in range(3):
        thresholds = {name: chance.random() for name in ("leaf", "ball") if chance.random() < 0.5}
        categories = chance.choice([None, None, ["leaf"], ["ball", "leaf"]])
        limit = chance.choice([None, None, 0, 1, 4, 500])
        selection = labels.select(thresholds, categories, where, limit)
        for name, found in expected(labels, thresholds, categories, where, limit).items():
            assert [row for batch in selection.batches(name) for row in batch.to_pylist()] == found


def test_columns_of_a_selection_are_those_asked_for(labels: LabelDataset) -> None:
    for batch in labels.select(0.5).batches("annotations", ["category", "annotation_id"]):
        assert batch.schema.names == ["category", "annotation_id"]
    with pytest.raises(JobError, match="reviews can't be selected: choose from images, "):
        labels.select().batches("reviews")


def test_last_word_of_two_reviewers_counts_until_it_is_taken_back(tmp_path: Path) -> None:
    dataset = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", rows, TASKS, POSED)
    a, b = 2 * ROW, 2 * ROW + 1

    def accepted() -> tuple[list[int], list[int]]:
        selection = open_dataset(dataset.url).select(where="verdict = 'accept'")
        images = [row["image_id"] for batch in selection.batches("images") for row in batch.to_pylist()]
        return images, [i for batch in selection.batches("annotations") for i in batch["annotation_id"].to_pylist()]

    assert accepted() == ([], [])
    write_reviews(dataset, "ann", [Review(2, None, "accept")])
    assert accepted() == ([2], [a, b])
    write_reviews(dataset, "bob", [Review(2, a, "reject", "too large")])
    assert accepted() == ([2], [b])
    write_reviews(dataset, "ann", [Review(2, a, "accept")])
    assert accepted() == ([2], [a, b])
    write_reviews(dataset, "ann", [Review(2, a)])
    assert accepted() == ([2], [b])
    write_reviews(dataset, "bob", [Review(2, b, "reject")])
    assert accepted() == ([2], [])  # an image that is right without its objects
    write_reviews(dataset, "bob", [Review(2, None, "flag")])
    assert accepted() == ([], [])


def test_condition_of_chance_says_one_thing_of_images_and_objects(labels: LabelDataset) -> None:
    selection = labels.select(where="random() < 0.5")
    images = {i for batch in selection.batches("images") for i in batch["image_id"].to_pylist()}
    assert {i for batch in selection.batches("annotations") for i in batch["image_id"].to_pylist()} <= images


def test_parts_are_read_one_after_the_other(labels: LabelDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []
    batches = labels.batches

    def noting(name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        for batch in batches(name, columns):
            pulled.append(name)
            yield batch

    monkeypatch.setattr(labels, "batches", noting)
    selection = labels.select(0.2, where="height > 0", limit=4)
    assert pulled == []
    next(found := selection.batches("annotations"))
    assert pulled == ["images", "images", "annotations"]  # the fourth image is in the second unit
    assert len(list(found)) == 1
    assert pulled[3:] == ["annotations"]


def test_ids_are_held_no_longer_than_needed() -> None:
    pulled: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, 1000, 10):
            pulled.append(start)
            yield np.arange(start, start + 10, 2)

    ids = SortedIds(pieces())
    assert ids.among(np.array([], np.int64)).tolist() == []
    assert ids.among(np.array([3, 4, 8])).tolist() == [False, True, True]
    assert ids.among(np.array([8, 8, 21])).tolist() == [True, True, False]
    assert pulled == [0, 10, 20]
    assert ids.among(np.array([998, 5000])).tolist() == [True, False]


# Exports


def export(labels: LabelDataset, to: Path, *arguments: str, name: str = "coco") -> Any:
    cli.main(["export", name, labels.url, "--to", str(to), *arguments], standalone_mode=False)
    return json.loads(to.read_bytes())


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_takes_a_selection(name: str, labels: LabelDataset, tmp_path: Path) -> None:
    every = exporter_of(name).write(labels, str(tmp_path / f"all{exporter_of(name).suffix}"))
    to = tmp_path / f"some{exporter_of(name).suffix}"
    some = exporter_of(name).write(labels.select(0.3, ["leaf"], "num_bytes > 1000", 6), str(to))
    assert some.images == 6 < every.images
    assert 0 < some.annotations < every.annotations


@pytest.mark.parametrize("name", ["coco", "coco-keypoints", "coco-panoptic", "coco-results"])
def test_documents_hold_the_selection(name: str, labels: LabelDataset, tmp_path: Path) -> None:
    to = tmp_path / "some.json"
    written = exporter_of(name).write(labels.select(0.3, ["leaf"], "num_bytes > 1000", 6), str(to))
    rest = expected(labels, {"leaf": 0.3, "ball": 0.3}, ["leaf"], None, None)
    images = [row["image_id"] for row in rest["images"] if row["status"] == "ok" and row["num_bytes"] > 1000][:6]
    assert written.images == 6
    document = json.loads(to.read_bytes())
    if name == "coco-results":
        annotations = document
    else:
        assert [image["id"] for image in document["images"]] == images
        assert [category["name"] for category in document["categories"]] == ["leaf"]
        annotations = document["annotations"]
    if name == "coco-panoptic":
        found = [(one["image_id"], info["id"]) for one in annotations for info in one["segments_info"]]
        wanted = [(row["image_id"], row["segment_id"]) for row in rest["segments"] if row["image_id"] in images]
    else:
        found = [(one["image_id"], np.float32(one["score"])) for one in annotations]
        wanted = [(row["image_id"], row["score"]) for row in rest["annotations"] if row["image_id"] in images]
    assert found == wanted


def test_pycocotools_loads_what_was_selected(
    labels: LabelDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(labels, tmp_path / "some.json", "--score-threshold", "0.4", "--where", "verdict = 'accept'")
    said = capsys.readouterr().err
    coco = COCO(str(tmp_path / "some.json"))
    capsys.readouterr()
    wanted = expected(labels, {"leaf": 0.4, "ball": 0.4}, None, "verdict = 'accept'", None)
    assert list(coco.anns) == [row["annotation_id"] for row in wanted["annotations"]]
    assert list(coco.imgs) == [row["image_id"] for row in wanted["images"] if row["status"] == "ok"]
    everything = expected(labels, {}, None, None, None)
    left_out = {name: len(everything[name]) - len(wanted[name]) for name in ("images", "annotations")}
    assert f"left out: {left_out['images']} images, {left_out['annotations']} annotations\n" in said


def test_images_stay_where_no_object_reaches_the_threshold(labels: LabelDataset, tmp_path: Path) -> None:
    document = export(labels, tmp_path / "some.json", "--score-threshold", "1", "--limit", "4")
    assert [image["id"] for image in document["images"]] == [0, 1, 2, 3]
    assert document["annotations"] == []
    assert FAILED not in {image["id"] for image in export(labels, tmp_path / "a.json", "--limit", "5")["images"]}


def test_thresholds_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.json"
    file.write_text('{"leaf": 0.25}')
    assert score_thresholds([], POSED) == {}
    assert score_thresholds(["ball=0.5", "0.3"], POSED) == {"ball": 0.5, "leaf": 0.3}
    assert score_thresholds([str(file), "0.3"], POSED) == {"ball": 0.3, "leaf": 0.25}
    assert score_thresholds([str(file), "leaf=1e-1", "a=b=0"], POSED) == {"leaf": 0.1, "a=b": 0}


def test_threshold_is_compared_as_scores_are_kept(labels: LabelDataset) -> None:
    score = next(labels.batches("annotations", ["score"]))["score"][0].as_py()
    shortest = float(str(np.float32(score)))
    selection = labels.select(shortest)
    assert score in [one for batch in selection.batches("annotations") for one in batch["score"].to_pylist()]


# Mistakes, and those who make them on purpose


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--score-threshold", "laef=0.5"), r"has no category 'laef': did you mean 'leaf'\?"),
        (("--category", "dog"), r"has no category 'dog': did you mean 'ball', 'leaf'\?"),
        (("--score-threshold", "nowhere.json"), "--score-threshold nowhere.json can't be read"),
        (("--score-threshold", "nan"), "--score-threshold nan can't be read"),
        (("--score-threshold", "list.json"), "list.json should hold"),
        (("--score-threshold", "text.json"), "text.json is no JSON"),
        (("--score-threshold", "null.json"), "null.json should hold"),
        (("--score-threshold", "deep.json"), "deep.json is no JSON"),
    ],
)
def test_mistake_is_one_line(
    labels: LabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"list": "[1]", "text": "leaf: 1", "null": '{"leaf": null}', "deep": "[" * 10**5}.items():
        Path(f"{name}.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        export(labels, tmp_path / "out.json", *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.json").exists()


HOSTILE = [
    "",
    " ",
    "(score > 0.5",
    "score > 0.5)",
    "'",
    "true; DROP TABLE kept",
    "true) ; COPY (SELECT 1) TO '{place}' ; --",
    "true) UNION ALL (SELECT 1, 2",
    "true) UNION ALL SELECT 1, 2 --",
    "true) OR (true",
    "true ORDER BY 1",
    "true LIMIT 1",
    "true /*",
    "true FROM images",
    "true, true",
    "verdict = 'accept' AS x",
    "COPY (SELECT 1) TO '{place}'",
    "(SELECT count(*) FROM read_text('/etc/passwd')) > 0",
    "(SELECT count(*) FROM glob('/*')) > 0",
    "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
    "(SELECT count(*) FROM '/etc/passwd') > 0",
    "(WITH a AS (COPY (SELECT 1) TO '{place}') SELECT count(*) FROM a) > 0",
    "(WITH a AS (DELETE FROM images RETURNING 1) SELECT count(*) FROM a) > 0",
    "(SELECT count(*) FROM query('COPY (SELECT 1) TO ''{place}''')) > 0",
    "getenv('HOME') = ''",
    "$1 = 1",
    "count(*) > 1",
    "no_such_column = 1",
    "error('boom') IS NULL",
    "cast(key AS INT) = 1",
]


@pytest.mark.parametrize("where", HOSTILE)
def test_what_is_no_expression_over_the_tables_is_one_line(labels: LabelDataset, tmp_path: Path, where: str) -> None:
    place = tmp_path / "place"
    before = {path: path.stat().st_mtime_ns for path in Path(labels.url).rglob("*")}
    with pytest.raises(UserError, match=r"^can't select where ") as caught:
        export(labels, tmp_path / "out.json", "--where", where.replace("{place}", str(place)))
    assert "\n" not in str(caught.value)
    assert "root:" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert before == {path: path.stat().st_mtime_ns for path in Path(labels.url).rglob("*")}
