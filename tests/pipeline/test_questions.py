"""The page of questions, docs/questions.md: each is asked of a small job of which every row is known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import HEIGHT, WIDTH, write_images
from labels import POSED, Row, box, rows_of_everything, write_labels

from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.query import ask, connect
from prelabel.pipeline.reviews import Review, write_reviews

PAGE = (Path(__file__).parents[2] / "docs" / "questions.md").read_text(encoding="utf-8")
QUESTIONS: dict[str, str] = dict(re.findall(r"^### (.*?)$.*?^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
(PYTHON,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ROW = 65_536


def rows(image: Row) -> dict[str, list[Row]]:
    """Images 1, 2 and 5 have a leaf, a ball and a leaf, a leaf and a ball; segments know theirs in image 2 alone."""
    found = rows_of_everything(image)
    if image["image_id"] == 1:
        found["annotations"][0]["bbox"] = box(0, 2, 14, 12)
    if image["image_id"] == 2:
        for rank, segment in enumerate(found["segments"]):
            segment["annotation_id"] = 2 * ROW + rank
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    source = write_images(f"{folder}/images")
    labels = write_labels(source, f"{folder}/labels", rows, ("detect", "fuse_panoptic"), POSED)
    write_reviews(
        labels, "ann", [Review(0, None, "accept"), Review(2, 2 * ROW, "reject"), Review(5, 5 * ROW, "reject")]
    )
    write_reviews(labels, "bob", [Review(1, ROW, "accept"), Review(2, 2 * ROW, "accept"), Review(3, None, "flag")])
    write_reviews(labels, "bob", [Review(3)])
    return folder


@pytest.fixture(scope="module")
def connection(folder: Path) -> Iterator[Any]:
    with connect(open_dataset(f"{folder}/labels")) as connection:
        yield connection


def test_all_are_found() -> None:
    assert len(QUESTIONS) == PAGE.count("```sql") == PAGE.count("### ") == 24


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_has_an_answer(connection: Any, question: str) -> None:
    ask(connection, QUESTIONS[question]).fetchall()


ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "How many objects of each category, in how many images?": [("leaf", 3, 3), ("ball", 2, 2)],
    "Which images have no labels?": [(0, "image-0.png"), (3, "image-6.png"), (6, "sub/image-5.png")],
    "Which categories occur together?": [("ball", "leaf", 2)],
    "How many images failed, and why?": [("truncated", 1, "sub/image-1.png")],
    "How many images had to be turned upright?": [(1, 6, False)],
    "Which objects does the border cut?": [(ROW, "image-2.png", "leaf")],
    "Which objects have no panoptic segment?": [
        (ROW, 1, "leaf", pytest.approx(0.9)),
        (5 * ROW, 5, "leaf", pytest.approx(0.9)),
        (5 * ROW + 1, 5, "ball", pytest.approx(0.8)),
    ],
    "Which boxes overlap so much that they may be one object found twice?": [
        (2, 2 * ROW, "ball", 2 * ROW + 1, "leaf", pytest.approx(132 / 204)),
        (5, 5 * ROW, "leaf", 5 * ROW + 1, "ball", pytest.approx(132 / 204)),
    ],
    "How much of the images does each segment category cover, and how much is void?": [
        ("void", pytest.approx(1 - (3 * 156 + 2 * 612) / (6 * HEIGHT * WIDTH))),
        ("leaf", pytest.approx((156 + 612 + 156) / (6 * HEIGHT * WIDTH))),
        ("ball", pytest.approx((156 + 612) / (6 * HEIGHT * WIDTH))),
    ],
    "How many regions were proposed per image?": [(6, pytest.approx(5 / 6), 2)],
    "What did each reviewer say?": [("ann", "accept", 1, 0), ("ann", "reject", 0, 2), ("bob", "accept", 0, 2)],
    "Where do reviewers disagree?": [(2, 2 * ROW, ["ann: reject", "bob: accept"])],
    "Which categories are rejected most?": [("ball", 2, 0.5), ("leaf", 2, 0.5)],
    "Which images has nobody looked at?": [(3, "image-6.png"), (6, "sub/image-5.png")],
}


@pytest.mark.parametrize("question", ANSWERS)
def test_answer_is_right(connection: Any, question: str) -> None:
    assert ask(connection, QUESTIONS[question]).fetchall() == ANSWERS[question]


def test_python_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(PYTHON, names)
    assert names["arrow"].count_rows() == names["frame"].collect().height == 5
    assert names["duckdb"].execute("SELECT count(*) FROM proposals").fetchone() == (5,)
    assert [mask.sum() for mask in names["masks"].values()] == [156, 156]
    assert len(names["image"].annotations) == len(names["image"].segments) == 2
    assert [row["image_id"] for row in names["rows"]] == [1, 2, 5]
