"""Label maps against pycocotools' encode of each mask, and against torch's own interpolation in full size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import interpolate

from prelabel.operators import label_maps
from prelabel.operators.label_maps import label_runs, semantic_segments, upsampled_argmax, upsampled_strips
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.rle import Rle, decode

MAPS = st.sampled_from([np.int64, np.uint8, np.int16]).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 5))
)


def stock(mask: np.ndarray) -> MaskRuns:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    x, y, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    return MaskRuns(Rle(mask.shape, rle["counts"].decode()), int(coco_mask.area(rle)), (x, y, width, height))


def patches(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """A label map of rectangles, painted one over another."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(4 * count):
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, side + 1, 2)) for side in (height, width))
        labels[y0:y1, x0:x1] = rng.integers(count)
    return labels


# ---- label_runs


@settings(max_examples=150, deadline=None)
@given(MAPS, st.integers(0, 8), st.booleans())
def test_runs_are_pycocotools(labels: np.ndarray, count: int, transposed: bool) -> None:
    labels = labels.T if transposed else labels
    assert label_runs(labels, count) == [stock(labels == label) for label in range(count)]


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (200, 20_000), (333, 500)])
def test_runs_of_many_labels(size: tuple[int, int]) -> None:
    labels = patches(*size, 60)
    assert label_runs(labels, 60) == [stock(labels == label) for label in range(60)]


@pytest.mark.parametrize("nobody", [-1, 3, 255, -(2**31), 2**31 - 1])
def test_other_labels_are_nobodys(nobody: int) -> None:
    labels = patches(40, 50, 3).astype(np.int32)
    labels[10:20, 5:45] = nobody
    assert label_runs(labels, 3) == [stock(labels == label) for label in range(3)]


def test_little_memory_besides_the_runs() -> None:
    labels = patches(4000, 6000, 60)
    label_runs(labels[:10], 60)
    tracemalloc.start()
    label_runs(labels, 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < labels.nbytes / 4


# ---- semantic_segments


@settings(max_examples=100, deadline=None)
@given(MAPS, st.lists(st.integers(-1, 4), max_size=6))
def test_each_category_once(labels: np.ndarray, category_ids: list[int]) -> None:
    ids = np.array(category_ids, np.int32)
    segments = semantic_segments(labels, ids)
    expected = np.full(labels.shape, -1)
    for label, category in enumerate(category_ids):
        expected[labels == label] = category
    found = sorted(set(expected[expected >= 0].tolist()), key=lambda one: (-(expected == one).sum(), one))
    assert segments.category_ids.tolist() == found
    assert segments.category_ids.dtype == np.int32
    assert segments.masks == [stock(expected == category) for category in found]


def test_nothing_but_void() -> None:
    assert len(semantic_segments(np.zeros((3, 4), np.uint8), np.array([-1, 5], np.int32))) == 0


# ---- upsampled_argmax


def assert_as_stock(scores: Tensor, size: tuple[int, int]) -> None:
    """Equal, but where the two best classes differ by no more than rounding."""
    found = upsampled_argmax(scores, size)
    direct = interpolate(scores[None].float(), size, mode="bilinear", align_corners=False)[0]
    assert found.shape == size
    lost = direct.amax(0) - direct.gather(0, torch.from_numpy(found)[None].long())[0]
    assert lost.max() <= 1e-5 * scores.abs().max()
    assert (direct.argmax(0).numpy() != found).mean() <= 1e-4
    strips = [values for _, values in upsampled_strips(scores, size)]  # as on a GPU
    torch.testing.assert_close(torch.cat(strips, 1), direct, rtol=0, atol=1e-5 * float(scores.abs().max()))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.integers(0, 1000),
    st.sampled_from([1, 20_000, 2**30]),
)
def test_upsampling_is_torchs(shape: tuple[int, int, int], size: tuple[int, int], seed: int, strip: int) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_maps, "STRIP_BYTES", strip)
        assert_as_stock(scores, size)


@pytest.mark.parametrize("size", [(1, 1), (200, 20_000), (3000, 7), (520, 780)])
def test_upsampling_to_extreme_sizes(size: tuple[int, int]) -> None:
    assert_as_stock(torch.randn(21, 52, 78, generator=torch.Generator().manual_seed(0)), size)


def test_the_first_of_equal_classes_wins() -> None:
    assert not upsampled_argmax(torch.zeros(5, 3, 4), (30, 40)).any()


def test_more_classes_than_a_byte_holds() -> None:
    labels = upsampled_argmax(torch.arange(300.0).expand(2, 2, 300).permute(2, 0, 1), (9, 9))
    assert labels.dtype == np.int16
    assert (labels == 299).all()


def test_half_precision_and_a_crop() -> None:
    scores = torch.randn(7, 40, 50, generator=torch.Generator().manual_seed(0)).half()[:, :33, :47]
    assert_as_stock(scores, (200, 300))


def test_a_map_and_its_masks_agree() -> None:
    labels = upsampled_argmax(torch.randn(6, 9, 9, generator=torch.Generator().manual_seed(1)), (90, 70))
    union = sum(decode(mask.rle).astype(int) for mask in label_runs(labels, 6))
    np.testing.assert_array_equal(union, 1)
