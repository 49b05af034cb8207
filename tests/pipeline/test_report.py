"""The report: its figures are the tables', nothing in it is more than text, and it needs nothing else."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import FAILED, HEIGHT, MODEL, WIDTH, write_images, write_job
from labels import Row, rows_of_everything, write_labels
from PIL import Image

from prelabel.pipeline import cli
from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.report import gallery, write_report
from prelabel.pipeline.report.blocks import shown
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import JobError

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE_FILE = "<img src=x onerror=alert(1)>.png"
HOSTILE = CategorySet([Category(2, '"><script>alert(1)</script>'), Category(5, "</script><!-- {{ 7 * 7 }}")])
EVERYTHING = ("detect", "fuse_panoptic", "propose")
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A report, taken apart.

    Attributes:
        elements: tag and attributes of each
        text: all that is shown
        specs: title -> specification of each chart
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._said: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []
        self.text = " ".join(data.strip() for tag, data in self._said if tag not in ("script", "style"))
        charts = json.loads(next(data for tag, data in self._said if tag == "script"))
        titles = [data for tag, data in self._said if tag == "strong" and data in TITLES]
        self.specs = dict(zip(titles, charts.values(), strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self._said.append((self._open[-1] if self._open else "", data))

    def values(self, title: str) -> list[Row]:
        return self.specs[title]["data"]["values"]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


TITLES = {
    "Area of panoptic segments", "Aspect ratios", "Box sizes", "Can scores be trusted?", "Categories that meet",
    "Failed images by code", "First labels", "Image sizes", "Objects by category", "Objects per image", "Scores",
    "Scores by category", "Throughput over time", "What was taken for what", "Where they are",
}  # fmt: skip


def hostile_rows(image: Row) -> dict[str, list[Row]]:
    """Everything, in two categories with bad names; pictures may be drawn, since no digest is said."""
    image |= {"digest": None, "labels": [{"category_id": 5, "category": HOSTILE[5].name, "score": 0.75}]}
    rows = rows_of_everything(image)
    for row in [*rows["annotations"], *rows["segments"]]:
        row["category"] = HOSTILE[row["category_id"]].name
    return rows


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    """Seven images, of which one has failed and one is called like an element."""
    folder = tmp_path_factory.mktemp("job")
    write_images(f"{folder}/images")
    (folder / "images" / HOSTILE_FILE).write_bytes((folder / "images" / "image-0.png").read_bytes())
    (folder / "images" / "image-0.png").unlink()
    dataset = write_labels(f"{folder}/images", f"{folder}/labels", hostile_rows, EVERYTHING, HOSTILE)
    write_reviews(dataset, "<b>Ada</b>", [Review(1, verdict="accept"), Review(2, verdict="flag", note="odd")])
    Manifest(dataset.storage).record_failure(7, "Crash", "<i>it</i> broke", final=True)
    return open_dataset(dataset.url)


@pytest.fixture
def report(labels: LabelDataset, tmp_path: Path) -> Callable[..., Page]:
    def call(dataset: LabelDataset = labels, **options: Any) -> Page:
        write_report(dataset, f"{tmp_path}/report.html", **options)
        return Page(tmp_path / "report.html")

    return call


def rows_of(dataset: LabelDataset, table: str) -> list[Row]:
    return dataset.table(table).to_table().to_pylist()


def test_figures_are_those_of_the_tables(labels: LabelDataset, report: Callable[..., Page]) -> None:
    page, images, objects = report(), rows_of(labels, "images"), rows_of(labels, "annotations")
    ok = [image for image in images if image["status"] == "ok"]
    counts = Counter(row["category_id"] for row in objects)
    assert [row["objects"] for row in page.values("Objects by category")] == [n for _, n in counts.most_common()]
    scores = Counter(min(19, math.floor(np.float32(row["score"]) * np.float32(20))) for row in objects)
    assert [row["objects"] for row in page.values("Scores")] == [scores[one] for one in range(20)]
    sides = Counter(round(4 * math.log2(math.sqrt(row["bbox"]["width"] * row["bbox"]["height"]))) for row in objects)
    assert [row["objects"] for row in page.values("Box sizes")] == [sides[one] for one in sorted(sides)]
    assert all(row["side"] < row["side to"] for row in page.values("Box sizes"))
    places = Counter(
        (
            math.floor(24 * (box["y"] + box["height"] / 2) / HEIGHT),
            math.floor(24 * (box["x"] + box["width"] / 2) / WIDTH),
        )
        for box in (row["bbox"] for row in objects)
    )
    assert {
        (round(24 * row["row"]), round(24 * row["column"])): row["objects"] for row in page.values("Where they are")
    } == places
    found = {
        image["image_id"]: {row["category_id"] for row in objects if row["image_id"] == image["image_id"]}
        for image in ok
    }
    meet = Counter(pair for ids in found.values() for pair in itertools.product(ids, ids))
    assert sorted(row["images"] for row in page.values("Categories that meet")) == sorted(meet.values())
    per_image = Counter(image["num_annotations"] for image in ok)
    assert {row["objects"]: row["images"] for row in page.values("Objects per image")} == per_image
    assert sum(row["images"] for row in page.values("Image sizes")) == len(ok)
    segments = rows_of(labels, "segments")
    share = sum(row["area"] for row in segments) / (len(ok) * HEIGHT * WIDTH)
    assert sum(row["share"] for row in page.values("Area of panoptic segments")) == pytest.approx(share)
    assert [(row["code"], row["images"]) for row in page.values("Failed images by code")] == [("truncated", 1)]
    assert sum(row["images"] for row in page.values("Throughput over time")) == len(images)


def test_names_are_nothing_but_text(report: Callable[..., Page]) -> None:
    page = report()
    assert len(page.all("script")) == 2
    assert {tag for tag, _ in page.elements} & {"b", "i", "iframe", "object", "form", "style"} <= {"style"}
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "style"
    ]
    for attributes in page.all("img"):
        assert str(attributes["src"]).startswith("data:image/webp;base64,")
        assert attributes["loading"] == "lazy"
    assert all(str(attributes["href"]).startswith("#") for attributes in page.all("a"))
    for name in (HOSTILE_FILE, HOSTILE[2].name, HOSTILE[5].name, "<b>Ada</b>", "<i>it</i> broke"):
        assert name in page.text
    assert {row["category"] for row in page.values("Objects by category")} == set(HOSTILE.names)
    policy = str(page.all("meta")[1]["content"])
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_provenance_and_state_are_told(labels: LabelDataset, report: Callable[..., Page]) -> None:
    text = report().text
    for told in (MODEL, "weights", labels.record.fingerprint, labels.record.created, "unit-images 3"):
        assert told in text
    assert "Complete: 3 of 3 units are committed." in text


def test_unfinished_job_says_so(tmp_path: Path, report: Callable[..., Page]) -> None:
    dataset = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", units=1)
    page = report(dataset)
    assert "Not complete: 1 of 3 units are committed" in page.text
    assert "No picture: " in page.text  # jobs says wrong digests: these are not the images that were labeled
    assert "is not the image that was labeled" in page.text


def test_same_job_same_file(labels: LabelDataset, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.html" for number in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        size = write_report(labels, str(file), gallery=1, seed=seed)
        assert size == file.stat().st_size
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_no_image_is_shown_twice(labels: LabelDataset, report: Callable[..., Page]) -> None:
    names = [str(attributes["alt"]) for attributes in report(gallery=2).all("img")]
    assert len(names) == len(set(names)) == sum(row["status"] == "ok" for row in rows_of(labels, "images"))
    assert report(gallery=0).all("img") == []


def test_worst_is_the_lowest_mean_score_of_what_is_drawn(report: Callable[..., Page]) -> None:
    text = report(gallery=1, score_threshold=0.85).text
    assert "The lowest mean score of the labels that score 0.85 or more" in text
    assert "mean score 0.900" in text
    assert "mean score 0.850" not in text


def test_threshold_is_compared_as_scores_are_kept(report: Callable[..., Page]) -> None:
    text = report(gallery=1, score_threshold=0.9).text  # none of float32 is exactly that
    assert re.search(r"mean score 0\.900 32 × 24 pixels 1 ", text)


def test_pictures_shrink_to_fit(tmp_path: Path, report: Callable[..., Page], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "BYTES", 60_000)
    noise = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(7):
        pixels = noise.integers(0, 256, (HEIGHT * 8, WIDTH * 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    page = report(write_labels(f"{tmp_path}/images", f"{tmp_path}/labels", hostile_rows, EVERYTHING, HOSTILE))
    pictures = [str(attributes["src"]) for attributes in page.all("img")]
    assert len(pictures) == 6
    assert sum(map(len, pictures)) * 3 / 4 < 60_000


@pytest.mark.parametrize("tasks", [("classify",), ("propose",), ("fuse_panoptic",), ("detect",)])
def test_job_with_one_kind_of_labels(tmp_path: Path, report: Callable[..., Page], tasks: tuple[str, ...]) -> None:
    table = {"propose": "proposals", "fuse_panoptic": "segments", "detect": "annotations"}.get(tasks[0])

    def rows(image: Row) -> dict[str, list[Row]]:
        found = hostile_rows(image)
        return {table: found[table]} if table else {}

    page = report(write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", rows, tasks, HOSTILE))
    assert len(page.all("img")) == 6
    assert ("Objects by category" in page.specs) == (tasks == ("detect",))
    assert ("Box sizes" in page.specs) == (tasks in (("detect",), ("propose",)))
    assert ("Area of panoptic segments" in page.specs) == (tasks == ("fuse_panoptic",))
    assert [row["images"] for row in page.values("First labels")] == [7]


def test_job_in_which_nothing_was_found(tmp_path: Path, report: Callable[..., Page]) -> None:
    nothing = {"annotations": [], "segments": [], "proposals": []}
    page = report(write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", lambda _: nothing, EVERYTHING))
    assert "No objects were found." in page.text


def write_truth(labels: LabelDataset, path: Path, wrong: int) -> str:
    """What the labels say, but one image's objects are all of the other category, and the failed one has some, too."""
    images = [
        {"id": row["image_id"], "file_name": row["key"], "height": HEIGHT, "width": WIDTH}
        for row in rows_of(labels, "images")
    ]
    annotations = [
        {
            "id": row["annotation_id"] + 1,
            "image_id": row["image_id"],
            "category_id": row["category_id"] if row["image_id"] != wrong else 7 - row["category_id"],
            "bbox": list(row["bbox"].values()),
            "area": row["area"],
            "iscrowd": 0,
        }
        for row in rows_of(labels, "annotations")
    ]
    annotations.append(annotations[0] | {"id": 1 << 20, "image_id": FAILED})
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": HOSTILE.to_coco()}))
    return str(path)


