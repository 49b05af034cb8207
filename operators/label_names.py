"""What a network's labels are called -> the categories that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from prelabel.schemas.categories import ALIASES, COCO, COCO_PANOPTIC, Category, CategorySet
from prelabel.schemas.errors import ModelError

NOBODY = frozenset({"", "n/a", "no-object", "no object", "no_object", "background", "__background__", "void"})
"""What labels are called, in any case, that stand for nothing."""


def categories_of(
    names: Mapping[int, str],
    given: CategorySet | None = None,
    things: Callable[[], Collection[int] | None] = lambda: None,
) -> tuple[CategorySet, np.ndarray]:
    """What can be found, and int32 (K,), the category id of each label, -1 for labels that stand for nothing.

    Names that are all COCO's, of its 80 things or else of its 133 panoptic categories, get COCO's ids; Pascal VOC's
    spellings count. Among any others label k is the category k.

    Args:
        names: of the labels 0 to K - 1; LABEL_k, as in transformers, is a name only where no label has a better one
        given: categories of the user: as many as labels, or as labels with a name, in their order; or fewer, with
            ids that have holes and are labels
        things: which labels are no stuff, asked where neither the user nor COCO says; None: all

    Raises:
        ModelError: there are more or fewer categories given, or a label has no name
    """
    if not all(isinstance(names.get(label), str) for label in range(len(names))):
        raise ModelError(
            f"id2label names {[*names.items()]!s:.80}: give a text for each label from 0 to {len(names) - 1}"
        )
    somebody = [label for label in range(len(names)) if names[label].strip().casefold() not in NOBODY]
    called = {label: ALIASES.get(names[label], names[label]) for label in somebody if names[label] != f"LABEL_{label}"}
    named = list(called) or somebody
    if given is not None:
        return given, _given_ids(given, named, len(names))
    for known in (COCO, COCO_PANOPTIC):
        ids = {category.name: category.id for category in known}
        found = {label: ids[name] for label, name in called.items() if name in ids}
        if called and len(set(found.values())) == len(called):
            return CategorySet(one for one in known if one.id in found.values()), _ids(found, len(names))
    countable = things()
    categories = (Category(one, names[one], isthing=countable is None or one in countable) for one in named)
    return CategorySet(categories), _ids({label: label for label in named}, len(names))


def _given_ids(given: CategorySet, named: list[int], count: int) -> np.ndarray:
    for labels in (range(count), named):
        if len(given) == len(labels):
            return _ids(dict(zip(labels, given.ids, strict=True)), count)
    gapless = sorted(given.ids) == list(range(1, len(given) + 1))
    if gapless or max(given.ids) >= count:
        raise ModelError(
            f"the network has {len(named)} labels, and there are {len(given)} categories: give those that it was "
            "trained on, in that order"
        )
    return _ids({one: one for one in given.ids}, count)


def _ids(ids: Mapping[int, int], count: int) -> np.ndarray:
    category_ids = np.full(count, -1, np.int32)
    category_ids[list(ids)] = list(ids.values())
    return category_ids
