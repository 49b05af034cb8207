"""The demo, the whole way on a few scenes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from prelabel.pipeline import graph, open_dataset
from prelabel.pipeline.demo import PICTURES, run_demo
from prelabel.schemas.errors import JobError

SCENES = 24


@pytest.fixture
def _ray() -> Iterator[None]:
    os.environ.setdefault("RAY_worker_niceness", "0")
    with graph.cluster(None):
        yield


@pytest.mark.usefixtures("_ray")
def test_the_demo_labels_measures_and_draws(tmp_path: Path) -> None:
    result = run_demo(str(tmp_path), SCENES, seed=7, progress=id)
    dataset = open_dataset(str(tmp_path / "labels"))
    assert dataset.is_complete
    assert dataset.table("images").count_rows() == SCENES
    document = COCO(str(tmp_path / "labels.json"))
    assert len(document.imgs) == SCENES
    assert len(document.anns) == dataset.table("annotations").count_rows()
    for index in range(PICTURES):
        scene = Image.open(tmp_path / f"scenes/images/scene_{index:05d}.jpg")
        for picture in (f"scene_{index:05d}.png", f"scene_{index:05d}_panoptic.png"):
            assert Image.open(tmp_path / "pictures" / picture).size == (2 * scene.width, 2 * scene.height)
    assert result.figures["masks"]["AP"] >= 0.60
    assert result.figures["boxes"]["AP"] >= 0.60
    assert result.figures["panoptic"]["PQ"] >= 0.60
    assert {path.name for path in tmp_path.iterdir()} >= {"panoptic.json", "panoptic", "report.html"}
    assert any(str(tmp_path / "report.html") in line for line in result.lines())
    assert any(f"AP {result.figures['masks']['AP']:.3f}" in line for line in result.lines())
    with pytest.raises(JobError, match="is not empty"):
        run_demo(str(tmp_path), SCENES, seed=7, progress=id)


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_place_that_takes_no_folder_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"can't write to .*file") as caught:
        run_demo(f"{tmp_path}/{name}", 1, seed=7, progress=id)
    assert "\n" not in str(caught.value)
