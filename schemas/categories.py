"""What can be found in an image: categories, sets of them, and which one each of a network's labels stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from prelabel.schemas.errors import ModelError, UserError
from prelabel.schemas.presets import COCO_KEYPOINTS, COCO_SKELETON, COCO_STUFF, COCO_THINGS, VOC_THINGS


@dataclass(frozen=True)
class Category:
    """One kind of object (`isthing`) or of surface, in COCO's terms.

    Attributes:
        id: from 0, fits int32
        name: for people
        supercategory: the group it belongs to, if any
        isthing: can be counted; False for stuff such as sky
        color: how to draw it, red green blue from 0 to 255, if anybody said
        keypoints: the names of an object's keypoints, in order, if it has any
        skeleton: pairs of keypoints to draw a line between, numbered from 1 as COCO does
    """

    id: int
    name: str
    supercategory: str | None = None
    isthing: bool = True
    color: tuple[int, int, int] | None = None
    keypoints: tuple[str, ...] | None = None
    skeleton: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        _check(type(self.id) is int and 0 <= self.id < 2**31, "id", self.id, "a whole number from 0 to 2147483647")
        _check(isinstance(self.name, str) and self.name.strip() != "", "name", self.name, "a text")
        _check(isinstance(self.supercategory, str | None), "supercategory", self.supercategory, "a text")
        _check(isinstance(self.isthing, bool), "isthing", self.isthing, "0 or 1")
        _check(self.color is None or _is_color(self.color), "color", self.color, "three numbers from 0 to 255")
        _check(self.keypoints is None or _are_names(self.keypoints), "keypoints", self.keypoints, "a list of names")
        lines = self.skeleton is None or _is_skeleton(self.skeleton, len(self.keypoints or ()))
        _check(lines, "skeleton", self.skeleton, "pairs of numbers of its keypoints, from 1")

    def to_coco(self) -> dict[str, Any]:
        """COCO's category object; what is not known is left out."""
        entry = {
            "id": self.id,
            "name": self.name,
            "supercategory": self.supercategory,
            "isthing": int(self.isthing),
            "color": self.color,
            "keypoints": self.keypoints,
            "skeleton": self.skeleton,
        }
        return {key: value for key, value in entry.items() if value is not None}

    @classmethod
    def from_coco(cls, entry: Any) -> Category:
        """The opposite of `to_coco`; keys that COCO's tools add are ignored. Raises UserError."""
        if not isinstance(entry, dict) or not {"id", "name"} <= entry.keys():
            raise UserError(f'a category is {entry!r:.80}: give {{"id": 1, "name": "cat"}}')
        isthing = entry.get("isthing", 1)
        return cls(
            entry["id"],
            entry["name"],
            entry.get("supercategory"),
            bool(isthing) if isthing in (0, 1) else isthing,
            _tuples(entry.get("color")),
            *(_tuples(entry.get(key)) or None for key in ("keypoints", "skeleton")),  # some tools write empty lists
        )


