"""Panoptic quality and mean IoU against evaluators written from the papers, pixel by pixel, and by hand."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import FAILED, HEIGHT, WIDTH, write_images, write_job
from labels import segment_row, write_labels
from PIL import Image

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.evaluate.thresholds import write_thresholds
from prelabel.schemas.categories import COCO_PANOPTIC, Category, CategorySet
from prelabel.schemas.errors import UserError

CATEGORIES = CategorySet(
    [Category(2, "ball"), Category(5, "leaf"), Category(7, "grass", isthing=False), Category(9, "sky", isthing=False)]
)
IMAGES = 30
VOID = 0
Map = np.ndarray
Segments = dict[int, tuple[int, bool]]
"""Segment id -> its category and whether it is a crowd."""


def random_truth(rng: np.random.Generator) -> tuple[Map, Segments]:
    """Rectangles over one another, some void, some crowds."""
    ids = np.zeros((HEIGHT, WIDTH), int)
    segments = {}
    for segment_id in rng.choice(2**24 - 1, 7, replace=False).tolist():
        top, left = rng.integers(0, (HEIGHT - 6, WIDTH - 6))
        ids[top : top + rng.integers(6, 16), left : left + rng.integers(6, 20)] = segment_id + 1
        segments[segment_id + 1] = (int(rng.choice(CATEGORIES.ids)), bool(rng.random() < 0.25))
    top, left = rng.integers(0, (HEIGHT, WIDTH))
    ids[top : top + 5, left : left + 9] = VOID
    return ids, {one: segments[one] for one in np.unique(ids).tolist() if one != VOID}


def random_labels(rng: np.random.Generator, ids: Map, segments: Segments) -> tuple[Map, Segments]:
    """The truth, moved a little, with some categories wrong, and a segment of its own."""
    ours = np.roll(ids, rng.integers(-2, 3, 2), (0, 1))
    top, left = rng.integers(0, (HEIGHT - 4, WIDTH - 4))
    ours[top : top + 4, left : left + 8] = 1
    wrong = rng.random(len(segments) + 1) < 0.2
    found = {one: category for one, (category, _) in segments.items()} | {1: 2}
    random = {one: int(rng.choice(CATEGORIES.ids)) for one in found}
    chosen = {one: (random[one] if bad else found[one], False) for one, bad in zip(found, wrong, strict=True)}
    return ours, {one: chosen[one] for one in np.unique(ours).tolist() if one != VOID}


def reference(pairs: list[tuple[Map, Segments, Map, Segments]]) -> dict[str, float]:
    """Kirillov et al. 2019, sections 4.1 and 4.2, on dense masks."""
    counts = {category: np.zeros(4) for category in CATEGORIES.ids}  # sum of IoU, TP, FP, FN
    for truth, segments, ours, found in pairs:
        void = truth == VOID
        matched: set[int] = set()
        for segment_id, (category, is_crowd) in segments.items():
            if is_crowd:
                continue
            expected = truth == segment_id
            ious = {
                one: (expected & (ours == one)).sum() / ((expected | (ours == one)) & ~void).sum()
                for one, (of, _) in found.items()
                if of == category
            }
            best = max(ious, key=ious.__getitem__, default=None)
            if best is not None and ious[best] > 0.5:
                counts[category] += [ious[best], 1, 0, 0]
                matched.add(best)
            else:
                counts[category] += [0, 0, 0, 1]
        for one, (category, _) in found.items():
            crowds = np.isin(truth, [key for key, (of, crowd) in segments.items() if crowd and of == category])
            if one not in matched and (void | crowds)[ours == one].mean() <= 0.5:
                counts[category] += [0, 0, 1, 0]
    rows = {
        category: np.array([iou / (tp + fp / 2 + fn / 2), iou / max(tp, 1), tp / (tp + fp / 2 + fn / 2)])
        for category, (iou, tp, fp, fn) in counts.items()
        if tp + fp + fn
    }
    pq, sq, rq = np.mean(list(rows.values()), axis=0)
    things, stuff = (np.mean([rows[c][0] for c in rows if CATEGORIES[c].isthing is kind]) for kind in (True, False))
    return {"PQ": pq, "SQ": sq, "RQ": rq, "PQ_things": things, "PQ_stuff": stuff}


def reference_iou(pairs: list[tuple[Map, Segments, Map, Segments]]) -> tuple[dict[str, float], float]:
    """Each category's IoU, and the pixel accuracy, on dense maps of categories; void and crowds left out."""
    maps = [
        (
            np.select([truth == one for one in segments], [of * (not crowd) for of, crowd in segments.values()], VOID),
            np.select([ours == one for one in found], [of for of, _ in found.values()], VOID)
            if found
            else np.zeros_like(ours),
        )
        for truth, segments, ours, found in pairs
    ]
    truth, ours = (np.concatenate([one[side].ravel() for one in maps]) for side in (0, 1))
    ours, truth = ours[truth != VOID], truth[truth != VOID]
    ious = {
        CATEGORIES[one].name: ((truth == one) & (ours == one)).sum() / ((truth == one) | (ours == one)).sum()
        for one in CATEGORIES.ids
    }
    return ious, (truth == ours).mean()


