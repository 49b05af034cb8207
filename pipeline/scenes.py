"""Generated demo scenes with exact instance and panoptic truth: things that occlude each other on textured ground.

Scene ``index`` of ``seed`` depends on those two numbers alone. Every shape is an inside-test on the pixel grid, and the
boolean array that paints a thing is its ground truth, so the truth has no rounding of its own. numpy and Pillow only.
"""

import colorsys
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

Mask = npt.NDArray[np.bool_]
Plane = npt.NDArray[np.float32]
Shape = Callable[[Plane, Plane, np.random.Generator], Mask]
"""Inside-test of a thing of radius 1 around the origin, on (rows, columns) planes of u (right) and v (down)."""
Texture = Callable[[int, int, np.random.Generator], Plane]
"""Brightness of a ground, around 1, on a plane of the given height and width."""

MIN_SIDE, MAX_SIDE = 192, 320
MAX_THINGS = 10
MIN_VISIBLE_PIXELS = 120
MIN_VISIBLE_FRACTION = 0.3
LIGHT = (-0.45, -0.6)
"""Direction towards the light in the image plane (right, down)."""


@dataclass(frozen=True)
class Instance:
    """One thing: its category and its visible pixels, a bool (height, width) mask."""

    category_id: int
    mask: Mask


@dataclass(frozen=True)
class Scene:
    """One picture and its truth.

    ``image``: uint8 (height, width, 3) RGB. ``instances``: front to back, masks disjoint. ``stuff``: uint8
    (height, width), the stuff category of every pixel that no thing covers, 0 elsewhere; so masks and ``stuff``
    together are a panoptic truth.
    """

    image: npt.NDArray[np.uint8]
    instances: tuple[Instance, ...]
    stuff: npt.NDArray[np.uint8]


def make_scene(seed: int, index: int) -> Scene:
    """Return scene ``index`` of ``seed`` (both >= 0): the same pixels and truth every time, whatever else was made."""
    rng = np.random.default_rng([seed, index])
    height, width = (int(side) for side in rng.integers(MIN_SIDE, MAX_SIDE + 1, size=2))
    stuff = _regions(height, width, rng)
    canvas = _paint_ground(stuff, rng)
    things = _place_things(height, width, rng)
    for thing in reversed(things):
        thing.paint(canvas, rng)
    canvas *= rng.uniform(0.85, 1.1)
    canvas += rng.normal(0.0, rng.uniform(1.0, 5.0), canvas.shape[:2]).astype(np.float32)[..., None]

    instances = tuple(Instance(thing.category_id, thing.visible) for thing in things)
    for instance in instances:
        stuff[instance.mask] = 0
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), instances, stuff)


def write_scenes(folder: str | Path, count: int, seed: int) -> Path:
    """Write scenes 0 to ``count`` - 1 as ``images/scene_00000.jpg``, ... with their truth as COCO documents.

    ``instances.json`` has the thing categories: image ids from 1, compressed RLE, boxes in pixels (x, y, width,
    height). ``panoptic.json`` has all categories, its PNGs are in ``panoptic/``. Returns the folder.
    """
    folder = Path(folder)
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations, panoptic = [], [], []
    for index in range(count):
        scene = make_scene(seed, index)
        name = f"scene_{index:05d}.jpg"
        Image.fromarray(scene.image).save(folder / "images" / name, quality=95)
        height, width = scene.stuff.shape
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        annotations += [_annotation(instance, index + 1) for instance in scene.instances]
        segments, pixels = _panoptic(scene)
        Image.fromarray(pixels).save(folder / "panoptic" / f"scene_{index:05d}.png")
        panoptic.append({"image_id": index + 1, "file_name": f"scene_{index:05d}.png", "segments_info": segments})
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    _write(folder / "instances.json", images, annotations, THING_CATEGORIES)
    _write(folder / "panoptic.json", images, panoptic, CATEGORIES)
    return folder


def _write(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document), encoding="utf-8")


def _panoptic(scene: Scene) -> tuple[list[dict[str, Any]], npt.NDArray[np.uint8]]:
    """The scene's segments, things first, and their ids as COCO paints them: R + 256 G + 256^2 B."""
    masks = [(instance.category_id, instance.mask) for instance in scene.instances]
    masks += [(int(category_id), scene.stuff == category_id) for category_id in np.unique(scene.stuff[scene.stuff > 0])]
    pixels = np.zeros((*scene.stuff.shape, 3), np.uint8)  # fewer than 256 segments: red is enough
    segments = []
    for number, (category_id, mask) in enumerate(masks, start=1):
        pixels[mask, 0] = number
        box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))).astype(int).tolist()
        area = int(mask.sum())
        segments.append({"id": number, "category_id": category_id, "area": area, "bbox": box, "iscrowd": 0})
    return segments, pixels


