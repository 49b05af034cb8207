"""What a network calls its labels, and which categories they are."""

from __future__ import annotations

import numpy as np
import pytest

from prelabel.operators.label_names import categories_of
from prelabel.schemas.categories import COCO, COCO_PANOPTIC, VOC, Category, CategorySet, numbered
from prelabel.schemas.errors import ModelError


def named(*names: str) -> dict[int, str]:
    return dict(enumerate(names))


def test_names_of_coco_have_its_ids() -> None:
    holes = [COCO[label].name if label in COCO else "N/A" for label in range(91)]
    categories, ids = categories_of(named(*holes))
    assert categories == COCO
    np.testing.assert_array_equal(ids, [label if label in COCO else -1 for label in range(91)])
    categories, ids = categories_of(named("background", *VOC.names))
    assert (ids[0], categories[int(ids[1])].name, len(categories)) == (-1, "airplane", 20)
    categories, ids = categories_of(named(*COCO_PANOPTIC.names, "LABEL_133"))
    assert categories == COCO_PANOPTIC
    assert [categories[one].isthing for one in ids[[0, 80]].tolist()] == [True, False]
    assert ids[-1] == -1


def test_any_other_names_are_numbered() -> None:
    categories, ids = categories_of(named("person", "unicorn", "no-object", "person"), things=lambda: {0, 3})
    assert categories == CategorySet(
        [Category(0, "person"), Category(1, "unicorn", isthing=False), Category(3, "person")]
    )
    assert ids.tolist() == [0, 1, -1, 3]
    categories, ids = categories_of(named("LABEL_0", "LABEL_1"))
    assert (categories.names, ids.tolist()) == (("LABEL_0", "LABEL_1"), [0, 1])


def test_given_categories() -> None:
    two = CategorySet([Category(7, "cat"), Category(5, "dog")])
    assert categories_of(named("LABEL_0", "LABEL_1"), two)[1].tolist() == [7, 5]
    assert categories_of(named("background", "a", "b"), two)[1].tolist() == [-1, 7, 5]
    assert categories_of(named(*(f"LABEL_{label}" for label in range(8))), two)[1].tolist() == [-1] * 5 + [5, -1, 7]
    with pytest.raises(ModelError, match="6 labels, and there are 2 categories"):
        categories_of(named(*"abcdef"), two)
    with pytest.raises(ModelError, match="6 labels, and there are 4 categories"):
        categories_of(named(*"abcdef"), numbered(5))
    with pytest.raises(ModelError, match=r"id2label names .*: give a text for each label from 0 to 1"):
        categories_of({1: "cat", 2: "dog"})