def write_truth(file: Path, folder: Path, truths: dict[str, tuple[Map, Segments]], more: int = 0) -> Path:
    """A panoptic document and its PNGs; `more` is added to the category ids."""
    folder.mkdir(parents=True)
    document: dict[str, Any] = {"images": [], "annotations": []}
    document["categories"] = [entry | {"id": entry["id"] + more} for entry in CATEGORIES.to_coco()]
    for number, (key, (ids, segments)) in enumerate(truths.items(), start=1000):
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        name = f"{Path(key).stem}.png"
        Image.fromarray(colors).save(folder / name)
        infos = [
            {"id": one, "category_id": category + more, "iscrowd": int(crowd), "area": int((ids == one).sum())}
            for one, (category, crowd) in segments.items()
        ]
        document["images"].append({"id": number, "file_name": key, "height": ids.shape[0], "width": ids.shape[1]})
        document["annotations"].append({"image_id": number, "file_name": name, "segments_info": infos})
    file.write_text(json.dumps(document))
    return file


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Map, Segments, Map, Segments]]:
    rng = np.random.default_rng(3)
    truths = [random_truth(rng) for _ in range(IMAGES)]
    found = [random_labels(rng, *truth) for truth in truths]
    found[FAILED] = (np.zeros((HEIGHT, WIDTH), int), {})
    return [(*truth, *labels) for truth, labels in zip(truths, found, strict=True)]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, pairs: list[Any]) -> LabelDataset:
    def rows(image: dict[str, Any]) -> dict[str, Any]:
        _, _, ours, found = pairs[image["image_id"]]
        panoptic = [
            segment_row(image["image_id"], number, CATEGORIES[category], ours == one)
            for number, (one, (category, _)) in enumerate(found.items(), start=1)
        ]
        everywhere = np.ones((HEIGHT, WIDTH), bool)
        return {"segments": [*panoptic, segment_row(image["image_id"], 99, CATEGORIES[2], everywhere, "semantic")]}

    folder = tmp_path_factory.mktemp("job")
    source = write_images(f"{folder}/images", IMAGES)
    return write_labels(source, f"{folder}/labels", rows, ["fuse_panoptic"], CATEGORIES)


@pytest.fixture
def truths(labels: LabelDataset, pairs: list[Any]) -> dict[str, tuple[Map, Segments]]:
    keys = labels.table("images").to_table()["key"].to_pylist()
    return {key: (ids, segments) for key, (ids, segments, *_) in zip(keys, pairs, strict=True)}


@pytest.mark.parametrize("more", [0, 3])
def test_agrees_with_the_paper(
    more: int, labels: LabelDataset, truths: dict[str, Any], pairs: list[Any], tmp_path: Path
) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths, more)
    expected = reference(pairs)
    assert 0.2 < expected["PQ"] < 0.8
    figures = evaluate(labels, str(truth))
    assert figures["panoptic"] == pytest.approx(expected)
    ious, accuracy = reference_iou(pairs)
    assert {name: one["IoU"] for name, one in figures.categories["semantic"].items()} == pytest.approx(ious)
    assert figures["semantic"] == pytest.approx({"mIoU": np.mean(list(ious.values())), "pixel_accuracy": accuracy})


def test_pngs_may_lie_in_a_folder_named_panoptic(labels: LabelDataset, truths: dict[str, Any], tmp_path: Path) -> None:
    named = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    beside = write_truth(tmp_path / "other.json", tmp_path / "panoptic", truths)
    assert evaluate(labels, str(named)) == evaluate(labels, str(beside))


def test_images_without_an_annotation_do_not_count(
    labels: LabelDataset, truths: dict[str, Any], pairs: list[Any], tmp_path: Path
) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    document = json.loads(truth.read_text())
    del document["annotations"][10:]
    truth.write_text(json.dumps(document))
    assert evaluate(labels, str(truth))["panoptic"] == pytest.approx(reference(pairs[:10]))


