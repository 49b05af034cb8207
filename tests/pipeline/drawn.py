"""Images drawn with known probabilities, again, by NumPy in memory: what `prelabel.pipeline.sampling` promises."""

from __future__ import annotations

import hashlib

import numpy as np


def probabilities(strata: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """Of each image, that it is drawn: half of the budget by chance, the rest by strata and sizes, none above 1."""
    images = len(strata)
    chance = 0.5 if sizes.any() else 1.0
    parts = {name: (strata == name).mean() for name in np.unique(strata)}
    rare = {name: min(part, 0.1) for name, part in parts.items() if name != "found"}
    parts = rare | ({"found": 1 - sum(rare.values())} if "found" in parts else {})
    asked = np.zeros(images)
    for name, part in parts.items():
        own = np.where(strata == name, sizes, 0).astype(float)
        own = own if own.any() else (strata == name).astype(float)
        asked += part / sum(parts.values()) * own / own.sum()
    share = chance / images + (1 - chance) * asked
    low, high = 0.0, 1 / share.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * share).sum() < budget else (low, middle)
    return np.minimum(1, high * share)


def hits(probability: np.ndarray, order: np.ndarray, start: float) -> np.ndarray:
    """The images in a line, each as long as its probability, that the points start, start + 1, ... before it hit."""
    ends = np.cumsum(probability[order]) + start
    return np.sort(order[np.floor(ends) > np.floor(ends - probability[order])])


def by_chance(image_id: int, seed: int) -> int:
    return int.from_bytes(hashlib.md5(f"{seed}:{image_id}".encode()).digest()[8:], "little")
