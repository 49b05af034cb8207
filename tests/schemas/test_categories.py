"""Category sets, the files they come from, and the labels they stand for."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models._meta import _COCO_CATEGORIES, _VOC_CATEGORIES
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights

from prelabel.schemas.categories import (
    COCO,
    COCO_PANOPTIC,
    COCO_PERSON,
    VOC,
    Category,
    CategorySet,
    label_map,
    load_categories,
    numbered,
    unite,
)
from prelabel.schemas.errors import ModelError, UserError

PETS = CategorySet([Category(7, "dog", "animal"), Category(3, "grass", isthing=False, color=(0, 255, 0))])


def test_a_set_keeps_its_order_and_finds_by_id():
    assert (PETS.ids, PETS.names, len(PETS)) == ((7, 3), ("dog", "grass"), 2)
    assert 3 in PETS
    assert 0 not in PETS
    assert PETS[3].name == "grass"
    assert [category.id for category in PETS] == [7, 3]
    assert PETS.to_coco() == [
        {"id": 7, "name": "dog", "supercategory": "animal", "isthing": 1},
        {"id": 3, "name": "grass", "isthing": 0, "color": (0, 255, 0)},
    ]


def test_json_and_pickle_give_the_same_set_back():
    for categories in (PETS, COCO, COCO_PANOPTIC, COCO_PERSON, VOC, numbered(1)):
        assert CategorySet.from_json(categories.to_json()) == categories
        assert pickle.loads(pickle.dumps(categories)).digest == categories.digest
    assert PETS.digest != CategorySet(reversed(list(PETS))).digest


def test_presets_are_what_torchvision_calls_its_labels():
    named = {label: name for label, name in enumerate(_COCO_CATEGORIES) if name not in ("__background__", "N/A")}
    assert {category.id: category.name for category in COCO} == named
    assert len(COCO) == 80
    assert ["__background__", *VOC.names] == _VOC_CATEGORIES
    (person,) = COCO_PERSON
    assert list(person.keypoints) == KeypointRCNN_ResNet50_FPN_Weights.DEFAULT.meta["keypoint_names"]


def test_skeleton_of_the_preset_joins_neighbours_on_one_side():
    (person,) = COCO_PERSON
    names = [[person.keypoints[end - 1] for end in line] for line in person.skeleton]
    assert len(names) == 19
    assert ["left_ankle", "left_knee"] in names
    assert ["left_shoulder", "right_shoulder"] in names
    across = [line for line in names if {end.partition("_")[0] for end in line} == {"left", "right"}]
    assert {end.partition("_")[2] for line in across for end in line} == {"hip", "shoulder", "eye"}


def test_panoptic_preset_is_the_published_file(shared_data):
    published = json.loads((shared_data / "coco_panoptic_sample/panoptic_coco_categories.json").read_bytes())
    assert [entry | {"color": None} for entry in published] == [
        entry | {"color": None} for entry in COCO_PANOPTIC.to_coco()
    ]


@pytest.mark.parametrize(
    ("text", "ids", "names"),
    [
        ('{"images": [], "categories": [{"id": 5, "name": "a", "extra": 1}]}', (5,), ("a",)),
        (
            ' [{"id": 0, "name": "a", "keypoints": [], "skeleton": []}, {"id": 9, "name": "b", "supercategory": null}]',
            (0, 9),
            ("a", "b"),
        ),
        ('["b", "a"]', (1, 2), ("b", "a")),
        ("\ufeffchien\r\n\r\n chaton noir \n", (1, 2), ("chien", "chaton noir")),
    ],
)
def test_categories_are_read_from_every_form(text, ids, names):
    categories = load_categories(text.encode(), "file")
    assert (categories.ids, categories.names) == (ids, names)


def test_categories_are_read_from_a_real_document(shared_data):
    document = (shared_data / "blood_cells/instances.json").read_bytes()
    assert set(load_categories(document, "instances.json").names) == {"RBC", "WBC", "Platelets"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"categories": 3}',
        b'{"categories": [',
        b'["a", {"id": 1, "name": "b"}]',
        b'[{"id": "1", "name": "a"}]',
        b'[{"id": true, "name": "a"}]',
        b'[{"id": -1, "name": "a"}]',
        b'[{"id": 1, "name": ""}]',
        b'[{"id": 1, "name": "a", "isthing": 2}]',
        b'[{"id": 1, "name": "a", "color": [1, 2]}]',
        b'[{"id": 1, "name": "a", "keypoints": "nose"}]',
        b'[{"id": 1, "name": "a", "keypoints": ["nose", 2]}]',
        b'[{"id": 1, "name": "a", "keypoints": ["nose"], "skeleton": [[1, 2]]}]',
        b'[{"id": 1, "name": "a", "skeleton": [[1, 1]]}]',
        b'[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]',
        b"\x80\x02\x00weights",
        b"PK\x03\x04\x00\x00",
    ],
)
def test_a_bad_file_is_one_line_that_names_it(data):
    with pytest.raises(UserError, match=r"^pets\.json: [^\n]+$"):
        load_categories(data, "pets.json")


@pytest.mark.parametrize(
    ("ids", "num_classes", "expected"),
    [
        ((1, 2, 3), 4, [-1, 1, 2, 3]),
        ((2, 1, 3), 4, [-1, 1, 2, 3]),  # 1 to N in any order: by id
        ((0, 1, 2), 4, [-1, 0, 1, 2]),  # from 0: the k-th
        ((30, 10, 20), 4, [-1, 30, 10, 20]),
        ((1, 4), 6, [-1, 1, -1, -1, 4, -1]),
    ],
)
def test_label_map(ids, num_classes, expected):
    labels = label_map(CategorySet(Category(i, str(i)) for i in ids), num_classes)
    assert labels.dtype == np.int32
    assert labels.tolist() == expected


def test_label_map_of_coco_is_the_identity_but_for_the_holes():
    labels = label_map(COCO, 91)
    assert set(np.flatnonzero(labels >= 0)) == set(COCO.ids)
    assert all(labels[list(COCO.ids)] == COCO.ids)
    assert label_map(numbered(91), 91).tolist() == [-1, *range(1, 91)]


@pytest.mark.parametrize(
    ("categories", "num_classes"),
    [(COCO_PANOPTIC, 91), (numbered(4), 91), (numbered(5), 4), (numbered(1), 2)],
)
def test_categories_of_another_network_are_refused(categories, num_classes):
    with pytest.raises(ModelError, match=rf"{num_classes - 1} classes .* {len(categories)} categories"):
        label_map(categories, num_classes)


# One set for several models


def test_what_has_one_name_is_one_category() -> None:
    coco = CategorySet([Category(1, "person"), Category(5, "airplane")])
    voc = CategorySet([Category(1, "aeroplane"), Category(15, "person"), Category(5, "bottle")])
    united, ids = unite([coco, voc])
    assert [(one.id, one.name) for one in united] == [(1, "person"), (5, "airplane"), (16, "bottle")]
    assert ids == [{1: 1, 5: 5}, {1: 5, 15: 1, 5: 16}]


def test_two_categories_of_one_name_in_a_set_stay_two() -> None:
    united, ids = unite(
        [CategorySet([Category(0, "crane"), Category(1, "crane")]), CategorySet([Category(3, "crane")])]
    )
    assert ids == [{0: 0, 1: 1}, {3: 0}]
    assert len(united) == 2


def test_what_one_set_calls_a_thing_is_one() -> None:
    stuff, thing = Category(1, "rock", isthing=False), Category(2, "rock")
    for sets in ([stuff], [thing]), ([thing], [stuff]):
        (rock,) = unite(list(map(CategorySet, sets)))[0]
        assert rock.isthing


def test_keypoints_that_one_set_names_are_the_categorys() -> None:
    for sets in ([COCO, COCO_PERSON], [COCO_PERSON, COCO]):
        assert unite(sets)[0][1].keypoints == COCO_PERSON[1].keypoints
        assert unite(sets)[0][1].skeleton == COCO_PERSON[1].skeleton


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdef")), unique_by=lambda pair: pair[0])))
def test_united_sets_keep_every_category_apart_or_together_by_name(pairs: list[list[tuple[int, str]]]) -> None:
    sets = [CategorySet(Category(number, name) for number, name in some) for some in pairs]
    united, ids = unite(sets)
    for some, renumbered in zip(sets, ids, strict=True):
        assert len(set(renumbered.values())) == len(renumbered) == len(some)
        assert all(united[renumbered[one.id]].name == one.name for one in some)
    if sets:
        assert ids[0] == {one.id: one.id for one in sets[0]}
