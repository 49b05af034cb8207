"""Stock torchvision one image at a time, and our models in a job's batches, on the same threads of the processor.

    PYTHONPATH=benchmarks python benchmarks/forward.py [--quick] [--threads N] [NETWORK...]

Stock is eager float32 as anyone calls it: an image as floats in, full-size masks out. Ours takes the uint8 image and
makes run-length masks. What both find is compared first: the same objects, boxes within 0.01 pixels.

Two networks have trained weights: the bundled one for scenes, and a detector of blood cells where ../shared/data is
there. For them the AP of COCO (pycocotools) of stock, float32 and bf16 on the same images is printed. The other
weights are made up, see workload.py. How fast bf16 is, is measured where the processor has such arithmetic. Not shown:
other batches (see sweep.py), and a GPU (see gpu.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workload
from measure import REPEATS, in_turn, print_table, ratios, seconds, spread
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from prelabel.operators.base import Instances, Model, Prediction, Task
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.scenes import SEMANTIC
from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, build_scenes_network
from prelabel.operators.options import Options
from prelabel.operators.precision import has_bf16
from prelabel.operators.weights import read_weights
from prelabel.pipeline.scenes import write_scenes
from prelabel.schemas.rle import encode

DATA = workload.PHOTOS.parent
CELLS = DATA / "weights" / "blood_cells_fasterrcnn_mobilenet_v3_large_320_fpn.pth"
NETWORKS = {
    "mask_rcnn": ("python:workload:mask_rcnn", 4),
    "light_mask_rcnn": ("python:workload:light_mask_rcnn", 24),
    "ssdlite": ("python:workload:ssdlite", 48),
    "lraspp": ("torchvision:lraspp_mobilenet_v3_large", 24),
}
"""How the networks are asked for, and how many images make a measurement."""
SIZE = 480, 640
UNSEEN = 1000
"""A seed of scenes."""
BF16 = Options(precision="bf16")


def same(found: Instances, expected: dict[str, Tensor]) -> int:
    """How many of the expected objects are found: same label, box within 0.01 pixels, score within 1e-3."""
    boxes, scores, labels = (expected[name].numpy() for name in ("boxes", "scores", "labels"))
    near = np.abs(found.boxes[:, None] - boxes).max(2, initial=0) < 0.01
    near &= np.abs(found.scores[:, None] - scores) < 1e-3
    return int((near & (found.category_ids[:, None] == labels)).any(0).sum())


def predicted(model: Model, images: Sequence[Tensor]) -> list[Prediction]:
    """In the batches of a job."""
    tasks = model.tasks - {Task.PROPOSE}
    return [one for some in workload.batches_of(model, images, SIZE) for one in model.predict(some, tasks)]


def agreement(model: Model, stock: Callable[[Tensor], dict[str, Tensor]], images: Sequence[Tensor]) -> str:
    """What share of stock's objects, or of its pixels' labels, ours are."""
    alike = total = 0
    for image, mine in zip(images, predicted(model, images), strict=True):
        expected = stock(image)
        if mine.instances is None:
            areas = {one: mask.area for one, mask in zip(mine.semantic.category_ids, mine.semantic.masks, strict=True)}
            theirs = np.bincount(expected["labels"].flatten().numpy(), minlength=21)[1:]
            total += int(theirs.sum())
            alike += sum(min(int(count), areas.get(label, 0)) for label, count in enumerate(theirs, 1))
        else:
            alike, total = alike + same(mine.instances, expected), total + len(expected["boxes"])
    return f"{alike:,} of {total:,}"


def compared(name: str, folder: Path, quick: bool) -> list[str]:
    """A row of the table of speeds."""
    asked, count = NETWORKS[name]
    spec = workload.spec_of(name, asked, folder)
    count = max(1, count // 8) if quick else count
    images = [workload.pixels(one) for one in sorted(workload.write_pictures(folder / "images", count, SIZE).glob("*"))]
    stock = workload.stock(name, spec)
    models = {"ours": load_model(spec), "bf16": load_model(replace(spec, options=BF16))}
    if not has_bf16():
        del models["bf16"]
    told = agreement(models["ours"], stock, images)  # which compiles as well
    ways = {way: lambda model=model: seconds(lambda: predicted(model, images)) for way, model in models.items()}
    found = in_turn({"stock": lambda: seconds(lambda: list(map(stock, images))), **ways}, 1 if quick else REPEATS)
    milliseconds = {way: [1000 * one / len(images) for one in took] for way, took in found.items()}
    return [
        name,
        told,
        *(spread(took) for took in milliseconds.values()),
        *(spread(ratios(found["stock"], found[way]), ".2f") for way in models),
    ]


def precision(title: str, truth: dict[str, Any], images: dict[int, Tensor], spec: ModelSpec, stock: Any) -> list[str]:
    """A row of the table of AP, in points: stock, ours, and ours in bf16."""
    said: list[dict[str, float]] = [_ap(truth, {one: _of_stock(stock(image)) for one, image in images.items()})]
    for options in (Options(), BF16):
        model = load_model(replace(spec, options=options))
        tasks = model.tasks & {Task.DETECT, Task.SEGMENT_INSTANCES}
        found = {one: _of_ours(model.predict([image], tasks)[0].instances) for one, image in images.items()}
        said.append(_ap(truth, found))
    kinds = list(said[0])
    return [title, *("  ".join(f"{kind} {ap[kind]:.2f}" for kind in kinds) for ap in said)]


def _of_stock(found: dict[str, Tensor]) -> list[dict[str, Any]]:
    masks = [encode(mask[0].numpy() > 0.5) for mask in found.get("masks", ())]
    return _results(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), masks)


def _of_ours(found: Instances | None) -> list[dict[str, Any]]:
    assert found is not None
    masks = [mask.rle for mask in found.masks or ()]
    return _results(found.boxes.tolist(), found.scores.tolist(), found.category_ids.tolist(), masks)


def _results(boxes: Any, scores: Any, labels: Any, masks: Sequence[Any]) -> list[dict[str, Any]]:
    rows = [
        {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score, "category_id": label}
        for (x0, y0, x1, y1), score, label in zip(boxes, scores, labels, strict=True)
    ]
    for row, mask in zip(rows, masks, strict=False):
        row["segmentation"] = mask.to_coco()
    return rows


def _ap(truth: dict[str, Any], found: dict[int, list[dict[str, Any]]]) -> dict[str, float]:
    """COCO's AP, in points, of boxes and, if there are any, of masks."""
    results = [row | {"image_id": one} for one, rows in found.items() for row in rows]
    kinds = ["bbox"] + ["segm"] * ("segmentation" in results[0])
    points = {}
    with contextlib.redirect_stdout(io.StringIO()):
        document = COCO()
        document.dataset = truth
        document.createIndex()
        for kind in kinds:
            evaluation = COCOeval(document, document.loadRes(results), kind)
            evaluation.params.imgIds = list(found)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            points[kind] = 100 * evaluation.stats[0]
    return points


