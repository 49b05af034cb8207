"""The review page in a browser: what people see and press. What the server answers is tested in `test_review`."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from jobs import FAILED, HEIGHT, WIDTH, ring
from labels import Row, rows_of_everything, write_labels
from PIL import Image
from pycocotools import mask as coco_mask
from shards import write_files

from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.query import connect
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven with playwright")
expect = sync_api.expect
expect.set_options(timeout=20_000)  # a machine may be busy

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
EVIL_FILE, EVIL_CATEGORY = "<img src=x onerror=alert(1)>.jpg", '"><script>'
PRELABEL = "from prelabel.pipeline.cli import main; main()"
CATEGORIES = CategorySet([Category(2, EVIL_CATEGORY), Category(5, "leaf", "plant")])
NAMES = [EVIL_FILE, *(f"image-{number}.png" for number in range(1, 8))]
POSED = 2
"""The image_id of one with two objects, their keypoints, segments and proposals."""
MILLION = 1_000_000
MASK = """canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, Array.from(pixels.filter((_, at) => at % 4 === 3))];
}"""


def picture(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 200)).save(file, "PNG")
    return file.getvalue()


def noise() -> np.ndarray:
    """A mask whose runs are many and short, as differences often below 0: bool (HEIGHT, WIDTH)."""
    return np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.4


def rows(image: Row) -> dict[str, list[Row]]:
    image["digest"] = hashlib.sha256(picture()).hexdigest()
    tables = rows_of_everything(image)
    for row in tables["annotations"][1:]:
        row["segmentation"] = rle.encode(noise()).to_coco()
        row["bbox"] = {"x": 0.0, "y": 0.0, "width": float(WIDTH), "height": float(HEIGHT)}
    return tables


def truth() -> dict[str, Any]:
    """Of one image: an object elsewhere than the labels have it."""
    mask = rle.encode(~ring(2))
    entry = {"id": 9, "image_id": 70, "category_id": 1, "iscrowd": 0, "segmentation": mask.to_coco()}
    return {
        "images": [{"id": 70, "file_name": NAMES[POSED], "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "leaf"}],
        "annotations": [entry | {"area": rle.area(mask), "bbox": list(rle.bbox(mask))}],
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("review")
    write_files(f"{folder}/images", dict.fromkeys(NAMES, picture()))
    (folder / "truth.json").write_text(json.dumps(truth()))
    written = write_labels(f"{folder}/images", f"{folder}/labels", rows, ("detect", "segment_instances"), CATEGORIES)
    write_reviews(written, "<b>bo</b>", [Review(5, None, "accept", "fine")])
    return open_dataset(written.url)


@pytest.fixture(scope="module")
def url(dataset: LabelDataset) -> Iterator[str]:
    """Where anna reviews the job."""
    beside = ["--truth", str(Path(dataset.url).parent / "truth.json"), "--other", dataset.url]
    command = [sys.executable, "-c", PRELABEL, "review", dataset.url, *beside, "--reviewer", "anna", "--port", "0"]
    with subprocess.Popen([*command, "--no-open"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        yield re.findall(r"http://\S+", server.stderr.readline())[0]
        server.send_signal(signal.SIGINT)
        assert server.communicate()[1].strip() == "stopped"
    assert server.returncode == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """A page that has no errors and asks nobody but its server."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(20_000)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda asked: asked.url.startswith((url, "data:", "blob:")) or complaints.append(asked.url))
    page.goto(url)
    expect(page.locator("#count")).to_contain_text("images")  # before that nobody listens to the form
    yield page
    context.close()
    # A page may ask twice, as when the index becomes ready in between: what counts is what it complains of.
    assert set(complaints) == set(getattr(page, "expected_complaints", []))


def open_image(page: Any, url: str, image_id: int) -> None:
    page.goto(f"{url}#image={image_id}")
    expect(page.locator("#title")).to_have_text(NAMES[image_id])