def test_truth_is_measured_and_says_what_is_worst(
    labels: LabelDataset, report: Callable[..., Page], tmp_path: Path
) -> None:
    truth = write_truth(labels, tmp_path / "truth.json", wrong=1)
    page = report(truth=truth, gallery=1)
    key = next(row["key"] for row in rows_of(labels, "images") if row["image_id"] == 1)
    assert page.all("img")[0]["alt"] == f"{key}, with its labels drawn"
    assert "F1 0.000" in page.text
    assert "F1 1.000" in page.text
    confused = {(row["truth"], row["found"]): row["objects"] for row in page.values("What was taken for what")}
    objects = Counter(row["category_id"] for row in rows_of(labels, "annotations") if row["image_id"] == 1)
    for ours, count in objects.items():
        assert confused[(HOSTILE[7 - ours].name, HOSTILE[ours].name)] == count
    assert page.specs["Can scores be trusted?"]["layer"][0]["data"]["values"]
    assert "Headline figures of boxes" in page.text


def test_f1_leaves_out_what_evaluate_leaves_out(tmp_path: Path, report: Callable[..., Page]) -> None:
    categories = CategorySet([*HOSTILE, Category(9, "not in the truth")])

    def rows(image: Row) -> dict[str, list[Row]]:
        found = hostile_rows(image)["annotations"]
        return {"annotations": [*found, *(row | {"category_id": 9, "category": categories[9].name} for row in found)]}

    dataset = write_labels(write_images(f"{tmp_path}/images", 3), f"{tmp_path}/labels", rows, ("detect",), categories)
    truth = Path(write_truth(dataset, tmp_path / "truth.json", wrong=-1))
    document = json.loads(truth.read_text())
    known = [one for one in document["annotations"] if one["category_id"] != 9 and one["image_id"] != FAILED]
    known[-1] |= {"iscrowd": 1}  # what was found there is neither right nor wrong
    unknown = [one | {"category_id": 77} for one in known]
    truth.write_text(json.dumps(document | {"annotations": known + unknown}))
    assert set(re.findall(r"F1 (\d\.\d+)", report(dataset, truth=str(truth)).text)) == {"1.000"}