def images_of(truth: dict[str, Any], folder: Path, count: int) -> dict[int, Tensor]:
    """The first of the document's images, by id."""
    return {one["id"]: workload.pixels(folder / one["file_name"]) for one in truth["images"][:count]}


def scenes(count: int, folder: Path) -> list[str]:
    """The bundled network on scenes that it has not seen."""
    truth = json.loads((write_scenes(folder, count, UNSEEN) / "instances.json").read_text())
    network = build_scenes_network().eval()
    tensors = {name: one for name, one in read_weights(str(SCENES_WEIGHTS)).items() if not name.startswith(SEMANTIC)}
    network.load_state_dict(tensors)
    spec = ModelSpec("scenes:maskrcnn", device="cpu")
    return precision(f"{count} scenes", truth, images_of(truth, folder / "images", count), spec, stock_of(network))


def blood_cells(count: int) -> list[str]:
    """A detector of blood cells on photographs, most of which it was trained on."""
    folder = DATA / "blood_cells"
    truth = json.loads((folder / "instances.json").read_text())
    network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4).eval()
    network.load_state_dict({name: one.float() for name, one in torch.load(CELLS, weights_only=True).items()})
    spec = ModelSpec("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", str(CELLS), device="cpu")
    images = images_of(truth, folder / "images", count)
    return precision(f"{count} images of blood cells", truth, images, spec, stock_of(network))


def stock_of(network: Any) -> Callable[[Tensor], dict[str, Tensor]]:
    """One image alone, in eager float32."""

    @torch.inference_mode()
    def look(image: Tensor) -> dict[str, Tensor]:
        return network([image.float() / 255])[0]

    return look


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=", ".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=1, help="of torch; a job on a processor gives a worker one")
    parser.add_argument("--quick", action="store_true", help="a try of a minute: fewer images, one repeat")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    networks = given.networks or [one for one in NETWORKS if not (given.quick and one == "mask_rcnn")]
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(name, Path(folder, name), given.quick) for name in networks]
        ours = ["ours", "ours, bf16"] if has_bf16() else ["ours"]
        columns = ["network", "the same", "stock, ms/image", *ours, *(f"stock / {one}" for one in ours)]
        print_table(f"Images of {SIZE[0]} x {SIZE[1]}, {given.threads} thread", columns, rows)
        count = 10 if given.quick else 60
        rows = [scenes(count, Path(folder, "scenes"))] + ([blood_cells(count)] if CELLS.exists() else [])
    print_table("AP of COCO, in points", ["images", "stock", "ours", "ours, bf16"], rows)


if __name__ == "__main__":
    main()