def painted(page: Any, pane: int = 0) -> np.ndarray:
    """Alpha of the masks' canvas, (H, W), when what was asked for has been painted."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    height, width, alpha = page.locator('canvas[data-layer="masks"]').nth(pane).evaluate(MASK)
    return np.array(alpha, np.uint8).reshape(height, width)


def test_a_review_by_keyboard_is_kept(page: Any, url: str, dataset: LabelDataset) -> None:
    page.get_by_label("leaf").check()
    expect(page.locator("#count")).to_have_text("4 of 8 images")
    expect(page.locator(".cell .name").first).to_have_text(NAMES[1])
    page.locator("#grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text(NAMES[POSED])
    expect(page.locator("#place")).to_have_text("2 of 4")
    page.keyboard.press("]")
    page.keyboard.press("r")
    page.keyboard.press("n")
    page.keyboard.type("not a leaf & <b>no</b> ring")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    expect(page.locator("#progress")).to_contain_text("1 flagged")
    page.reload()
    said = page.locator("#reviews li")
    expect(said).to_contain_text(["⚑ flag the image, by anna", "✗ reject"])
    expect(said.nth(1)).to_contain_text("not a leaf & <b>no</b> ring")
    page.keyboard.press("g")
    expect(page.locator(".cell .mark", has_text="flag")).to_have_count(1)
    assert "category=5" in page.url
    connection = connect(open_dataset(dataset.url))
    written = connection.execute("SELECT annotation_id, verdict FROM verdicts WHERE reviewer = 'anna' ORDER BY verdict")
    assert written.fetchall() == [(None, "flag"), (POSED * 65_536, "reject")]
    connection.close()


def test_a_mask_is_where_it_is(page: Any, url: str) -> None:
    open_image(page, url, POSED)
    masks = [coco_mask.decode(rle.encode(mask).to_coco()).astype(bool) for mask in (ring(0), noise())]
    assert np.array_equal(painted(page), 255 * (masks[0] | masks[1]))
    page.keyboard.press("]")
    page.keyboard.press("s")
    for mask in masks:
        assert np.array_equal(painted(page), 255 * mask)
        page.keyboard.press("]")


def test_layers_categories_and_scores_are_shown_as_asked(page: Any, url: str) -> None:
    open_image(page, url, POSED)
    both = painted(page)
    leaf = page.locator("#shown button", has_text="leaf")
    leaf.click()
    assert np.array_equal(painted(page), 255 * ring(0))
    leaf.click(modifiers=["Shift"])
    assert np.array_equal(painted(page), 255 * noise())
    leaf.click(modifiers=["Shift"])
    assert np.array_equal(painted(page), both)
    page.locator("#threshold").fill("0.85")
    assert np.array_equal(painted(page), 255 * ring(0))
    page.get_by_role("button", name="Masks", exact=True).click()
    assert not painted(page).any()
    page.get_by_role("button", name="Panoptic", exact=True).click()
    assert (painted(page) == 255).all()


def test_a_click_selects_the_smallest_object_there(page: Any, url: str) -> None:
    open_image(page, url, POSED)
    painted(page)
    surface = page.locator(".surface").bounding_box()
    scale = min(surface["width"] / WIDTH, surface["height"] / HEIGHT)
    x, y = np.argwhere(ring(0) & noise())[0][::-1] + 0.5
    left, top = (surface["width"] - WIDTH * scale) / 2, (surface["height"] - HEIGHT * scale) / 2
    page.mouse.click(surface["x"] + left + x * scale, surface["y"] + top + y * scale)
    expect(page.locator("#target")).to_have_text(f"On {EVIL_CATEGORY} (object {POSED * 65_536})")


def test_beside_the_truth_and_another_job(page: Any, url: str) -> None:
    open_image(page, url, POSED)
    page.keyboard.press("t")
    page.keyboard.press("o")
    assert np.array_equal(painted(page, pane=1), 255 * ~ring(2))
    assert np.array_equal(painted(page, pane=2), painted(page))
    page.locator(".surface").nth(1).hover()
    page.mouse.wheel(0, -400)
    painted(page)
    places = page.locator(".sheet").evaluate_all("sheets => sheets.map(sheet => sheet.style.transform)")
    assert len(set(places)) == 1


def test_what_others_said_is_shown_and_stays(page: Any, url: str) -> None:
    open_image(page, url, 5)
    page.keyboard.press("f")
    said = page.locator("#reviews li")
    expect(said).to_have_text(["⚑ flag the image, by anna", "✓ accept the image, by <b>bo</b>: fine"])
    page.keyboard.press("u")
    expect(said).to_have_text(["✓ accept the image, by <b>bo</b>: fine"])


def test_names_stay_text(page: Any, url: str) -> None:
    expect(page.locator("#categories")).to_contain_text(EVIL_CATEGORY)
    expect(page.locator(".cell .name").first).to_have_text(EVIL_FILE)
    page.locator(".cell").first.click()
    expect(page.locator("#title")).to_have_text(EVIL_FILE)
    open_image(page, url, 1)
    key = page.request.get(f"{url}api/job").json()["key"]
    assert page.locator(f"img[src]:not([src*='key={key}'])").count() == 0  # at this address may have been another job
    assert page.locator("script:not([src])").count() == 0
    assert page.locator("img[src]:not([src^='api/'])").count() == 0


def test_a_failed_image_says_why(page: Any, url: str) -> None:
    expect(page.locator(".cell", has_text=NAMES[FAILED])).to_contain_text("truncated")
    open_image(page, url, FAILED)
    expect(page.locator(".words")).to_have_text("failed: truncated")


def test_the_address_keeps_the_filter(page: Any) -> None:
    page.locator("[name=min_objects]").fill("2")
    page.locator("[name=text]").fill("image-2")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1 of 8 images")
    page.reload()
    expect(page.locator("#count")).to_have_text("1 of 8 images")
    expect(page.locator("[name=text]")).to_have_value("image-2")
    page.go_back()
    expect(page.locator("#count")).to_have_text("2 of 8 images")
    expect(page.locator("[name=text]")).to_have_value("")


def test_wrong_sql_is_told_below_it(page: Any) -> None:
    page.expected_complaints = ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    page.locator("[name=sql]").fill("no_such_column = 1")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#sql-error")).to_contain_text("no_such_column")


def test_a_verdict_that_is_not_written_is_not_shown(page: Any, url: str) -> None:
    open_image(page, url, 7)
    page.route("**/api/verdicts", lambda route: route.fulfill(status=400, json={"error": "the disk is full"}))
    page.keyboard.press("a")
    expect(page.locator("#notices")).to_contain_text("Not saved: the disk is full")
    expect(page.locator("#reviews li")).to_have_count(0)
    page.unroute("**/api/verdicts")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#reviews li")).to_contain_text("accept")
    page.expected_complaints = ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]


class Fake:
    """Answers for a job of many images: `verdict` none, until one was posted."""

    def __init__(self, page: Any, count: int) -> None:
        self.count, self.judged = count, set[int]()
        for path in ("**/thumbnail?*", "**/file?*"):
            page.route(path, lambda route: route.fulfill(body=picture(8, 6), content_type="image/png"))
        page.route("**/api/images?*", self.list)
        page.route("**/api/images/*", lambda route: route.fulfill(json=self.labels(route.request.url.split("/")[-1])))
        page.route("**/api/verdicts", self.judge)

    def row(self, image_id: int) -> Row:
        facts = {"image_id": image_id, "key": f"{image_id}.jpg", "width": 8, "height": 6, "status": "ok"}
        return facts | {"error_code": None, "num_annotations": 0, "highest": None, "verdict": None}

    def labels(self, image_id: str) -> dict[str, Any]:
        nothing: dict[str, Any] = {name: [] for name in ("annotations", "segments", "proposals", "labels", "reviews")}
        return nothing | {"image": self.row(int(image_id)), "truth": None, "other": None}

    def list(self, route: Any) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        ids = [one for one in range(self.count) if one not in self.judged] if "verdict" in query else range(self.count)
        images = [self.row(image_id) for image_id in ids[offset : offset + limit]]
        route.fulfill(json={"total": len(ids), "images": images})

    def judge(self, route: Any) -> None:
        self.judged |= {review["image_id"] for review in route.request.post_data_json["reviews"]}
        route.fulfill(json={})


def test_a_million_images_are_few_nodes(page: Any) -> None:
    Fake(page, MILLION)
    page.reload()
    expect(page.locator("#count")).to_contain_text("1,000,000 of")
    grid = page.locator("#grid")
    grid.focus()
    for key, name in (("End", f"{MILLION - 1}.jpg"), ("Home", "0.jpg"), ("PageDown", "20.jpg")):
        page.keyboard.press(key)
        expect(page.locator(".cell.active")).to_contain_text(name)
    grid.evaluate("grid => { grid.scrollTop = (grid.scrollHeight - grid.clientHeight) / 2 }")
    expect(page.locator(".cell .name", has_text="500000.jpg")).to_be_in_viewport()
    grid.hover()
    page.mouse.wheel(0, 400)  # goes as far as in a short list
    for name in ("500000.jpg", "500015.jpg"):
        expect(page.locator(".cell .name", has_text=name)).to_be_in_viewport()
    assert page.evaluate("document.querySelectorAll('*').length") < 1_000


def test_going_on_misses_no_image_that_a_verdict_takes_out_of_the_list(page: Any, url: str) -> None:
    fake = Fake(page, 250)
    page.goto(f"{url}?verdict=none#image=97")
    page.locator("#advance").check()
    for image_id in range(97, 103):
        expect(page.locator("#title")).to_have_text(f"{image_id}.jpg")
        expect(page.locator("#place")).to_have_text(f"{image_id + 1} of 250")
        page.keyboard.press("a")
    expect(page.locator("#title")).to_have_text("103.jpg")
    assert fake.judged == set(range(97, 103))
