"""Models for the tests' jobs, found by `python:tiny_models:NAME`: quick, exact, and with faults to order."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prelabel.operators.base import Instances, Model, Prediction, Task
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.rle import area, bbox, encode


class Channels(Model):
    """Finds what is bright in each color channel: one object per channel, its mask the pixels over 127."""

    name = "python:tiny_models:channels"
    tasks = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})
    categories = CategorySet([Category(1, "red"), Category(2, "green"), Category(3, "blue")])
    digest = "channels"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        return [Prediction(self._instances(image.numpy())) for image in images]

    def _instances(self, image: np.ndarray) -> Instances:
        scores = np.array([plane.mean() / 255 for plane in image], np.float32)
        found = [channel for channel in np.argsort(-scores, kind="stable") if (image[channel] > 127).any()]
        rles = [encode(image[channel] > 127) for channel in found]
        boxes = np.array([bbox(rle) for rle in rles], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [MaskRuns(rle, area(rle), bbox(rle)) for rle in rles]
        return Instances(boxes, scores[found], np.array(found, np.int32) + 1, masks)


class Faulty(Channels):
    """Fails on images of 5 pixels' width while there is a file "raise", or for once "kill", in the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        if any(image.shape[2] == 5 for image in images):
            if (self.folder / "raise").exists():
                raise RuntimeError("a fault to order")
            if (self.folder / "kill").exists():
                (self.folder / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(images, tasks)


def channels() -> Model:
    return Channels()
