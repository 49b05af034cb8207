"""Prints what datumaro, or supervision, finds in an export, as JSON: run by the interpreter that has the tool.

    python read_with_datumaro.py FORMAT FOLDER

FORMAT is datumaro's name of a format, or `supervision-voc`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

OPTIONS = {"voc": {"coordinate_mode": "voc-one-based"}}


def with_datumaro(kind: str, folder: str) -> dict[str, Any]:
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    dataset = Dataset.import_from(folder, kind, **OPTIONS.get(kind, {}))
    labels = dataset.categories()[AnnotationType.label]
    names = [label.name for label in labels]
    items = {
        item.id: {
            "size": list(item.media.size),
            "pixels": list(item.media.data.shape[:2]),
            "annotations": [annotation_of(one, names) for one in item.annotations],
        }
        for item in dataset
    }
    return {"labels": names, "items": items}


def annotation_of(one: Any, names: list[str]) -> dict[str, Any]:
    found = {
        "type": one.type.name,
        "label": None if one.label is None else names[one.label],
        "score": one.attributes.get("score"),
        "group": one.group,
        "z_order": getattr(one, "z_order", 0),
    }
    if one.type.name == "mask":
        mask = np.asfortranarray(one.image, np.uint8)
        found["mask"] = {"size": list(mask.shape), "counts": coco_mask.encode(mask)["counts"].decode()}
    elif one.type.name != "label":
        found["points"] = [float(value) for value in one.points]
    return found


def with_supervision(folder: str) -> dict[str, Any]:
    import supervision

    dataset = supervision.DetectionDataset.from_pascal_voc(f"{folder}/JPEGImages", f"{folder}/Annotations")
    return {
        Path(path).name: [
            {"label": dataset.classes[number], "points": [float(value) for value in corners]}
            for number, corners in zip(found.class_id, found.xyxy, strict=True)
        ]
        for path, _, found in dataset
    }


if __name__ == "__main__":
    read = with_supervision(sys.argv[2]) if sys.argv[1] == "supervision-voc" else with_datumaro(*sys.argv[1:])
    print(json.dumps(read))
