"""Prints what FiftyOne finds in a COCODetectionDataset, as JSON: run by the interpreter that has FiftyOne.

    python read_with_fiftyone.py importer|database FOLDER

`importer` is the importer by itself; `database` imports a dataset, for which the MongoDB of FiftyOne must start.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

KINDS = ["detections", "segmentations"]


def with_importer(folder: str) -> dict[str, Any]:
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    importer = COCODetectionDatasetImporter(dataset_dir=folder, label_types=KINDS, include_id=True)
    with importer:
        return {path: found_in(label) for path, _, label in importer}


def with_database(folder: str) -> dict[str, Any]:
    os.environ["FIFTYONE_DATABASE_DIR"] = tempfile.mkdtemp()
    import fiftyone

    try:
        dataset = fiftyone.Dataset()
    except Exception as error:  # noqa: BLE001 (whatever keeps its database from starting)
        return {"no database": f"{type(error).__name__}: {error}".splitlines()[0]}
    fields = {name: name for name in (*KINDS, "coco_id")}
    options = {"label_types": KINDS, "include_id": True, "label_field": fields}
    dataset.add_dir(folder, fiftyone.types.COCODetectionDataset, **options)
    return {sample.filepath: found_in({name: sample[name] for name in fields}) for sample in dataset}


def found_in(label: dict[str, Any]) -> dict[str, Any]:
    """All objects, and those with a mask once more."""
    found: dict[str, Any] = {"image_id": label["coco_id"]}
    for kind in KINDS:
        objects = label.get(kind)
        found[kind] = [
            {"label": one.label, "score": one.confidence, "box": one.bounding_box, "mask": pixels_of(one)}
            for one in (objects.detections if objects else [])
        ]
    return found


def pixels_of(one: Any) -> list[list[int]] | None:
    return None if one.mask is None else one.mask.astype(int).tolist()


if __name__ == "__main__":
    os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
    how, place = sys.argv[1:]
    out, sys.stdout = sys.stdout, sys.stderr  # it prints as it likes
    print(json.dumps(with_importer(place) if how == "importer" else with_database(place)), file=out)