def test_command_writes_it(labels: LabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["prelabel", "report", labels.url, "--to", f"{tmp_path}/r.html", "--gallery", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert f"{tmp_path}/r.html: " in capsys.readouterr().err
    assert Page(tmp_path / "r.html").specs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        yield (opened := started.chromium.launch(executable_path=str(CHROMIUM), args=quiet))
        opened.close()


def test_browser_draws_it_and_asks_nobody(browser: Any, labels: LabelDataset, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(labels, str(path), truth=write_truth(labels, tmp_path / "truth.json", wrong=1))
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="light")
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.chart:not([data-drawn])').length === 0")
    assert page.locator(".chart svg").count() == len(Page(path).specs)
    page.get_by_text("Objects by category", exact=True).scroll_into_view_if_needed()
    bar = page.locator("figure", has_text="How many objects were found").locator("path[aria-roledescription=bar]").first
    bar.hover()
    tip = page.locator("#vg-tooltip-element.visible")
    assert any(name in tip.inner_text() for name in HOSTILE.names)
    assert page.locator("script").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than a phone"
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.locator(".chart svg text").first.evaluate("text => getComputedStyle(text).fill"))
    assert colours == ["rgb(28, 33, 40)", "rgb(228, 232, 238)"]
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    page.close()


@pytest.mark.parametrize(
    ("told", "public"),
    [
        ("s3://key:secret@bucket/images", "s3://bucket/images"),
        ("https://host/a.jpg?X-Amz-Signature=abc", "https://host/a.jpg?…"),
        ("what?.jpg", "what?.jpg"),
        ("a\nb\u202egnp.exe", r"a\nb\u202egnp.exe"),
        ("x" * 200, "x" * 80 + "…" + "x" * 80),
    ],
)
def test_what_is_told_of_a_source_or_a_name(told: str, public: str) -> None:
    assert shown(told) == public


def test_place_that_cannot_be_written_is_said(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="can't write"):
        write_report(labels, str(tmp_path))
