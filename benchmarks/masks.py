"""Masks as runs against the stock way: torchvision's paste over 0.5 and pycocotools' encode, one encode a segment.

    PYTHONPATH=benchmarks python benchmarks/masks.py [--quick]

Each way has a process of its own, so that its peak of memory is its own; the two are measured in turn. The first call,
which reads what numba has compiled, is told apart. 10,000 masks of random shapes on images of random sizes are compared
first, string by string. The stock way keeps two float masks of the image's size per object: the largest images get ten
objects, not a hundred.

Then, for light Mask R-CNN, which is the hard case: what share of its forward pass the masks are, with 20 objects an
image of a network that workload.py has settled.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import workload
from measure import REPEATS, forget_peak, in_turn, peak_memory, print_table, ratios, seconds, spread
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from prelabel.operators import detector
from prelabel.operators.base import Task
from prelabel.operators.label_maps import label_runs
from prelabel.operators.masks import paste_runs
from prelabel.operators.models import load_model

CASES = [(16, 16, 3), (32, 48, 10), (64, 64, 20), (480, 640, 100), (1080, 1920, 100), (4000, 6000, 10)]
"""Height, width, and masks."""
MAPS = [(480, 640, 60), (1080, 1920, 60), (4000, 6000, 60)]
RANDOM = 10_000
LEAST = 0.2
"""Seconds of a measurement."""
Masks = list[tuple[str, int]]
"""COCO's strings, and areas."""


