"""Models for the tests' jobs, found by `python:tiny_models:NAME`: quick, exact, and with faults to order."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prelabel.operators.base import ImageLabels, Instances, Model, Prediction, Proposals, Segments, Task
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


class Grounds(Model):
    """Tells light ground from dark, pixel by pixel and on the whole."""

    name = "python:tiny_models:grounds"
    tasks = frozenset({Task.SEGMENT_SEMANTIC, Task.CLASSIFY})
    categories = CategorySet([Category(1, "dark", isthing=False), Category(2, "light", isthing=False)])
    digest = "grounds"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1

    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        return [self._look(image.numpy().mean(0), tasks) for image in images]

    def _look(self, brightness: np.ndarray, tasks: frozenset[Task]) -> Prediction:
        rles = [encode(brightness <= 127), encode(brightness > 127)]
        light = float((brightness > 127).mean())
        best = np.argsort([light - 1, -light], kind="stable")
        scores = np.array([1 - light, light], np.float32)[best]
        return Prediction(
            semantic=Segments(np.array([1, 2], np.int32), [MaskRuns(rle, area(rle), bbox(rle)) for rle in rles])
            if Task.SEGMENT_SEMANTIC in tasks
            else None,
            labels=ImageLabels((best + 1).astype(np.int32), scores) if Task.CLASSIFY in tasks else None,
        )


class Halves(Model):
    """Proposes an image's left and right half."""

    name = "python:tiny_models:halves"
    tasks = frozenset({Task.PROPOSE})
    categories = CategorySet([])
    digest = "halves"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return 0, 0

    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        return [Prediction(proposals=self._halves(*image.shape[1:])) for image in images]

    def _halves(self, height: int, width: int) -> Proposals:
        boxes = np.array([[0, 0, width // 2, height], [width // 2, 0, width, height]], np.float32)
        return Proposals(boxes, np.array([0.9, 0.8], np.float32))


class Lights(Model):
    """Finds a light in each region whose pixels are bright on average."""

    name = "python:tiny_models:lights"
    tasks = frozenset({Task.DETECT})
    categories = CategorySet([Category(1, "light")])
    digest = "lights"
    takes_regions = True

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return 0, 0

    def predict(
        self, images: Sequence[torch.Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        assert regions is not None
        return [Prediction(self._look(image, one.boxes)) for image, one in zip(images, regions, strict=True)]

    def _look(self, image: torch.Tensor, boxes: np.ndarray) -> Instances:
        means = np.array([image[:, y0:y1, x0:x1].float().mean() / 255 for x0, y0, x1, y1 in boxes.astype(int)])
        order = np.argsort(-means, kind="stable")
        return Instances(boxes[order], means[order].astype(np.float32), np.ones(len(boxes), np.int32))


def channels() -> Model:
    return Channels()


def grounds() -> Model:
    return Grounds()


def halves() -> Model:
    return Halves()


def lights() -> Model:
    return Lights()