class CategorySet:
    """Categories in a fixed order, each id once; iterating gives the categories, `in` and `[]` take an id."""

    def __init__(self, categories: Iterable[Category]) -> None:
        """Raises UserError where an id is there twice."""
        self._by_id: dict[int, Category] = {}
        for category in categories:
            first = self._by_id.setdefault(category.id, category)
            if first is not category:
                raise UserError(
                    f"category id {category.id} is there twice, {first.name!r} and {category.name!r}: number them apart"
                )

    def __getitem__(self, category_id: int) -> Category:
        return self._by_id[category_id]

    def __contains__(self, category_id: object) -> bool:
        return category_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._by_id.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CategorySet) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"CategorySet({list(self)!r})"

    @property
    def ids(self) -> tuple[int, ...]:
        """In order."""
        return tuple(self._by_id)

    @property
    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(category.name for category in self)

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json`, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_coco(self) -> list[dict[str, Any]]:
        """The "categories" of a COCO document."""
        return [category.to_coco() for category in self]

    def to_json(self) -> str:
        """`to_coco` as text; equal sets give equal text."""
        return orjson.dumps(self.to_coco()).decode()

    @classmethod
    def from_json(cls, text: str) -> CategorySet:
        """The opposite of `to_json`."""
        return cls(Category.from_coco(entry) for entry in orjson.loads(text))


def numbered(num_classes: int) -> CategorySet:
    """For a network of which nothing else is known: "class 1" to "class {num_classes - 1}"; 0 is the background."""
    return CategorySet(Category(label, f"class {label}") for label in range(1, num_classes))


def label_map(categories: CategorySet, num_classes: int) -> np.ndarray:
    """Which category each label of a network stands for, where label 0 is the background.

    As many categories as labels: label k is the category whose id is k where the ids are 1 to N, else the k-th.
    Fewer, with ids that have holes, as COCO's 80 among 91 classes: label k is the category whose id is k.

    Args:
        categories: what the user, or the weights, say can be found
        num_classes: width of the network's output, background included

    Returns:
        int32 (num_classes,), the category's id, -1 where a label stands for nothing

    Raises:
        ModelError: the categories are not this network's
    """
    ids, count = sorted(categories.ids), len(categories)
    gapless = ids == list(range(1, count + 1))
    labels = np.full(num_classes, -1, np.int32)
    if count == num_classes - 1:
        labels[1:] = ids if gapless else categories.ids
    elif not gapless and ids[-1] < num_classes:
        labels[ids] = ids
        labels[0] = -1
    else:
        raise ModelError(
            f"the network has {num_classes - 1} classes besides the background, and there are {count} categories: "
            "give those that it was trained on, in that order"
        )
    return labels


ALIASES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""Pascal VOC's names -> COCO's for the same things."""


def unite(sets: Sequence[CategorySet]) -> tuple[CategorySet, list[dict[int, int]]]:
    """One set for a job of several models: what has the same name is one category, by any of its names in ALIASES.

    The first set that has a category decides on its id; where another one has that already, it gets the next free
    number above all ids.

    Returns:
        the categories, and for each set its ids -> theirs

    >>> cats, tabbies = CategorySet([Category(1, "cat")]), CategorySet([Category(1, "dog"), Category(7, "cat")])
    >>> unite([cats, tabbies])[1]
    [{1: 1}, {1: 8, 7: 1}]
    """
    united: dict[int, Category] = {}
    by_name: dict[str, int] = {}
    free = 1 + max((category.id for some in sets for category in some), default=0)
    renumbered: list[dict[int, int]] = []
    for some in sets:
        ids: dict[int, int] = {}
        for category in some:
            name = ALIASES.get(category.name, category.name)
            known = by_name.get(name)
            if known is None or known in ids.values():  # a set may have two categories of one name
                known = category.id
                if known in united:
                    known, free = free, free + 1
                united[known] = replace(category, id=known)
                by_name.setdefault(name, known)
            united[known] = _with_what_another_says(united[known], category)
            ids[category.id] = known
        renumbered.append(ids)
    return CategorySet(united.values()), renumbered


def _with_what_another_says(category: Category, other: Category) -> Category:
    """A category that is a thing or has keypoints in either set; whoever calls it stuff has no instances of it."""
    isthing = category.isthing or other.isthing
    if category.keypoints is not None:
        return replace(category, isthing=isthing)
    return replace(category, isthing=isthing, keypoints=other.keypoints, skeleton=other.skeleton)


def load_categories(data: bytes, name: str) -> CategorySet:
    """A user's file of categories.

    Args:
        data: a COCO document, a JSON list of its categories or of names, or a text of one name a line; names alone
            get the ids 1 to N
        name: of the file, for messages

    Raises:
        UserError: it is none of those
    """
    try:
        return CategorySet(_parse(data.removeprefix(b"\xef\xbb\xbf").strip()))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _parse(data: bytes) -> list[Category]:
    entries = _parse_json(data) if data[:1] in (b"{", b"[") else _parse_lines(data)
    if not isinstance(entries, list) or not entries:
        raise UserError("there are no categories in it: give a COCO document, or a text of one name a line")
    if all(isinstance(entry, str) for entry in entries):
        return [Category(number, entry) for number, entry in enumerate(entries, start=1)]
    return [Category.from_coco(entry) for entry in entries]


def _parse_json(data: bytes) -> Any:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UserError(f"not valid JSON ({error}): give a COCO document, or a text of one name a line") from None
    return document.get("categories") if isinstance(document, dict) else document


def _parse_lines(data: bytes) -> list[str]:
    try:
        names = [line.strip() for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        names = ["\0"]
    if not all(name.isprintable() for name in names):
        raise UserError("neither JSON nor text in UTF-8: give a COCO document, or a text of one name a line")
    return names


def _is_color(color: Any) -> bool:
    return isinstance(color, tuple) and len(color) == 3 and all(type(c) is int and 0 <= c < 256 for c in color)


def _are_names(names: Any) -> bool:
    return isinstance(names, tuple) and len(names) > 0 and all(isinstance(name, str) and name for name in names)


def _is_skeleton(lines: Any, keypoints: int) -> bool:
    return isinstance(lines, tuple) and all(
        isinstance(line, tuple) and len(line) == 2 and all(type(end) is int and 0 < end <= keypoints for end in line)
        for line in lines
    )


def _tuples(value: Any) -> Any:
    """JSON's lists, at any depth, as tuples, which can be hashed."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check(valid: bool, key: str, value: object, expected: str) -> None:
    if not valid:
        raise UserError(f"a category's {key} is {value!r:.80}: give {expected}")


def _preset(things: str, stuff: str = "") -> CategorySet:
    categories = [
        Category(int(number), name, supercategory, isthing)
        for text, isthing in ((things, True), (stuff, False))
        for supercategory, members in re.findall(r"^(\S+): (.*(?:\n  .*)*)", text, re.MULTILINE)
        for number, name in re.findall(r"(\d+) ([^,\n]+)", members)
    ]
    return CategorySet(sorted(categories, key=lambda category: category.id))


COCO = _preset(COCO_THINGS)
"""The 80 things, ids 1 to 90 with holes."""
COCO_PANOPTIC = _preset(COCO_THINGS, COCO_STUFF)
"""The 80 things and 53 kinds of stuff, ids 1 to 200 with holes."""
VOC = _preset(VOC_THINGS)
"""Pascal VOC's 20, ids 1 to 20; 0 is the background."""
COCO_PERSON = CategorySet([Category(1, "person", "person", keypoints=COCO_KEYPOINTS, skeleton=COCO_SKELETON)])
"""COCO's person with 17 keypoints, id 1."""