def objects(height: int, width: int, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Soft blobs with noisy edges; some reach beyond the borders.

    Boxes are as wide and high as those of COCO's objects: as many from 1/80 to 1/20 of the image as from there to 1/5,
    and 5/8 at most, which gives widths of 57 (median) and 100 pixels (mean) at 480 x 640; COCO's are 54 and 104.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    radius = rng.uniform(0, 2, (number, 1, 1)) if seed else rng.uniform(0.4, 1, (number, 1, 1))
    blobs = 1 / (1 + np.exp(8 * (x**2 + y**2 - radius))) + rng.normal(0, 0.03, (number, 28, 28))
    center = rng.random((number, 2)) * (width, height)
    half = (1 / 80 * 50 ** rng.random((number, 1))) * rng.uniform(0.8, 1.25, (number, 2)) * (width / 2, height / 2)
    half = half.clip(min(4, height / 4))
    boxes = np.concatenate([center - half, center + half], axis=1).clip(0, (width, height) * 2)
    return blobs.clip(0, 1).astype(np.float32), boxes.astype(np.float32)


def label_map(height: int, width: int, number: int) -> np.ndarray:
    """uint8: each 8 x 8 pixels belong to the nearest of so many points."""
    points = np.random.default_rng(0).random((number, 2)) * (height, width)
    y, x = np.mgrid[0:height:8, 0:width:8]
    nearest = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(2).astype(np.uint8)
    return np.ascontiguousarray(nearest.repeat(8, 0).repeat(8, 1)[:height, :width])


def encoded(masks: Iterator[np.ndarray]) -> Masks:
    """By pycocotools, one by one."""
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    return [(rle["counts"].decode(), int(coco_mask.area(rle))) for rle in rles]


def pasted_by_stock(height: int, width: int, number: int, seed: int = 0) -> Callable[[], Masks]:
    """Torchvision and pycocotools."""
    probabilities, boxes = map(torch.from_numpy, objects(height, width, number, seed))

    def make() -> Masks:
        pasted = paste_masks_in_image(probabilities[:, None], boxes, (height, width))
        return encoded(iter((pasted[:, 0] > 0.5).numpy().view(np.uint8)))

    return make


def pasted_as_runs(height: int, width: int, number: int, seed: int = 0) -> Callable[[], Masks]:
    """Ours."""
    found = objects(height, width, number, seed)
    return lambda: [(mask.rle.counts, mask.area) for mask in paste_runs(*found, height, width)]


def map_by_stock(height: int, width: int, number: int) -> Callable[[], Masks]:
    """One encode a segment."""
    labels = label_map(height, width, number)
    return lambda: encoded((labels == one).view(np.uint8) for one in range(number))


def map_as_runs(height: int, width: int, number: int) -> Callable[[], Masks]:
    """Ours."""
    labels = label_map(height, width, number)
    return lambda: [(mask.rle.counts, mask.area) for mask in label_runs(labels, number)]


_Way = Callable[..., Callable[[], Masks]]


def first(way: _Way, case: tuple[int, int, int]) -> tuple[Masks, float, float]:
    """The masks, seconds of the first call, and how much the process grew in a second one, MiB."""
    make = way(*case)
    took = seconds(make)
    forget_peak()
    before = peak_memory()
    return make(), took, peak_memory() - before


def once(way: _Way, case: tuple[int, int, int]) -> float:
    """Seconds of a call, the mean of as many as fill LEAST."""
    make, took = way(*case), [0.0]
    make()
    while sum(took) < LEAST:
        took.append(seconds(make))
    return sum(took) / (len(took) - 1)


def compare_random(number: int) -> None:
    """Raises AssertionError unless masks of all shapes are the same, string by string."""
    rng = np.random.default_rng(7)
    for seed in range(1, number // 20 + 1):
        case = int(rng.integers(1, 300)), int(rng.integers(1, 300)), 20, seed
        assert pasted_as_runs(*case)() == pasted_by_stock(*case)(), f"the two ways disagree: {case}"


def measured(name: str, stock: _Way, ours: _Way, case: tuple[int, int, int], repeats: int) -> list[str]:
    """A row of the table."""
    with ExitStack() as stack:
        context = get_context("spawn")
        processes = {way: stack.enter_context(ProcessPoolExecutor(1, context)) for way in (stock, ours)}
        begun = {way: processes[way].submit(first, way, case).result() for way in (stock, ours)}
        assert begun[stock][0] == begun[ours][0], f"the two ways disagree: {case}"
        ways = {way.__name__: lambda way=way: processes[way].submit(once, way, case).result() for way in processes}
        found = in_turn(ways, repeats)
    slow, fast = found.values()
    height, width, number = case
    return [
        f"{number} {name}, {height} x {width}",
        f"{1000 * median(slow):.3g}",
        f"{1000 * median(fast):.3g}",
        spread(ratios(slow, fast)),
        f"{begun[stock][2]:.0f}",
        f"{begun[ours][2]:.1f}",
        f"{begun[ours][1]:.2f}",
    ]


def share_of_forward(size: tuple[int, int], folder: Path, repeats: int) -> list[str]:
    """A row of the second table."""
    model = load_model(workload.spec_of("light_mask_rcnn", "python:workload:light_mask_rcnn", folder))
    paths = workload.write_pictures(folder / f"{size}", 8, size).glob("*")
    images = [workload.pixels(path) for path in sorted(paths)]
    spent: list[float] = []

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        made = paste_runs(*arguments)
        spent.append(time.perf_counter() - began)
        return made

    def look() -> float:
        return seconds(lambda: [model.predict([image], frozenset({Task.SEGMENT_INSTANCES})) for image in images])

    shares, forward, masks = [], [], []
    look()
    with patch.object(detector, "paste_runs", timed):
        for _ in range(repeats):
            spent.clear()
            whole = look()
            masks.append(1000 * sum(spent) / len(images))
            forward.append(1000 * whole / len(images) - masks[-1])
            shares.append(100 * masks[-1] / forward[-1])
    return [f"{size[0]} x {size[1]}", spread(forward), spread(masks), spread(shares)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a try of a minute: small images, one repeat")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    compare_random(RANDOM // 10 if quick else RANDOM)
    repeats = 1 if quick else REPEATS
    rows = [
        *(measured("masks", pasted_by_stock, pasted_as_runs, case, repeats) for case in CASES[: 4 if quick else None]),
        *(measured("segments", map_by_stock, map_as_runs, case, repeats) for case in MAPS[: 1 if quick else None]),
    ]
    columns = ["what", "stock, ms", "ours, ms", "stock / ours", "memory, MiB", "ours, MiB", "first call, s"]
    print_table("Masks of an image, one thread", columns, rows)
    with tempfile.TemporaryDirectory() as folder:
        rows = [share_of_forward(size, Path(folder), repeats) for size in ((480, 640), (1080, 1920))]
    columns = ["image", "forward pass, ms", "masks, ms", "masks / forward pass, % (10)"]
    print_table("Light Mask R-CNN, 20 objects an image, one thread", columns, rows)


if __name__ == "__main__":
    main()
