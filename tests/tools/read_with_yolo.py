"""Prints what supervision or Ultralytics finds in a YOLO folder, as JSON: run by the interpreter that has the tool.

python read_with_yolo.py supervision|detect|segment|pose FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def with_supervision(folder: str) -> dict[str, Any]:
    import supervision

    places = f"{folder}/images/train", f"{folder}/labels/train", f"{folder}/data.yaml"
    dataset = supervision.DetectionDataset.from_yolo(*places)
    images = {
        Path(path).name: [
            {"class": int(class_id), "box": box.tolist(), "mask": None if mask is None else mask.astype(int).tolist()}
            for box, mask, _, class_id, _, _ in found
        ]
        for path, _, found in dataset
    }
    return {"names": dataset.classes, "images": images}


def with_ultralytics(folder: str, task: str) -> dict[str, Any]:
    """Its own reading of data.yaml and labels, its own filling of polygons, and what it warns of."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_CONFIG_DIR=tempfile.mkdtemp())
    from ultralytics.data import utils
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.utils import LOGGER

    warnings: list[str] = []
    LOGGER.addFilter(
        lambda entry: warnings.append(entry.getMessage()) or False if entry.levelno > logging.INFO else False
    )
    utils.check_font = lambda *_: None  # it would be fetched
    data = utils.check_det_dataset(f"{folder}/data.yaml")
    dataset = YOLODataset(img_path=data["train"], data=data, task=task, augment=False)
    images = {Path(one["im_file"]).name: ultralytics_objects(one, utils.polygon2mask) for one in dataset.labels}
    return {"names": [*data["names"].values()], "images": images, "warnings": warnings, "flip": data.get("flip_idx")}


def ultralytics_objects(label: dict[str, Any], polygon2mask: Any) -> list[dict[str, Any]]:
    (height, width), found = label["shape"], []
    for number, (class_id, box) in enumerate(zip(label["cls"].ravel(), label["bboxes"], strict=True)):
        x, y, wide, high = (box * [width, height, width, height]).tolist()
        one = {"class": int(class_id), "box": [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]}
        if label["segments"]:
            polygon = (label["segments"][number] * [width, height]).reshape(-1)
            one["mask"] = polygon2mask((height, width), [polygon]).tolist()
        if label["keypoints"] is not None:
            one["keypoints"] = (label["keypoints"][number] * [width, height, 1]).ravel().tolist()
        found.append(one)
    return found


if __name__ == "__main__":
    kind, place = sys.argv[1:]
    out, sys.stdout = sys.stdout, sys.stderr  # tools print as they like
    answer = with_supervision(place) if kind == "supervision" else with_ultralytics(place, kind)
    print(json.dumps(answer), file=out)
