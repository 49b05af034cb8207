"""Run-length masks against numpy on the decoded mask, and against pycocotools."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from prelabel.schemas import rle
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def one_pixel(height, width, y, x):
    mask = np.zeros((height, width), bool)
    mask[y, x] = True
    return mask


NAMED = {
    "empty": np.zeros((5, 7), bool),
    "full": np.ones((5, 7), bool),
    "one pixel": one_pixel(5, 7, 2, 3),
    "first pixel": one_pixel(5, 7, 0, 0),
    "last pixel": one_pixel(5, 7, 4, 6),
    "a run over three columns": np.arange(35).reshape(7, 5).T % 35 // 8 == 1,
    "long runs": np.add.outer(np.arange(300), np.arange(1200)) % 1200 > 700,
}


def placed(mask, size, top, left):
    """The same by indexing a full-size image."""
    image = np.zeros(size, bool)
    for y, x in np.add(np.argwhere(mask), (top, left)):
        if 0 <= y < size[0] and 0 <= x < size[1]:
            image[y, x] = True
    return image


@pytest.mark.parametrize("name", NAMED)
def test_a_mask_comes_back_and_reads_as_pycocotools_does(name):
    mask = NAMED[name]
    runs = rle.encode(mask)
    reference = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert runs.counts == reference["counts"].decode()
    np.testing.assert_array_equal(rle.decode(runs), mask)
    assert rle.area(runs) == mask.sum()
    assert rle.bbox(runs) == tuple(coco_mask.toBbox(reference))


@given(masks)
def test_inverted_is_all_other_pixels(mask):
    other = rle.invert(rle.encode(mask))
    assert other == rle.encode(~mask)
    assert rle.invert(other) == rle.encode(mask)


@given(masks)
def test_area_and_box_are_those_of_the_pixels(mask):
    runs = rle.encode(mask)
    assert rle.area(runs) == mask.sum()
    ys, xs = np.nonzero(mask)
    tight = (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1) if mask.any() else (0, 0, 0, 0)
    x, y, width, height = rle.bbox(runs)
    # a run that goes over a column's foot gets the full height, as in pycocotools
    assert (x, width) == (tight[0], tight[2])
    assert y <= tight[1]
    assert y + height >= tight[1] + tight[3]


@given(masks, st.sampled_from([str, bytes, list]))
def test_every_form_of_coco_is_read(mask, form):
    runs = rle.encode(mask)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    lengths = np.diff(edges, prepend=0, append=flat.size).tolist()
    counts = {str: runs.counts, bytes: runs.counts.encode(), list: lengths}[form]
    assert Rle.from_coco({"size": list(mask.shape), "counts": counts}) == runs
    assert Rle.from_coco(runs.to_coco()) == runs


@pytest.mark.parametrize("counts", ["", "6\x7f", "o", "5", "é", [3, 4], [-1, 7], []])
def test_runs_that_do_not_fill_the_mask_are_refused(counts):
    with pytest.raises(UserError, match="segmentation"):
        Rle.from_coco({"size": [2, 3], "counts": counts})


@given(st.data(), array_shapes(min_dims=2, max_dims=2, max_side=9))
def test_union_and_intersection(data, shape):
    stack = data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=4))
    runs = [rle.encode(mask) for mask in stack]
    assert rle.merge(runs) == rle.encode(np.any(stack, axis=0))
    assert rle.merge(runs, intersect=True) == rle.encode(np.all(stack, axis=0))


@given(masks, st.tuples(st.integers(1, 15), st.integers(1, 15)), st.integers(-15, 15), st.integers(-15, 15))
def test_placing_a_window_is_indexing_the_image(mask, size, top, left):
    assert rle.place(rle.encode(mask), size, top, left) == rle.encode(placed(mask, size, top, left))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("top", "left"), [(0, 0), (-2, 3), (4, -1), (400, 0)])
def test_placing_the_named_masks(name, top, left):
    mask = NAMED[name]
    assert rle.place(rle.encode(mask), (330, 900), top, left) == rle.encode(placed(mask, (330, 900), top, left))


@given(masks, st.integers(0, 12), st.integers(0, 12), st.tuples(st.integers(1, 15), st.integers(1, 15)))
def test_parts_are_cropped_and_stitched_to_the_whole(mask, y, x, size):
    cuts = [(0, min(y, mask.shape[0]), mask.shape[0]), (0, min(x, mask.shape[1]), mask.shape[1])]
    rows, columns = (list(itertools.pairwise(cut)) for cut in cuts)
    windows = []
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        if top < bottom and left < right:
            part = rle.place(rle.encode(mask), (bottom - top, right - left), -top, -left)
            assert part == rle.encode(mask[top:bottom, left:right])
            windows.append((part, top, left))
    assert rle.stitch(windows[::-1], mask.shape) == rle.encode(mask)
    assert rle.stitch(windows, size) == rle.encode(placed(mask, size, 0, 0))


def test_nothing_stitched_is_empty():
    assert rle.stitch([], (3, 4)) == rle.encode(np.zeros((3, 4), bool))
