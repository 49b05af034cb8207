"""What benchmarks of whole jobs share: photographs, networks with made-up weights, and the command that labels.

No trained weights can be had without a network, and random ones are unlike them: nothing or everything is an object.
`settle` makes a random network's outputs spread as those of a trained one do: BatchNorm knows the photographs, some
candidates in each image stand out, boxes and masks differ from object to object, most pixels are background.

The functions without arguments are factories, as in `--model python:workload:mask_rcnn`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import ResNet, resnet50, segmentation
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from prelabel.operators.base import Instances, Model, Prediction, Proposals, Task
from prelabel.operators.batches import images_at_once
from prelabel.operators.models import ModelSpec
from prelabel.pipeline.pool import pool_of
from prelabel.pipeline.scenes import make_scene
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.job import Runtime

HERE = Path(__file__).parent
PHOTOS = HERE.parents[1] / "shared" / "data" / "photos"
POOL = pool_of(Runtime(), 1, os.cpu_count() or 1, 0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
"""Workers, threads and batches of a job by default, on a machine without a GPU."""
CLASSES = 91
OBJECTS = 20
CANDIDATES = 150
"""Of an image, above the score threshold."""
LEAST_OF_A_PHOTO = 0.6
"""A picture shows at least so much of a photograph's height and width."""
T = TypeVar("T")


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEGs of that (height, width): pieces of the photographs at hand, half of them mirrored; else of scenes."""
    folder.mkdir(parents=True)
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*"))] if PHOTOS.is_dir() else []
    photos = photos or [Image.fromarray(make_scene(0, index).image) for index in range(10)]
    rng = np.random.default_rng(0)
    for number in range(count):
        piece = _piece(photos[number % len(photos)], size, rng)
        piece.save(folder / f"{number:05d}.jpg", quality=90)
    return folder


def _piece(photo: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(LEAST_OF_A_PHOTO, 1)
    width, height = photo.width * share, photo.height * share
    left, top = rng.random(2) * (photo.width - width, photo.height - height)
    piece = photo.resize(size[::-1], Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else piece


def pixels(path: Path) -> Tensor:
    """uint8 (3, height, width)."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()


def mask_rcnn() -> nn.Module:
    """Mask R-CNN, ResNet-50 with FPN, 800 pixels."""
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_detections_per_img=OBJECTS)


def light_mask_rcnn() -> nn.Module:
    """Mask R-CNN on MobileNetV3 with FPN, 320 pixels: torchvision's light Faster R-CNN and a mask head as light.

    The standard head, four layers of 256 channels for each object, would take longer than all the rest.
    """
    backbone = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d)
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
    return MaskRCNN(
        backbone,
        min_size=320,
        max_size=640,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_test=150,
        rpn_post_nms_top_n_test=150,
        rpn_score_thresh=0.05,
        box_detections_per_img=OBJECTS,
        box_predictor=FastRCNNPredictor(1024, CLASSES),
        mask_head=MaskRCNNHeads(backbone.out_channels, (64, 64), 1),
        mask_predictor=MaskRCNNPredictor(64, 64, CLASSES),
    )


def ssdlite() -> nn.Module:
    """SSDLite on MobileNetV3, 320 pixels."""
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, detections_per_img=OBJECTS)


def lraspp() -> nn.Module:
    """LR-ASPP on MobileNetV3, a shorter side of 520 pixels, 21 labels."""
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)


def classifier() -> ResNet:
    """ResNet-50, a crop of 224 pixels, 1,000 labels."""
    return resnet50()


def nothing() -> Model:
    """A model that finds nothing, at once."""
    return _Nothing()


class _Nothing(Model):
    name = "nothing"
    tasks = frozenset({Task.DETECT})
    categories = CategorySet([Category(1, "nothing")])
    digest = "nothing"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return 0, 0

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        none = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
        return [Prediction(none) for _ in images]


def batches_of(model: Model, images: Sequence[T], size: tuple[int, int]) -> list[Sequence[T]]:
    """Images of one size as a job on this machine lets the model look at them."""
    at_once = images_at_once((model.input_size(*size),), POOL.batch_size, POOL.batch_pixels)
    return [images[first : first + at_once] for first in range(0, len(images), at_once)]


