"""A model that dies of some images, hangs on others, or dies while it loads, found by `python:poisonous:NAME`.

An image's upper left pixel says what it does: red 1 ends the process, red 2 never ends.
"""

import os
import time
from collections.abc import Sequence

import torch
from tiny_models import Channels

from prelabel.operators.base import Model, Prediction, Task

DEADLY, ENDLESS = 1, 2


class Poisonous(Channels):
    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        for image in images:
            if int(image[0, 0, 0]) == DEADLY:
                os.abort()
            if int(image[0, 0, 0]) == ENDLESS:
                time.sleep(1_000)
        return super().predict(images, tasks)


def poisonous() -> Model:
    return Poisonous()
