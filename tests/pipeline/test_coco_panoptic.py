"""COCO's panoptic format, read back by a reader and an evaluator written from its description and from the paper."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import fsspec
import numpy as np
import pytest
from jobs import CATEGORIES, FAILED, HEIGHT, WIDTH, ring, write_images, write_job
from labels import Row, segment_row, write_labels
from PIL import Image

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.schemas.categories import COCO_PANOPTIC
from prelabel.schemas.errors import JobError, UserError

Panoptic = dict[str, tuple[np.ndarray, dict[int, Row]]]
"""By the image's file_name: the id of each pixel, int (H, W), and the segments by id."""


def export(labels: LabelDataset, to: Path | str) -> Row:
    exporter_of("coco-panoptic").write(labels, str(to))
    return json.loads(Path(to).read_bytes())


def read(document: Path, folder: Path) -> Panoptic:
    """Fails where the document and the PNGs do not say the same."""
    content = json.loads(document.read_bytes())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found = {}
    for annotation in content["annotations"]:
        with Image.open(folder / annotation["file_name"]) as png:
            assert (png.format, png.mode) == ("PNG", "RGB")
            red, green, blue = np.asarray(png).astype(int).transpose(2, 0, 1)
        ids = red + 256 * green + 256**2 * blue
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids).tolist()) - {0} == segments.keys()
        for segment_id, segment in segments.items():
            ys, xs = np.nonzero(ids == segment_id)
            assert segment["area"] == len(ys)
            assert segment["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert all(type(side) is int for side in segment["bbox"])
        found[names[annotation["image_id"]]] = (ids, segments)
    return found


def panoptic_quality(truth: Panoptic, found: Panoptic) -> float:
    """Kirillov et al. 2019: of each category the IoU of matches / (TP + FP / 2 + FN / 2), and their mean.

    Void pixels of the truth belong to no union; a segment mostly on void, or on a crowd of its category, is no error.
    """
    overlap: dict[int, float] = defaultdict(float)
    errors: dict[int, float] = defaultdict(float)
    matches: dict[int, int] = defaultdict(int)
    for name, (ids, segments) in truth.items():
        our_ids, ours = found[name]
        void = ids == 0
        for segment_id, segment in segments.items():
            mask, category = ids == segment_id, segment["category_id"]
            if segment["iscrowd"]:
                continue
            same = [our_ids == one for one in ours if ours[one]["category_id"] == category]
            best = max(((mask & one).sum() / (mask | (one & ~void)).sum() for one in same), default=0)
            if best > 0.5:
                matches[category] += 1
                overlap[category] += best
            else:
                errors[category] += 0.5
        for our_id, our in ours.items():
            mask, category = our_ids == our_id, our["category_id"]
            alike = {key for key, one in segments.items() if one["category_id"] == category}
            crowds = [key for key in alike if segments[key]["iscrowd"]]
            expected = [ids == key for key in alike - set(crowds)]
            matched = any((mask & one).sum() / (one | (mask & ~void)).sum() > 0.5 for one in expected)
            if not matched and (mask & (void | np.isin(ids, crowds))).sum() <= mask.sum() / 2:
                errors[category] += 0.5
    return float(np.mean([overlap[one] / (matches[one] + errors[one]) for one in {*matches, *errors}]))


def test_real_truth_comes_back(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "coco_panoptic_sample"
    truth = read(folder / "panoptic_examples.json", folder / "panoptic")

    def rows(image: Row) -> dict[str, list[Row]]:
        ids, segments = truth[os.path.basename(image["key"])]
        image |= {"height": ids.shape[0], "width": ids.shape[1]}
        return {
            "segments": [
                segment_row(image["image_id"], number, COCO_PANOPTIC[segment["category_id"]], ids == segment_id)
                for number, (segment_id, segment) in enumerate(segments.items(), start=1)
            ]
        }

    labels = write_labels(f"{folder}/images", f"{tmp_path}/labels", rows, ["fuse_panoptic"], COCO_PANOPTIC)
    document = export(labels, tmp_path / "panoptic.json")
    assert document["categories"] == COCO_PANOPTIC.to_coco()
    found = read(tmp_path / "panoptic.json", tmp_path / "panoptic")
    assert panoptic_quality(truth, found) == 1
    for name, (ids, segments) in truth.items():
        our_ids, ours = found[name]
        for number, (segment_id, segment) in enumerate(segments.items(), start=1):
            np.testing.assert_array_equal(our_ids == number, ids == segment_id)
            assert {key: ours[number][key] for key in ("area", "bbox", "category_id")} == {
                key: segment[key] for key in ("area", "bbox", "category_id")
            }
        np.testing.assert_array_equal(our_ids == 0, ids == 0)
    del found[name][1][1]
    assert panoptic_quality(truth, found) < 1


def some_segments(image: Row) -> dict[str, list[Row]]:
    """Ids that take one, two and three bytes; a semantic segment that does not belong; none of every third image."""
    ball, leaf = CATEGORIES
    image_id = image["image_id"]
    if image_id == FAILED:
        return {"segments": []}
    below = np.zeros((HEIGHT, WIDTH), bool)
    below[20:] = True
    parts = [segment_row(image_id, 1, leaf, ~below, "semantic")]
    if image_id % 3:
        parts += [segment_row(image_id, 259, ball, ring(0)), segment_row(image_id, 66_051, leaf, below)]
        parts += [segment_row(image_id, 7, leaf, ring(0)[::-1] & ~ring(0) & ~below)]
    return {"segments": parts}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("job")
    return write_labels(write_images(f"{folder}/images"), f"{folder}/labels", some_segments, ["fuse_panoptic"])


def test_every_labeled_image_has_a_png_named_by_its_id(labels: LabelDataset, tmp_path: Path) -> None:
    document = export(labels, tmp_path / "new" / "panoptic.json")
    keys = dict(enumerate(labels.table("images").to_table()["key"].to_pylist()))
    del keys[FAILED]
    assert {image["id"]: image["file_name"] for image in document["images"]} == keys
    assert {one["image_id"]: one["file_name"] for one in document["annotations"]} == {
        image_id: f"{image_id:012d}.png" for image_id in keys
    }
    found = read(tmp_path / "new" / "panoptic.json", tmp_path / "new" / "panoptic")
    assert [set(found[key][1]) for key in keys.values()] == [
        {7, 259, 66_051} if image_id % 3 else set() for image_id in keys
    ]
    np.testing.assert_array_equal(found[keys[1]][0] == 259, ring(0))
    pngs = {path.name for path in (tmp_path / "new" / "panoptic").iterdir()}
    assert pngs == {one["file_name"] for one in document["annotations"]}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"panoptic", "panoptic.json"}


def test_no_key_leads_out_of_the_folder(tmp_path: Path) -> None:
    hostile = ["../up.png", "/etc/root.png", "a/same.png", "b/same.png", "new\nline.png", "..", "\u202e.png"]

    def rows(image: Row) -> dict[str, list[Row]]:
        image["key"] = hostile[image["image_id"]]
        return some_segments(image)

    labels = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", rows, ["fuse_panoptic"])
    before = set(tmp_path.iterdir())
    document = export(labels, tmp_path / "panoptic.json")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "panoptic", tmp_path / "panoptic.json"}
    assert [image["file_name"] for image in document["images"]] == [
        key for image_id, key in enumerate(hostile) if image_id != FAILED
    ]
    assert len(list((tmp_path / "panoptic").iterdir())) == len(hostile) - 1