def test_real_truth_against_itself_is_perfect(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "coco_panoptic_sample"
    document = json.loads((folder / "panoptic_examples.json").read_bytes())
    annotations = {Path(one["file_name"]).stem: one for one in document["annotations"]}

    def rows(image: dict[str, Any]) -> dict[str, Any]:
        annotation = annotations[Path(image["key"]).stem]
        colors = np.asarray(Image.open(folder / "panoptic" / annotation["file_name"])).astype(int)
        ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
        infos = enumerate(annotation["segments_info"], start=1)
        return {
            "segments": [
                segment_row(image["image_id"], number, COCO_PANOPTIC[info["category_id"]], ids == info["id"])
                for number, info in infos
            ]
        }

    labels = write_labels(str(folder / "images"), f"{tmp_path}/labels", rows, ["fuse_panoptic"], COCO_PANOPTIC)
    figures = evaluate(labels, str(folder / "panoptic_examples.json"))
    assert figures["panoptic"] == {"PQ": 1, "SQ": 1, "RQ": 1, "PQ_things": 1, "PQ_stuff": 1}
    assert figures["semantic"] == {"mIoU": 1, "pixel_accuracy": 1}


def columns(*edges: int) -> Map:
    """An image of stripes: 1 from the first edge to the second, and so on."""
    return np.tile(np.searchsorted(edges, np.arange(WIDTH), side="right"), (HEIGHT, 1))


BY_HAND = columns(8, 16, 24), {1: (2, False), 2: (7, False), 3: (2, True)}
"""Eight columns each: void, a ball, grass, a crowd of balls."""
OURS = [(7, 0, 10), (2, 10, 16), (7, 16, 22), (5, 22, 24), (2, 24, 32)]
"""Category, first column, and the one after the last: grass, a ball, grass, a leaf, a ball."""


def labels_by_hand(folder: Path, tasks: list[str], images: int = 1) -> LabelDataset:
    """Panoptic segments as above; the semantic ones are the truth's; nothing in further images."""
    place = np.tile(np.arange(WIDTH), (HEIGHT, 1))

    def rows(image: dict[str, Any]) -> dict[str, Any]:
        number = image["image_id"]
        panoptic = [
            segment_row(number, k, CATEGORIES[category], (place >= first) & (place < end))
            for k, (category, first, end) in enumerate(OURS, start=1)
        ]
        semantic = [
            segment_row(number, 10 * one, CATEGORIES[category], BY_HAND[0] == one, "semantic")
            for one, (category, _) in BY_HAND[1].items()
        ]
        kinds = {"fuse_panoptic": panoptic, "segment_semantic": semantic}
        return {"segments": [row for task in tasks for row in kinds[task]] if number == 0 else []}

    return write_labels(write_images(f"{folder}/images", images), f"{folder}/labels", rows, tasks, CATEGORIES)


def test_panoptic_quality_by_hand(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", {"image-0.png": BY_HAND})
    figures = evaluate(labels_by_hand(tmp_path, ["fuse_panoptic"]), str(truth))
    # Ball: 6 of 8 columns, IoU 6/8. The other lies in the crowd: not counted. PQ = 6/8 / 1.
    ball = {"PQ": 0.75, "SQ": 0.75, "RQ": 1, "TP": 1, "FP": 0, "FN": 0}
    # Grass: likewise; the other lies in void by 8 of its 10 columns, more than half: not counted.
    # Leaf: a false positive.
    leaf = {"PQ": 0, "SQ": 0, "RQ": 0, "TP": 0, "FP": 1, "FN": 0}
    assert figures.categories["panoptic"] == {"ball": ball, "leaf": leaf, "grass": ball}
    means = {"PQ": 1.5 / 3, "SQ": 1.5 / 3, "RQ": 2 / 3, "PQ_things": 0.75 / 2, "PQ_stuff": 0.75}
    assert figures["panoptic"] == pytest.approx(means)


def test_mean_iou_by_hand(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", {"image-0.png": BY_HAND})
    figures = evaluate(labels_by_hand(tmp_path, ["fuse_panoptic"]), str(truth))
    # 16 columns count. Ball: 8 there, 6 found, all right: 6/8. Grass: 8 there, 2 + 6 found, 6 right: 6/10.
    # Leaf: none there, 2 found: 0. Right are 12 of the 16.
    ious = {name: one["IoU"] for name, one in figures.categories["semantic"].items()}
    assert ious == pytest.approx({"ball": 0.75, "leaf": 0, "grass": 0.6})
    assert figures["semantic"] == pytest.approx({"mIoU": 1.35 / 3, "pixel_accuracy": 12 / 16})


@pytest.mark.parametrize("tasks", [["segment_semantic"], ["segment_semantic", "fuse_panoptic"]])
def test_semantic_segments_go_before_panoptic_ones(tmp_path: Path, tasks: list[str]) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", {"image-0.png": BY_HAND})
    figures = evaluate(labels_by_hand(tmp_path, tasks), str(truth))
    assert figures["semantic"] == {"mIoU": 1, "pixel_accuracy": 1}
    assert ("panoptic" in figures) == ("fuse_panoptic" in tasks)


def test_image_in_which_nothing_was_found_costs_its_pixels(tmp_path: Path) -> None:
    truths = {"image-0.png": BY_HAND, "image-1.png": BY_HAND}
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    figures = evaluate(labels_by_hand(tmp_path, ["segment_semantic"], images=2), str(truth))
    assert figures["semantic"] == {"mIoU": 0.5, "pixel_accuracy": 0.5}


def test_segments_have_no_thresholds(tmp_path: Path, labels: LabelDataset, truths: dict[str, Any]) -> None:
    found = evaluate(labels, str(write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)))
    with pytest.raises(UserError, match="there are no thresholds: --thresholds needs a job with objects"):
        write_thresholds(found, f"{tmp_path}/thresholds.json")


def test_without_stuff_its_quality_is_unknown(labels: LabelDataset, truths: dict[str, Any], tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    truth.write_text(truth.read_text().replace('"isthing": 0', '"isthing": 1'))
    figures = evaluate(labels, str(truth))["panoptic"]
    assert figures["PQ_stuff"] == -1
    assert figures["PQ_things"] == figures["PQ"] > 0


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def resized(png: Path) -> None:
    Image.open(png).resize((WIDTH, HEIGHT + 1)).save(png)


def swapped(png: Path) -> None:
    Image.fromarray(np.asarray(Image.open(png))[..., ::-1]).save(png)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"no image-1.png can be read in .*/truth or .*/panoptic: put it there"),
        (resized, "image-1.png is not the image's PNG .*32 x 25 pixels, the image has 32 x 24"),
        (swapped, r"image-1.png has none of its segments: a color is id = R \+ 256 G"),
        (lambda png: png.write_bytes(png.read_bytes()[:60]), "image-1.png is not the image's PNG"),
        (lambda png: png.write_bytes(b""), "image-1.png can be read|image-1.png is not the image's PNG"),
        (lambda png: png.write_bytes(png_header(2**31 - 1, 2**31 - 1)), "image-1.png is not the image's PNG"),
        (lambda png: png.write_bytes(png_header(WIDTH, HEIGHT)), "image-1.png is not the image's PNG"),
    ],
)
def test_png_that_does_not_fit_is_one_line(
    labels: LabelDataset, truths: dict[str, Any], tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    damage(tmp_path / "truth" / "image-1.png")
    with pytest.raises(UserError, match=message) as caught:
        evaluate(labels, str(truth))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "/dev/zero"}, "file_name '/dev/zero' leads out"),
        ({"file_name": "../truth.json"}, "leads out"),
        ({"image_id": 1000}, "2 annotations of the image_id 1000"),
        ({"file_name": 7}, "no COCO panoptic document: annotations"),
        ({"segments_info": {}}, "no COCO panoptic document: annotations"),
        ({"segments_info": [{"id": 0, "category_id": 2, "iscrowd": 0}]}, "no COCO panoptic document: annotations"),
        ({"segments_info": [{"id": 1, "category_id": 2}]}, "no COCO panoptic document: annotations"),
    ],
)
def test_what_is_no_truth_is_one_line(
    labels: LabelDataset, truths: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    document = json.loads(truth.read_text())
    document["annotations"][1] |= changes
    truth.write_text(json.dumps(document))
    with pytest.raises(UserError, match=message) as caught:
        evaluate(labels, str(truth))
    assert "\n" not in str(caught.value)


def test_labels_of_another_kind_are_one_line(labels: LabelDataset, truths: dict[str, Any], tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", tmp_path / "truth", truths)
    objects = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels")
    with pytest.raises(UserError, match="no panoptic segments: label with --task fuse_panoptic"):
        evaluate(objects, str(truth))
    document = json.loads(truth.read_text()) | {"annotations": []}
    truth.write_text(json.dumps(document))
    with pytest.raises(UserError, match="no objects and no proposals: --truth must be a COCO panoptic document"):
        evaluate(labels, str(truth))
