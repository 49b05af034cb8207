"""COCO's list of proposals, measured by pycocotools without categories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import write_images
from labels import POSED, rows_of_everything, write_labels
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prelabel.pipeline.exports import exporter_of
from prelabel.schemas.errors import UserError


def test_pycocotools_measures_the_proposals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_images(f"{tmp_path}/images")
    tasks = ("detect_keypoints", "propose", "segment_instances")
    labels = write_labels(source, f"{tmp_path}/labels", rows_of_everything, tasks, POSED)
    exporter_of("coco").write(labels, f"{tmp_path}/truth.json")
    written = exporter_of("coco-proposals").write(labels, f"{tmp_path}/proposals.json")
    proposals = labels.table("proposals").to_table().to_pylist()
    assert (written.images, written.annotations) == (6, len(proposals))
    assert [one["image_id"] for one in json.loads((tmp_path / "proposals.json").read_bytes())] == [
        row["image_id"] for row in proposals
    ]
    truth = COCO(f"{tmp_path}/truth.json")
    evaluation = COCOeval(truth, truth.loadRes(f"{tmp_path}/proposals.json"), "bbox")
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[[0, 8]] == pytest.approx(1)  # each object was proposed, at its very place


def test_labels_without_proposals_are_one_line(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images", 1)
    labels = write_labels(source, f"{tmp_path}/labels", lambda _: {"annotations": []}, ["detect"])
    with pytest.raises(UserError, match="has no proposals"):
        exporter_of("coco-proposals").write(labels, f"{tmp_path}/proposals.json")
