"""How large a share is, and between which bounds, from images that were drawn with known probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Proportion:
    """A share of objects, estimated.

    Attributes:
        value: the estimate, from 0 to 1; None where there is nothing to estimate it from
        low, high: the bounds of its 95 % confidence interval
        objects: that were looked at
        images: that they are in
        design_effect: how much larger the variance is than if objects were wrong independently of their images
    """

    value: float | None
    low: float
    high: float
    objects: int
    images: int
    design_effect: float = 1.0

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return dict(vars(self))


def estimate(part: np.ndarray, whole: np.ndarray, probability: np.ndarray, usual_effect: float = 1.0) -> Proportion:
    """The share of `part` in `whole`, both summed over all images, of which some were drawn.

    With w = 1 / probability, the estimate is the ratio of two Horvitz-Thompson totals (Horvitz & Thompson 1952; Hájek
    1971): P = sum w part / sum w whole. Objects of one image are not independent, so the image is what varies: with
    e = w (part - P whole) / sum w whole, V = m / (m - 1) sum (1 - probability) e^2 over the m images with objects
    (Taylor linearization, Särndal, Swensson & Wretman 1992, chapter 5; the factor 1 - probability is Hájek's 1964 for
    draws of a fixed size, and makes V nought where all images were looked at).

    V is compared with V1 = P (1 - P) sum (1 - probability) w^2 whole / (sum w whole)^2, what it would be if objects
    were independent; the design effect is V / V1, at least 1. The interval is Wilson's (1927) for the effective number
    of objects P (1 - P) / V, with Student's t of m - 1 degrees of freedom for the normal quantile, as Korn & Graubard
    (1998) do with Clopper and Pearson's: it stays within 0 and 1, and has a width where P is 0 or 1. V is nought there,
    so the design effect is taken from elsewhere.

    Args:
        part: of each image, how many objects are right, say, (N,)
        whole: of each image, how many objects there are, (N,)
        probability: of each image, that it is looked at, above 0, up to 1, float64 (N,)
        usual_effect: the design effect where there is none to estimate
    """
    part, whole, probability = (one[whole > 0] for one in (part, whole, probability))
    images, weight, unseen = len(whole), 1 / probability, 1 - probability
    if not images:
        return Proportion(None, 0.0, 1.0, 0, 0)
    total = (weight * whole).sum()
    value = float((weight * part).sum() / total)
    alone = float((unseen * weight**2 * whole).sum() / total**2)  # V1, less its P (1 - P)
    if alone == 0:  # all images have been looked at: nothing is estimated
        return Proportion(value, value, value, int(whole.sum()), images)
    effect, quantile = usual_effect, math.inf
    if images > 1:
        quantile = student_quantile((1 + CONFIDENCE) / 2, images - 1)
        error = weight * (part - value * whole) / total
        variance = images / (images - 1) * float((unseen * error**2).sum())
        effect = variance / (alone * value * (1 - value)) if 0 < value < 1 else usual_effect
    effect = max(1.0, effect)
    low, high = wilson(value, 1 / (alone * effect), quantile)
    return Proportion(value, low, high, int(whole.sum()), images, effect)


def wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    """The bounds of a share of `count` draws: the shares that it is not further than `quantile` deviations from."""
    if math.isinf(quantile):
        return 0.0, 1.0
    square = quantile**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t, for a probability above 0.5.

    For 1 and 2 degrees of freedom by its closed form, else by the expansion of Abramowitz & Stegun 26.7.5, within 0.1 %
    for a probability of 0.975.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