def _annotation(instance: Instance, image_id: int) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    return {
        "image_id": image_id,
        "category_id": instance.category_id,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": int(instance.mask.sum()),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": 0,
    }


# Ground: noise-warped Voronoi regions, each painted with the texture of its stuff.


def _noise(height: int, width: int, cell_height: float, cell_width: float, rng: np.random.Generator) -> Plane:
    """Smooth noise, about -1 to 1, whose blobs measure ``cell_height`` x ``cell_width`` pixels."""
    grid = (max(2, round(height / cell_height)), max(2, round(width / cell_width)))
    coarse = Image.fromarray(rng.uniform(-1, 1, grid).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _regions(height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    kinds = rng.permutation(list(_STUFF))[: rng.integers(2, 5)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y += 22 * _noise(height, width, 50, 50, rng) + 5 * _noise(height, width, 11, 11, rng)
    x += 22 * _noise(height, width, 50, 50, rng) + 5 * _noise(height, width, 11, 11, rng)
    centres = rng.uniform((0, 0), (height, width), size=(len(kinds), 2)).astype(np.float32)
    distances = [(y - row) ** 2 + (x - column) ** 2 for row, column in centres]
    return kinds[np.argmin(distances, axis=0)].astype(np.uint8)


def _paint_ground(stuff: npt.NDArray[np.uint8], rng: np.random.Generator) -> Plane:
    height, width = stuff.shape
    brightness = np.empty((height, width), np.float32)
    colours = np.zeros((max(_STUFF) + 1, 3), np.float32)
    for number in np.unique(stuff):
        texture, colour = _STUFF[number]
        here = stuff == number
        brightness[here] = texture(height, width, rng)[here]
        colours[number] = colour * rng.uniform(0.92, 1.08, 3)
    brightness *= 1 + 0.12 * _noise(height, width, 120, 120, rng)
    return colours[stuff] * brightness[..., None]


def _grass(height: int, width: int, rng: np.random.Generator) -> Plane:
    return 1 + 0.3 * _noise(height, width, 9, 2, rng) + 0.15 * _noise(height, width, 30, 30, rng)


def _water(height: int, width: int, rng: np.random.Generator) -> Plane:
    y = np.arange(height, dtype=np.float32)[:, None]
    waves = np.sin(y * np.float32(rng.uniform(0.3, 0.6)) + 2.5 * _noise(height, width, 14, 40, rng))
    return 1 + 0.15 * waves + 0.1 * _noise(height, width, 4, 16, rng)


def _sand(height: int, width: int, rng: np.random.Generator) -> Plane:
    return 1 + 0.12 * _noise(height, width, 1.5, 1.5, rng) + 0.08 * _noise(height, width, 20, 45, rng)


def _brick(height: int, width: int, rng: np.random.Generator) -> Plane:
    brick_height, brick_width = int(rng.integers(9, 15)), int(rng.integers(20, 32))
    row = np.arange(height)[:, None] // brick_height
    x = np.arange(width)[None, :] + row % 2 * (brick_width // 2)
    tint = rng.uniform(0.8, 1.15, (height // brick_height + 1, width // brick_width + 2)).astype(np.float32)
    mortar = (np.arange(height)[:, None] % brick_height < 2) | (x % brick_width < 2)
    return np.where(mortar, np.float32(1.45), tint[row, x // brick_width]) + 0.06 * _noise(height, width, 2, 2, rng)


# Things: placed front to back, so that a thing which would hardly show is left out of picture and truth alike.


@dataclass
class _Thing:
    category_id: int
    radius: float
    window: tuple[slice, slice]
    u: Plane
    v: Plane
    inside: Mask
    visible: Mask

    def paint(self, canvas: Plane, rng: np.random.Generator) -> None:
        """Paint the whole thing and its shadow; what lies in front is painted over it later."""
        _cast_shadow(canvas, self)
        colour = _pattern(self.u, self.v, rng) * _shading(self, rng)[..., None]
        canvas[self.window][self.inside] = colour[self.inside]


def _place_things(height: int, width: int, rng: np.random.Generator) -> list[_Thing]:
    things: list[_Thing] = []
    covered = np.zeros((height, width), bool)
    for _ in range(rng.integers(3, MAX_THINGS + 1)):
        thing = _place(covered, rng)
        shown, whole = np.count_nonzero(thing.visible), np.count_nonzero(thing.inside)
        if shown >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * whole):
            things.append(thing)
            covered[thing.window] |= thing.inside
    return things


def _place(covered: Mask, rng: np.random.Generator) -> _Thing:
    height, width = covered.shape
    category = THING_CATEGORIES[rng.integers(len(THING_CATEGORIES))]
    radius = float(np.exp(rng.uniform(np.log(15), np.log(62))))
    row, column = rng.uniform((0, 0), (height, width))
    window = (
        slice(max(0, int(row - radius)), min(height, int(row + radius) + 2)),
        slice(max(0, int(column - radius)), min(width, int(column + radius) + 2)),
    )
    y, x = np.mgrid[window].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    x, y = x - np.float32(column), y - np.float32(row)
    u, v = cosine * x + sine * y, cosine * y - sine * x
    inside = _SHAPES[category["name"]](u, v, rng)
    visible = np.zeros(covered.shape, bool)
    visible[window] = inside & ~covered[window]
    return _Thing(category["id"], radius, window, u, v, inside, visible)


def _ball(u: Plane, v: Plane, rng: np.random.Generator) -> Mask:
    return u * u + v * v < 1


def _box(u: Plane, v: Plane, rng: np.random.Generator) -> Mask:
    corner = rng.uniform(0.6, 1.1)
    return (np.abs(u) < np.cos(corner)) & (np.abs(v) < np.sin(corner))


def _star(u: Plane, v: Plane, rng: np.random.Generator) -> Mask:
    points, waist = rng.integers(5, 8), rng.uniform(0.42, 0.55)
    half = np.pi / points
    angle = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)
    along, across = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    # Inside the edge that runs from a tip (1, 0) to the neighbouring inner corner.
    corner_along, corner_across = waist * np.cos(half), waist * np.sin(half)
    return (1 - along) * corner_across > across * (1 - corner_along)


def _ring(u: Plane, v: Plane, rng: np.random.Generator) -> Mask:
    square = u * u + v * v
    return (square < 1) & (square > rng.uniform(0.45, 0.65) ** 2)


def _leaf(u: Plane, v: Plane, rng: np.random.Generator) -> Mask:
    belly = rng.uniform(0.35, 0.55)
    # Two circles through the tips (-1, 0) and (1, 0), their centres at distance `away` on either side.
    away = (1 - belly**2) / (2 * belly)
    return u * u + (np.abs(v) + away) ** 2 < 1 + away**2


def _pattern(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Two colours in a pattern that turns with the thing: plain, stripes, rings, dots or checks; float (h, w, 3)."""
    hue = rng.uniform()
    first = _colour(hue, rng)
    second = _colour(hue + rng.normal(0, 0.12), rng)
    wave = np.float32(np.pi * rng.uniform(2, 4))
    marked = (
        np.zeros(u.shape, bool),
        np.sin(wave * u) > 0,
        np.sin(wave * np.hypot(u, v)) > 0.2,
        np.cos(wave * u) + np.cos(wave * v) > 0.9,
        np.sin(wave * u) * np.sin(wave * v) > 0,
    )[rng.choice(5, p=(0.4, 0.2, 0.1, 0.15, 0.15))]
    return np.where(marked[..., None], second, first)


def _colour(hue: float, rng: np.random.Generator) -> Plane:
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.45, 0.95), rng.uniform(0.6, 1.0))
    return np.asarray(rgb, np.float32) * 255


def _shading(thing: _Thing, rng: np.random.Generator) -> Plane:
    """Brightness factor: a slope towards the light, rounded off on a ball, with a little grain."""
    height, width = thing.inside.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    shade = 0.95 + 0.2 * (LIGHT[0] * x + LIGHT[1] * y) + 0.05 * _noise(height, width, 3, 3, rng)
    if thing.category_id == THING_CATEGORIES[0]["id"]:
        towards = np.sqrt(np.clip(1 - thing.u**2 - thing.v**2, 0, None))
        shade *= 0.55 + 0.5 * towards
    return shade


def _cast_shadow(canvas: Plane, thing: _Thing) -> None:
    shift = max(2, round(thing.radius / 10))
    rows, columns = thing.window
    below = canvas[rows.start + shift : rows.stop + shift, columns.start + shift : columns.stop + shift]
    below[thing.inside[: below.shape[0], : below.shape[1]]] *= 0.6


_SHAPES: dict[str, Shape] = {"ball": _ball, "box": _box, "star": _star, "ring": _ring, "leaf": _leaf}
_GROUNDS: dict[str, tuple[Texture, tuple[int, int, int]]] = {
    "grass": (_grass, (88, 140, 60)),
    "water": (_water, (52, 112, 165)),
    "sand": (_sand, (214, 186, 138)),
    "brick": (_brick, (158, 82, 62)),
}

THING_CATEGORIES: list[dict[str, Any]] = [
    {"id": number, "name": name, "supercategory": "shape", "isthing": 1} for number, name in enumerate(_SHAPES, start=1)
]
STUFF_CATEGORIES: list[dict[str, Any]] = [
    {"id": number, "name": name, "supercategory": "ground", "isthing": 0}
    for number, name in enumerate(_GROUNDS, start=len(_SHAPES) + 1)
]
CATEGORIES = THING_CATEGORIES + STUFF_CATEGORIES
"""COCO panoptic category dicts of the scenes: things 1 to 5, stuff 6 to 9."""
_STUFF = {category["id"]: _GROUNDS[category["name"]] for category in STUFF_CATEGORIES}
