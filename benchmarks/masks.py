"""Masks as runs against the stock way (torchvision's paste, pycocotools' encode), both measured in one run.

    python benchmarks/masks.py

Each way has a process of its own, so that its peak of memory is its own. Only the ratios mean something elsewhere. The
stock way keeps two float masks of the image's size per object: the largest images get ten objects, not a hundred.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from prelabel.operators.masks import paste_runs

CASES = [(480, 640, 100), (1080, 1920, 100), (4000, 6000, 10)]


def objects(height: int, width: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Soft blobs with noisy edges, in boxes of all sizes, most of them small."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    radius = rng.uniform(0.4, 1, (number, 1, 1))
    blobs = 1 / (1 + np.exp(8 * (x**2 + y**2 - radius))) + rng.normal(0, 0.03, (number, 28, 28))
    center = rng.random((number, 2)) * (width, height)
    half = rng.random((number, 2)) ** 2 * (width / 2, height / 2) + 4
    boxes = np.concatenate([center - half, center + half], axis=1).clip(0, (width, height) * 2)
    return blobs.clip(0, 1).astype(np.float32), boxes.astype(np.float32)


def stock(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[tuple[str, int]]:
    pasted = paste_masks_in_image(torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), (height, width))
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in (pasted[:, 0] > 0.5).numpy().view(np.uint8)]
    return [(rle["counts"].decode(), int(coco_mask.area(rle))) for rle in rles]


def runs(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[tuple[str, int]]:
    return [(mask.rle.counts, mask.area) for mask in paste_runs(probabilities, boxes, height, width)]


def peak_memory() -> float:
    """MiB, Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(way: str, height: int, width: int, number: int) -> tuple[float, float, list[tuple[str, int]]]:
    """Seconds (the best of three or more), growth of the peak in MiB, and the masks."""
    paste = {"stock": stock, "runs": runs}[way]
    paste(*objects(64, 200, 10), 64, 200)  # compiles, loads
    found = objects(height, width, number)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that importing has left
    before = peak_memory()
    seconds = []
    while len(seconds) < 3 or sum(seconds) < 1:
        started = time.perf_counter()
        masks = paste(*found, height, width)
        seconds.append(time.perf_counter() - started)
    return min(seconds), peak_memory() - before, masks


def in_own_process(way: str, height: int, width: int, number: int) -> tuple[float, float, list[tuple[str, int]]]:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (way, height, width, number))


def main() -> None:
    for case in CASES:
        (slow, high, expected), (fast, low, masks) = (in_own_process(way, *case) for way in ("stock", "runs"))
        assert masks == expected, "the two ways disagree"
        height, width, number = case
        print(f"{height} x {width}, {number} masks: {slow / fast:.0f} times as fast, ", end="")
        print(f"{low:.1f} MiB of memory instead of {high:.0f} (1/{high / max(low, 1):.0f})")


if __name__ == "__main__":
    main()
