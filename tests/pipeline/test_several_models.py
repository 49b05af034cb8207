"""Jobs of several models: in one pool or in a pool each, they share images, categories and regions."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from prelabel.pipeline import Job, graph, open_dataset, run, status
from prelabel.schemas.errors import ModelError
from prelabel.schemas.tables import TABLES

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    os.environ.setdefault("RAY_worker_niceness", "0")
    with graph.cluster(None):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven pictures of coarse noise, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(7):
        noise = np.random.default_rng(number).integers(0, 256, (3 + number % 2, 4, 3), np.uint8)
        Image.fromarray(noise.repeat(4, 0).repeat(4, 1)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    return str(folder)


def job(source: str, output: Path, *models: str, **options: Any) -> Job:
    names = [f"python:tiny_models:{name}" for name in models]
    return Job.of(source, output=str(output), model=names, unit_images=3, python_path=str(HERE), **options)


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    return open_dataset(str(output)).table(table).to_table().to_pylist()


def files_of(output: Path) -> dict[str, str]:
    paths = [path for table in TABLES for path in (output / table).rglob("*.parquet")]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def everything(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things, grounds, and both in one layer."""
    output = tmp_path_factory.mktemp("everything") / "out"
    summary = run(job(source, output, "channels", "grounds", panoptic_score=0.4, panoptic_stuff_area=20))
    assert summary.exit_code == 0
    assert (summary.labeled, summary.failed_images) == (7, 1)
    assert {"predict python:tiny_models:channels", "predict python:tiny_models:grounds"} < set(summary.timings)
    return output


def test_models_write_what_they_can_and_their_categories_are_one_set(everything: Path) -> None:
    dataset = open_dataset(str(everything))
    assert dataset.record.tasks == ("classify", "detect", "fuse_panoptic", "segment_instances", "segment_semantic")
    assert dataset.record.tables == ("annotations", "images", "segments")
    assert [(one.id, one.name) for one in dataset.categories] == [
        (1, "red"),
        (2, "green"),
        (3, "blue"),
        (4, "dark"),
        (5, "light"),
    ]


def test_rows_of_each_task_agree_with_the_pixels(everything: Path) -> None:
    segments = rows(everything, "segments")
    for image in rows(everything, "images"):
        own = [row for row in segments if row["image_id"] == image["image_id"]]
        if image["status"] == "failed":
            assert image["labels"] is None
            assert not own
            continue
        light = np.asarray(Image.open(image["uri"])).mean(2) > 127
        best, other = image["labels"]
        assert best["score"] == pytest.approx(max(light.mean(), 1 - light.mean()))
        assert {best["category_id"]: best["category"], other["category_id"]: other["category"]} == {
            4: "dark",
            5: "light",
        }
        masks = {row["category"]: coco_mask.decode(row["segmentation"]) for row in own if row["kind"] == "semantic"}
        assert (masks["light"] == light).all()
        assert (masks["dark"] == ~light).all()
        assert len({row["segment_id"] for row in own}) == len(own)


def test_panoptic_segments_are_disjoint_and_know_their_annotation(everything: Path) -> None:
    annotations = {row["annotation_id"]: row for row in rows(everything, "annotations")}
    panoptic = [row for row in rows(everything, "segments") if row["kind"] == "panoptic"]
    covered: dict[int, np.ndarray] = {}
    for row in panoptic:
        mask = coco_mask.decode(row["segmentation"])
        assert (covered.get(row["image_id"], 0) + mask).max() == 1
        covered[row["image_id"]] = covered.get(row["image_id"], 0) + mask
        assert row["isthing"] == (row["annotation_id"] is not None)
        if row["isthing"]:
            annotation = annotations[row["annotation_id"]]
            assert (row["category"], row["score"]) == (annotation["category"], annotation["score"])
            assert (mask <= coco_mask.decode(annotation["segmentation"])).all()
    assert {row["isthing"] for row in panoptic} == {True, False}


def test_pools_of_their_own_change_nothing(source: str, everything: Path, tmp_path: Path) -> None:
    options = {"panoptic_score": 0.4, "panoptic_stuff_area": 20, "pools": "each"}
    summary = run(job(source, tmp_path / "out", "channels", "grounds", **options))
    assert summary.exit_code == 0
    assert set(summary.timings) == set(status(str(everything)).timings)
    assert files_of(tmp_path / "out") == files_of(everything)


@pytest.mark.parametrize("pools", ["shared", "each"])
def test_regions_travel_from_model_to_model(source: str, tmp_path: Path, pools: str) -> None:
    run(job(source, tmp_path / "out", "halves", "lights", keep_proposals=1, pools=pools))
    images = {row["image_id"]: row for row in rows(tmp_path / "out", "images")}
    proposals, found = rows(tmp_path / "out", "proposals"), rows(tmp_path / "out", "annotations")
    assert len(proposals) == 7
    assert {row["bbox"]["x"] for row in proposals} == {0}
    assert len(found) == 14
    for row in found:
        box = {side: int(value) for side, value in row["bbox"].items()}
        pixels = np.asarray(Image.open(images[row["image_id"]]["uri"]))[:, box["x"] : box["x"] + box["width"]]
        assert row["score"] == pytest.approx(pixels.mean() / 255, abs=1e-5)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["lights"], {}, "looks at regions only: put a model that proposes before it; take --model "),
        (["channels"], {"task": ["classify"]}, "can't classify: .* can detect, segment_instances; take --model "),
        (["channels"], {"task": ["fuse_panoptic"]}, "one model that does it, or two that"),
        (["channels", "grounds"], {"task": ["detect"]}, "nothing is asked of python:tiny_models:grounds"),
        (["channels"], {"keep_proposals": 3}, "can't propose"),
    ],
)
def test_what_models_can_not_do_is_said_before_any_work(
    source: str, tmp_path: Path, models: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        run(job(source, tmp_path / "out", *models, **options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
