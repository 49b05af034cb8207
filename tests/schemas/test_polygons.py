"""Outlines of masks, filled again by scanlines at the centres of pixels, and as OpenCV does."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from prelabel.schemas import rle
from prelabel.schemas.polygons import PAIRS, area, inset, join, outlines, pixels_outside

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))
masks_of_parts = masks.filter(np.any)


def filled(polygons, size):
    """bool (H, W): the pixels whose centres have an odd number of edges at their left."""
    height, width = size
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    crossings = np.zeros(size, int)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            rows = (np.minimum(y0, y1) < y) & (y < np.maximum(y0, y1))
            crossings[rows] += x > (x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0))[:, None]
    return crossings % 2 == 1


def touched(polygon, size):
    """bool (H, W): the pixels that OpenCV fills, which are those within the polygon and those on its edges."""
    image = np.zeros(size, np.uint8)
    cv2.fillPoly(image, [np.floor(polygon).astype(np.int32)], 1)
    return image.astype(bool)


def parts_of(mask):
    """How many 4-connected parts and holes there are; pixels beyond the image are outside, and holes 8-connected."""
    parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    holes = cv2.connectedComponents(np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=8)[0] - 2
    return parts, holes


@given(masks)
def test_outlines_hold_the_very_mask(mask):
    found = outlines(rle.encode(mask))
    np.testing.assert_array_equal(filled(found, mask.shape), mask)
    assert sum(map(area, found)) == mask.sum()
    signs = [area(one) > 0 for one in found]
    assert (signs.count(True), signs.count(False)) == parts_of(mask)


@given(masks)
def test_outlines_turn_at_each_corner(mask):
    for outline in outlines(rle.encode(mask)):
        steps = np.roll(outline, -1, axis=0) - outline
        assert (steps[0::2, 1] == 0).all()
        assert (steps[1::2, 0] == 0).all()
        assert steps.any(axis=1).all()


@given(masks, st.sampled_from([0.01, 0.25, 0.49]))
def test_inset_outlines_lie_in_the_pixels_of_their_mask(mask, by):
    found = [inset(outline, by) for outline in outlines(rle.encode(mask))]
    np.testing.assert_array_equal(filled(found, mask.shape), mask)
    for x, y in np.concatenate([*found, np.zeros((0, 2))]):
        assert mask[int(y), int(x)]


@given(masks_of_parts)
def test_joined_outlines_are_one_polygon_of_the_same_area(mask):
    found = outlines(rle.encode(mask))
    polygon, bridges = join(found)
    assert len(bridges) == len(found) - 1
    assert len(polygon) == sum(map(len, found)) + 2 * len(bridges)
    assert area(polygon) == mask.sum()
    np.testing.assert_array_equal(filled([polygon], mask.shape), mask)


@given(masks_of_parts)
def test_opencv_fills_the_mask_and_its_bridges(mask):
    runs = rle.encode(mask)
    polygon, bridges = join([inset(outline, 0.01) for outline in outlines(runs)])
    found = touched(polygon, mask.shape)
    assert not (mask & ~found).any()
    outside = pixels_outside(runs, bridges) if len(bridges) else 0
    assert abs(int((found & ~mask).sum()) - outside) <= len(bridges)  # lines differ where they pass between two pixels


def test_bridges_are_short():
    y, x = np.mgrid[:100, :200]
    mask = np.hypot((x - 100) / 90, (y - 50) / 40) < 1
    mask[48:53] = False  # a fence before it
    mask[np.hypot(x - 120, y - 30) < 5] = False
    runs = rle.encode(mask)
    _, bridges = join([inset(outline, 0.01) for outline in outlines(runs)])
    assert len(bridges) == 2
    assert pixels_outside(runs, bridges) == 5  # the fence's; that to the hole is in the mask


def test_thousands_of_parts_are_joined():
    mask = np.random.default_rng(0).random((120, 120)) < 0.5
    found = outlines(rle.encode(mask))
    assert sum(map(len, found)) ** 2 > 100 * PAIRS
    polygon, _ = join(found)
    assert area(polygon) == mask.sum()
    np.testing.assert_array_equal(filled([polygon], mask.shape), mask)


@pytest.mark.parametrize("size", [(1, 1), (3, 20_000), (20_000, 3)])
def test_full_masks_are_rectangles(size):
    (outline,) = outlines(rle.encode(np.ones(size, bool)))
    assert outline.tolist() == [[0, 0], [size[1], 0], [size[1], size[0]], [0, size[0]]]


def test_empty_masks_have_no_outline():
    assert outlines(rle.encode(np.zeros((3, 4), bool))) == []
