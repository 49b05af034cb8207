"""regions: boxes that may hold an object, proposed without a network, for models that look at regions only.

`selective_search` merges similar neighbors, of ever larger parts of the image, and proposes the box of each part;
`sliding_windows` proposes the same boxes for all images of one size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prelabel.operators.base import Model, Prediction, Proposals, Task
from prelabel.operators.models import Family, ModelSpec, Offer, unknown_model
from prelabel.operators.threads import map_ahead
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import ModelError

MOST = 2000
"""Regions per image, as many as R-CNN looks at."""
SCALES = (1.0, 1 / 2, 1 / 4, 1 / 8)
"""Sides of square windows, as fractions of the geometric mean of the image's sides."""
RATIOS = (0.5, 1.0, 2.0)
"""Height / width of windows of one area."""
STRIDE = 0.5
"""Distance between windows, as a fraction of their side."""

_PER_AXIS = 256  # windows beside one another, in strips
_SEARCHED_PIXELS = 640 * 480
_SEARCHED_SIDE = 2000  # the time that a search takes grows with the square of the longer side


class RegionsFamily(Family):
    """`regions:selective_search` and `regions:sliding_windows`; neither has weights."""

    def offers(self) -> list[Offer]:
        """The two."""
        return [
            Offer("selective_search", ("propose",), "none", extra="selective-search"),
            Offer("sliding_windows", ("propose",), "none"),
        ]

    def load(self, spec: ModelSpec) -> Model:
        """The model, after a look at whether OpenCV has what it takes."""
        if spec.rest not in self.names():
            raise unknown_model(spec.name)
        if spec.weights is not None:
            raise ModelError(f"{spec.name} has no weights: leave --weights out")
        if spec.categories is not None:
            raise ModelError(f"{spec.name} finds no categories: leave --categories out, or say whose they are")
        if spec.rest == "sliding_windows":
            return RegionsModel(spec.name, sliding_windows)
        _segmentation()
        return RegionsModel(spec.name, selective_search)


class RegionsModel(Model):
    """Proposes what a search finds in each image, the first best: scores fall from 1 in equal steps, and say no more.

    There are no weights: the digest is of the name and a version of this code.
    """

    tasks = frozenset({Task.PROPOSE})
    categories = CategorySet(())

    def __init__(self, name: str, search: Callable[[Tensor], np.ndarray]) -> None:
        """Takes the search: a uint8 (3, H, W) image in, float32 (N, 4) x0 y0 x1 y1 out, in pixels; on many threads."""
        self.name, self.search = name, search
        self.digest = hashlib.sha256(f"{name} 1".encode()).hexdigest()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(0, 0): all images may share a batch, for none sees another."""
        return 0, 0

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Proposals alone, see `Model.predict`."""
        threads = torch.get_num_threads()
        found = map_ahead(self.search, images, threads, ahead=threads)
        return [Prediction(proposals=Proposals(boxes, _falling(len(boxes)))) for boxes in found]


def _falling(count: int) -> np.ndarray:
    return np.linspace(1, 0, count, endpoint=False, dtype=np.float32)


def selective_search(image: Tensor) -> np.ndarray:
    """Selective search in its fast mode: two color spaces, three initial segmentations, two measures of similarity.

    J.R.R. Uijlings et al., Selective Search for Object Recognition, IJCV 2013, as OpenCV has it. As R-CNN does, it
    looks at a small image: larger ones are shrunk to 640 x 480 pixels' area, and to 2000 pixels on the longer side.

    Args:
        image: uint8 (3, H, W), upright RGB

    Returns:
        float32 (N, 4), x0 y0 x1 y1 in pixels of the image, no two the same, at most MOST, larger ones rather first
    """
    import cv2

    height, width = image.shape[1:]
    scale = min(1, math.sqrt(_SEARCHED_PIXELS / (height * width)), _SEARCHED_SIDE / max(height, width))
    small = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    pixels = pixels if scale == 1 else cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    search = _segmentation().createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(pixels[:, :, ::-1]))
    search.switchToSelectiveSearchFast()
    boxes = np.asarray(search.process(), np.float64).reshape(-1, 4)  # x y width height, each once, in random order
    boxes[:, 2:] += boxes[:, :2]
    grown = np.tile([width / small[0], height / small[1]], 2)
    return _shuffled(boxes * grown)[:MOST].astype(np.float32)


def _segmentation() -> Any:
    """OpenCV's module. Raises ModuleNotFoundError without OpenCV, ModelError where that lacks opencv-contrib's part."""
    import cv2

    if not hasattr(cv2, "ximgproc"):
        raise ModelError(
            f"this OpenCV ({cv2.__version__}) lacks selective search: pip uninstall it, then pip install "
            "'prelabel[selective-search]'"
        )
    return cv2.ximgproc.segmentation


def _shuffled(boxes: np.ndarray) -> np.ndarray:
    """The boxes ordered by rank times a random number, where the largest box has rank 1.

    Uijlings et al. rank a box by its place in the hierarchy of merges, from the whole image down, and draw the number
    so that no kind of box comes last. OpenCV's order depends on a random state of the whole process, and it doesn't
    give the hierarchy away; hence the area, and the same numbers for each image.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest_first = boxes[np.lexsort((*boxes.T, -areas))]
    random = np.random.default_rng(0).random(len(boxes))
    return largest_first[np.argsort(random * np.arange(1, len(boxes) + 1), kind="stable")]


def sliding_windows(image: Tensor) -> np.ndarray:
    """Windows of all SCALES and RATIOS, evenly spaced from border to border, at most STRIDE of a side apart.

    What does not fit into the image is as long as that; along a side of more than 256 windows they are further apart.

    Returns:
        float32 (N, 4), x0 y0 x1 y1 in pixels of the image, no two the same, one scale after the other
    """
    height, width = image.shape[1:]
    mean = math.sqrt(height * width)
    windows = [
        _windows(height, width, mean * scale * math.sqrt(ratio), mean * scale / math.sqrt(ratio))
        for scale in SCALES
        for ratio in RATIOS
    ]
    boxes = np.concatenate(windows)
    first = np.unique(boxes, axis=0, return_index=True)[1]
    return boxes[np.sort(first)]


def _windows(height: int, width: int, window_height: float, window_width: float) -> np.ndarray:
    y0, y1 = _spread(height, window_height)
    x0, x1 = _spread(width, window_width)
    return np.stack(np.broadcast_arrays(x0, y0[:, None], x1, y1[:, None]), -1).reshape(-1, 4).astype(np.float32)


def _spread(length: int, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Where windows of at least a pixel begin and end along a side."""
    window = min(max(window, 1), length)
    count = min(1 + math.ceil((length - window) / (window * STRIDE)), _PER_AXIS)
    starts = np.linspace(0, length - window, count)
    return starts, starts + window
