"""FiftyOne imports our folder: labels, scores and boxes of the table, and whole masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import HEIGHT, WIDTH
from unruly import objects_by_image, write_unruly

from prelabel.pipeline.exports import exporter_of

SCRIPT = "read_with_fiftyone.py"
SIZE = (WIDTH, HEIGHT, WIDTH, HEIGHT)


@pytest.mark.parametrize("how", ["importer", "database"])
def test_fiftyone_imports_scores_and_masks(how: str, tmp_path: Path, read_with: Callable[..., Any]) -> None:
    labels = write_unruly(tmp_path)
    exporter_of("fiftyone").write(labels, f"{tmp_path}/fiftyone", images="copy")
    read = read_with("fiftyone", SCRIPT, how, f"{tmp_path}/fiftyone")
    if "no database" in read:
        pytest.skip(f"FiftyOne's database does not start here: {read['no database']}")
    images = labels.table("images").to_table().to_pylist()
    expected = objects_by_image(labels)
    assert sorted(one["image_id"] for one in read.values()) == sorted(expected)
    for path, found in read.items():
        assert Path(path).read_bytes() == Path(images[found["image_id"]]["uri"]).read_bytes()
        rows = expected[found["image_id"]]
        masked = [row for row in rows if row["mask"] is not None and row["mask"].any()]
        for one, row in (
            *zip(found["detections"], rows, strict=True),
            *zip(found["segmentations"], masked, strict=True),
        ):
            assert one["label"] == row["category"]
            assert one["score"] == pytest.approx(row["score"], abs=1e-6)
        for one, row in zip(found["detections"], rows, strict=True):
            if not any(row is one for one in masked):
                np.testing.assert_allclose(np.array(one["box"]) * SIZE, [*row["bbox"].values()], atol=0.01)
        for one, row in zip(found["segmentations"], masked, strict=True):
            np.testing.assert_array_equal(whole(one), row["mask"])


def whole(found: dict[str, Any]) -> np.ndarray:
    """A mask in its image: bool (HEIGHT, WIDTH)."""
    left, top, _, _ = np.array(found["box"]) * SIZE
    mask, part = np.zeros((HEIGHT, WIDTH), bool), np.array(found["mask"], bool)
    mask[round(top) : round(top) + len(part), round(left) : round(left) + len(part[0])] = part
    return mask