def spec_of(name: str, model: str, folder: Path) -> ModelSpec:
    """The model with settled weights, which stay for the next benchmark: to settle a large network takes minutes."""
    if name == "nothing":
        return ModelSpec(model, path=str(HERE))
    digest = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    kept = Path(tempfile.gettempdir(), f"prelabel-benchmarks-{os.getuid()}", digest, name)
    weights, threshold = kept.with_suffix(".pth"), kept.with_suffix(".threshold")
    if not threshold.exists():
        photos = [pixels(path) for path in sorted(write_pictures(folder / "settle", 10, (240, 320)).glob("*"))]
        torch.manual_seed(0)
        network = globals()[name]()
        settled = settle(network, photos)
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), weights)
        threshold.write_text(json.dumps(settled))
    least = json.loads(threshold.read_text()) or None
    return ModelSpec(model, weights=str(weights), score_threshold=least, device="cpu", path=str(HERE))


def stock_network(name: str, weights: str | None, threshold: float | None) -> Any:
    """The factory's network with these weights, for inference as torchvision has it."""
    network = globals()[name]().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    if threshold is not None:
        getattr(network, "roi_heads", network).score_thresh = threshold
    return network


def stock(name: str, spec: ModelSpec) -> Callable[[Tensor], dict[str, Tensor]]:
    """Torchvision's own way from a uint8 image to what is found in it."""
    network = stock_network(name, spec.weights, spec.score_threshold)

    @torch.inference_mode()
    def look(image: Tensor) -> dict[str, Tensor]:
        if not isinstance(network, segmentation.LRASPP):
            return network([image.float() / 255])[0]
        scores = network(PRESET(image)[None])["out"]
        return {"labels": interpolate(scores, image.shape[1:], mode="bilinear").argmax(1)}

    return look


@torch.no_grad()
def settle(network: nn.Module, photos: Sequence[Tensor]) -> float:
    """Makes a random network's outputs differ as a trained one's do; returns the threshold that CANDIDATES pass."""
    if isinstance(network, MaskRCNN):
        side, network.transform.min_size = network.transform.min_size, (320,)  # for speed
    look = partial(_look, network.eval(), photos)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that is seen
        norm.train()
    look()
    network.eval()
    if isinstance(network, ResNet):
        return 0.0
    if isinstance(network, segmentation.LRASPP):
        coarse, fine = network.classifier.high_classifier, network.classifier.low_classifier
        _spread({coarse: (torch.linspace(3, -5, coarse.out_channels), 1.5), fine: (0.0, 0.1)}, look)
        return 0.0
    if isinstance(network, MaskRCNN):
        threshold = _settle_mask_rcnn(network, look, len(photos))
        network.transform.min_size = side
        return threshold
    heads = network.head.classification_head, network.head.regression_head
    scores, boxes = ([layers[1] for layers in head.module_list] for head in heads)
    return _settle_scores(scores, boxes, look, len(photos))


def _settle_mask_rcnn(network: Any, look: Callable[[], None], photos: int) -> float:
    pyramid, heads = network.backbone.fpn, network.roi_heads
    box_head, predictor, mask_predictor = heads.box_head, heads.box_predictor, heads.mask_predictor
    # Layer by layer, lest what is common to all places drowns what differs, and rounding counts for much.
    for layers in (
        [block[0] for block in pyramid.inner_blocks],
        [block[0] for block in pyramid.layer_blocks],
        [block[0] for block in network.rpn.head.conv],
    ):
        _spread(dict.fromkeys(layers, (0.0, 1.0)), look)
    _spread({network.rpn.head.cls_logits: (0.0, 2.0), network.rpn.head.bbox_pred: (0.0, 0.2)}, look)
    for layer in (box_head.fc6, box_head.fc7):
        _spread({layer: (0.0, 1.0)}, look)
    heads.score_thresh = _settle_scores([predictor.cls_score], [predictor.bbox_pred], look, photos)
    kernel = mask_predictor.conv5_mask.weight
    kernel.copy_(kernel.mean((2, 3), keepdim=True).expand_as(kernel))  # else its 2 x 2 pixels are noise
    for layer in heads.mask_head:
        _spread({layer[0]: (0.0, 1.0)}, look)
    _spread({mask_predictor.mask_fcn_logits: (0.0, 3.0)}, look)
    return float(heads.score_thresh)


