"""segment_instances: boxes, scores and one run-length mask per object."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa

from prelabel.operators.base import ImageInfo, Model, Operator, Prediction, Task
from prelabel.operators.detect import annotation_rows
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.tables import SEGMENTATION


def segmentation_column(masks: list[MaskRuns], image: ImageInfo) -> pa.StructArray:
    """The masks as structs of (height, width) and COCO's compressed counts."""
    sizes = np.tile(np.array([image.height, image.width], np.int32), len(masks))
    counts = pa.array([mask.rle.counts for mask in masks], pa.string())
    size_column = pa.FixedSizeListArray.from_arrays(pa.array(sizes), type=SEGMENTATION.field("size").type)
    return pa.StructArray.from_arrays([size_column, counts], fields=list(SEGMENTATION))


class SegmentInstances(Operator):
    """One annotation per object, with a box and a mask."""

    task: ClassVar[Task] = Task.SEGMENT_INSTANCES
    table: ClassVar[str] = "annotations"
    includes: ClassVar[frozenset[Task]] = frozenset({Task.DETECT})

    def rows(self, image: ImageInfo, prediction: Prediction, model: Model) -> pa.Table:
        """The image's objects; `area` is the mask's, `bbox` the network's box."""
        found = prediction.instances
        assert found is not None, f"{model.name} was asked for masks and returned no instances"
        assert found.masks is not None, f"{model.name} was asked for masks and returned boxes alone"
        areas = np.array([mask.area for mask in found.masks], np.float64)
        return annotation_rows(image, found, model, areas, segmentation_column(found.masks, image))