def test_folder_that_holds_something_is_left_alone(labels: LabelDataset, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(JobError, match=f"there is something in {tmp_path}/photos, where files would go: remove it"):
        export(labels, tmp_path / "photos.json")
    assert set(tmp_path.rglob("*")) == {tmp_path / "photos", tmp_path / "photos" / "mine.jpg"}


def test_empty_folder_is_filled(labels: LabelDataset, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "panoptic").symlink_to("elsewhere")
    export(labels, tmp_path / "panoptic.json")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 6


def test_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    labels = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", some_segments, ["fuse_panoptic"])
    (tmp_path / "labels" / "segments" / "part-00000001.parquet").unlink()
    with pytest.raises(JobError, match="part-00000001"):
        export(labels, tmp_path / "new" / "panoptic.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_into_a_bucket(labels: LabelDataset, tmp_path: Path) -> None:
    export(labels, tmp_path / "panoptic.json")
    fs = fsspec.filesystem("memory")
    exporter_of("coco-panoptic").write(labels, "memory://bucket/panoptic.json")
    try:
        stored = {path.removeprefix("/bucket/"): fs.cat_file(path) for path in fs.find("/bucket")}
        with pytest.raises(JobError, match=r"there is a file memory://bucket/panoptic\.json"):
            exporter_of("coco-panoptic").write(labels, "memory://bucket/panoptic.json")
    finally:
        fs.rm("/bucket", recursive=True)
    local = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert stored == local


def test_what_can_not_be_exported_is_one_line(labels: LabelDataset, tmp_path: Path) -> None:
    for name in ("panoptic", ".json", "panoptic.JSON"):
        with pytest.raises(JobError, match=r"give a name that ends in \.json"):
            export(labels, tmp_path / name)
    objects = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels")
    with pytest.raises(UserError, match="no panoptic segments: label with --task fuse_panoptic"):
        export(objects, tmp_path / "panoptic.json")