def _settle_scores(
    scores: Sequence[nn.Module], boxes: Sequence[nn.Module], look: Callable[[], None], photos: int
) -> float:
    background = torch.tensor([4.0] + [0.0] * (CLASSES - 1))
    _spread(dict.fromkeys(scores, (background, 1.5)) | dict.fromkeys(boxes, (0.0, 0.5)), look)
    logits = torch.cat([_rows(one, CLASSES) for some in _outputs(scores, look).values() for one in some])
    return float(logits.softmax(1)[:, 1:].flatten().sort(descending=True).values[CANDIDATES * photos])


def _look(network: nn.Module, photos: Sequence[Tensor]) -> None:
    is_detector = not isinstance(network, ResNet | segmentation.LRASPP)
    if is_detector:
        network([photo.float() / 255 for photo in photos])
        return
    for photo in photos:
        network(PRESET(photo)[None])


PRESET = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.transforms()


def _outputs(layers: Iterable[nn.Module], look: Callable[[], None]) -> dict[nn.Module, list[Tensor]]:
    found: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [layer.register_forward_hook(lambda layer, _, output: found[layer].append(output)) for layer in found]
    look()
    for hook in hooks:
        hook.remove()
    return found


def _rows(output: Tensor, width: int) -> Tensor:
    return output.movedim(1, -1).reshape(-1, width)


def _spread(wanted: Mapping[Any, tuple[Tensor | float, float]], look: Callable[[], None]) -> None:
    """Gives each channel of these layers' outputs such a mean and standard deviation over all photographs."""
    for layer, outputs in _outputs(wanted, look).items():
        mean, deviation = torch.as_tensor(wanted[layer][0]).flatten(), wanted[layer][1]
        width = outputs[0].shape[1]
        rows = torch.cat([_rows(one, width) for one in outputs])
        scale = deviation / rows.std(0).clamp(min=1e-12)
        layer.bias.copy_((layer.bias - rows.mean(0)) * scale + mean.repeat(width // len(mean)))  # for each anchor
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))


@dataclass(frozen=True)
class Ran:
    """How a command went.

    Attributes:
        rate: images a second in the steady state, see `ran`
        rest: seconds of the command that were not that: Ray and the models start, everything ends
        timings: seconds of all units, by what took them, for a job
    """

    rate: float
    rest: float
    timings: Mapping[str, float] = field(default_factory=dict)


def run_job(images: Path, output: Path, spec: ModelSpec, workers: int, *options: str) -> Ran:
    """Labels the images with the `prelabel` command."""
    command = [Path(sys.executable).with_name("prelabel"), "run", images, "--output", output, "--model", spec.name]
    for option, value in (("--weights", spec.weights), ("--score-threshold", spec.score_threshold)):
        command += [] if value is None else [option, str(value)]
    seconds = run_command(*command, *options)
    commits = [json.loads(path.read_text()) for path in (output / "_manifest" / "commits").glob("*.json")]
    ends = [(datetime.fromisoformat(one["committed"]).timestamp(), one["counts"]["images"]) for one in commits]
    timings = [Counter(one["timings"]) for one in commits]
    return ran(ends, workers, seconds, {name: sum(one[name] for one in timings) for name in timings[0]})


def run_command(*command: str | Path) -> float:
    """Seconds of a command that finds this module; what it says on standard error is shown where it fails."""
    began = time.perf_counter()
    told = subprocess.run(command, cwd=HERE, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(told.stderr)
    return time.perf_counter() - began


def ran(
    ends: Iterable[tuple[float, int]], workers: int, seconds: float, timings: Mapping[str, float] | None = None
) -> Ran:
    """Of work whose steady state is from when each worker has finished something until the first one has no more to do.

    Which worker comes to be the last one, and how long alone, is no matter of speed, and would be half of a short run.

    Args:
        ends: when so many images were finished, in seconds of a clock
        workers: that work at the same time
        seconds: of the whole command
        timings: of what took them
    """
    ends = sorted(ends)
    first, last = workers - 1, len(ends) - workers
    rate = sum(images for _, images in ends[first + 1 : last + 1]) / (ends[last][0] - ends[first][0])
    return Ran(rate, seconds - sum(images for _, images in ends) / rate, timings or {})
