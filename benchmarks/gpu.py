"""How many images a second detectors label on a GPU: torchvision's own way against ours, in float32 and bfloat16.

RetinaNet, Faster and Mask R-CNN on ResNet-50 with FPN at 800 pixels, from decoded uint8 images in memory to boxes and
run-length masks on the host; the stock way pastes each mask in full size and encodes it with the encoder of
`prelabel.schemas.rle`. Weights are random, settled so that some 150 candidates of an image pass the threshold, and the
images are blurred noise: speed and equality in float32 can be told from them. What bfloat16 does to results can't: a
random network makes much of each rounding, torchvision's as well. Nothing is decoded or written here.

Needs torch, torchvision, numba, pillow, pyarrow, orjson and pycocotools, no ray; prelabel itself need not be installed:

    mkdir -p .namespace/prelabel && for name in schemas operators; do ln -sfn ../../$name .namespace/prelabel/; done
    PYTHONPATH=.namespace:benchmarks python3 benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import in_turn, machine, print_table, ratios, seconds, spread
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.ops import box_iou

from prelabel.operators.base import Instances, Model, Task
from prelabel.operators.batched import batch_postprocessing
from prelabel.operators.detector import DetectorModel
from prelabel.operators.precision import BFloat16Model
from prelabel.schemas.rle import encode

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("retinanet", "fasterrcnn", "maskrcnn")
PACKAGES = ("torch", "torchvision", "numba")
CANDIDATES = 150  # of an image, above the score threshold
SAME = 0.98  # of stock's objects must be ours, in float32
Way = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Setting:
    """What is measured: pixels of the shorter side, images of a batch, batches of a measurement, proposals."""

    device: torch.device
    side: int
    image: tuple[int, int]
    batch: int
    batches: int
    repeats: int
    compile: bool
    proposals: int | None = None


# ---- networks


def build(name: str, setting: Setting, images: Sequence[Tensor]) -> nn.Module:
    """With random weights, on the device."""
    torch.manual_seed(0)
    builder = getattr(detection, f"{name}_resnet50_fpn")
    size = {"min_size": setting.side, "max_size": setting.side * 5 // 3}
    if setting.proposals and "rcnn" in name:
        size |= {"rpn_post_nms_top_n_test": setting.proposals, "box_detections_per_img": setting.proposals // 10}
    network = builder(weights=None, weights_backbone=None, **size).to(setting.device)
    with torch.no_grad():
        settle(network, [image.to(setting.device).float() / 255 for image in images])
    return network


def settle(network: Any, images: list[Tensor]) -> None:
    """Makes outputs differ from place to place as a trained network's do, and sets the threshold."""
    look = partial(network.eval(), images)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all that is seen
        norm.train()
    network.backbone(network.transform(images)[0].tensors)
    network.eval()
    heads, pyramid = getattr(network, "roi_heads", None), network.backbone.fpn
    (network if heads is None else heads).score_thresh = 2.0  # while it is not known
    for blocks in (pyramid.inner_blocks, pyramid.layer_blocks):  # lest what is the same everywhere drowns the rest
        standardise([block[0] for block in blocks], look)
    if heads is None:
        classification, regression = network.head.classification_head, network.head.regression_head
        for layers in zip(classification.conv, regression.conv, strict=True):
            standardise([layer[0] for layer in layers], look)
        standardise([regression.bbox_reg], look, 0.2)
        scores = standardise([classification.cls_logits], look, 2.0, -6.0).sigmoid()
        network.score_thresh = threshold(scores, len(images))
        return
    standardise([layer[0] for layer in network.rpn.head.conv], look)
    standardise([network.rpn.head.cls_logits], look, 2.0)
    standardise([network.rpn.head.bbox_pred], look, 0.2)
    for layer in (heads.box_head.fc6, heads.box_head.fc7):
        standardise([layer], look)
    standardise([heads.box_predictor.bbox_pred], look, 1.0)
    scores = standardise([heads.box_predictor.cls_score], look, 2.0).softmax(-1)[:, 1:]
    heads.score_thresh = threshold(scores, len(images))
    if heads.has_mask():
        standardise([heads.mask_predictor.mask_fcn_logits], look, 3.0)


def standardise(layers: list[Any], look: Callable[[], Any], deviation: float = 1.0, mean: float = 0.0) -> Tensor:
    """Gives each channel of the layers' outputs that mean and deviation; returns the last one's output then."""
    caught: dict[Any, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [one.register_forward_hook(lambda layer, _, output: caught[layer].append(output)) for one in layers]
    look()
    for hook in hooks:
        hook.remove()
    for layer in layers:
        values = torch.cat([one.transpose(0, 1).flatten(1) for one in caught[layer]], 1)
        scale = deviation / values.std(1).clamp(min=1e-6)
        layer.weight.data *= scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layer.bias.data = (layer.bias - values.mean(1)) * scale + mean
    return ((values - values.mean(1, keepdim=True)) * scale[:, None] + mean).T


def threshold(scores: Tensor, images: int) -> float:
    """The score that so many candidates of an image are above."""
    return float(scores.flatten().topk(CANDIDATES * images).values[-1])


# ---- ways


def stock_way(network: nn.Module, device: torch.device, bfloat16: bool) -> Way:
    """Torchvision's own inference, and its masks encoded."""

    @torch.inference_mode()
    def look(images: Sequence[Tensor]) -> list[dict[str, Any]]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            found = network([image.to(device).float() / 255 for image in images])
        on_host = [{name: values.cpu() for name, values in one.items() if name != "masks"} for one in found]
        for one, host in zip(found, on_host, strict=True):
            if "masks" in one:
                host["masks"] = [encode(mask.cpu().numpy()) for mask in (one["masks"] > 0.5)[:, 0]]
        return on_host

    return look


def our_model(network: nn.Module, setting: Setting, bfloat16: bool, compiled: bool = False) -> Model:
    """As a job loads it."""
    owner = getattr(network, "roi_heads", network)
    batch_postprocessing(network)
    model: Model = DetectorModel(
        network, name="torchvision:random", score_threshold=owner.score_thresh, device=setting.device.type
    )
    for name in ("backbone", "head", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head") if compiled else ():
        part: Any = network
        for attribute in name.split("."):
            part = getattr(part, attribute, None)
        if part is not None:
            part.compile(dynamic=name.startswith("roi_heads"))
    return BFloat16Model(model, setting.device) if bfloat16 else model


def our_way(model: Model) -> Way:
    """All that the model can do."""
    tasks = model.tasks - {Task.PROPOSE}
    return lambda images: [prediction.instances for prediction in model.predict(images, tasks)]


def ways_of(network: nn.Module, setting: Setting) -> dict[str, Way]:
    """By name, stock in float32 first; each has a network of its own."""
    ways: dict[str, Way] = {}
    for bfloat16 in (False, True):
        precision = "bf16" if bfloat16 else "float32"
        if not bfloat16 or setting.device.type == "cuda":  # 50 times slower on a processor that has no such numbers
            ways[f"stock {precision}"] = stock_way(copy.deepcopy(network), setting.device, bfloat16)
        ways[f"ours {precision}"] = our_way(our_model(copy.deepcopy(network), setting, bfloat16))
    if setting.compile:
        ways["ours bf16 compiled"] = our_way(our_model(copy.deepcopy(network), setting, True, compiled=True))
    return ways


# ---- what they say


def same_objects(stock: Sequence[dict[str, Any]], ours: Sequence[Instances]) -> float:
    """Which share of stock's objects ours has: the same label, the score within 1e-3, an overlap over 0.99."""
    found = total = 0
    for expected, one in zip(stock, ours, strict=True):
        overlaps = box_iou(expected["boxes"].float(), torch.from_numpy(one.boxes)) > 0.99
        labels = expected["labels"][:, None] == torch.from_numpy(one.category_ids)
        scores = (expected["scores"].float()[:, None] - torch.from_numpy(one.scores)).abs() < 1e-3
        found += int((overlaps & labels & scores).any(1).sum())
        total += len(expected["labels"])
    return found / max(total, 1)


def check(ways: dict[str, Way], images: Sequence[Tensor]) -> dict[str, float]:
    """Objects of an image, and the share of stock's that is ours; in float32, as both round in their own way."""
    cudnn, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    stock = ways["stock float32"](images)
    share = same_objects(stock, ways["ours float32"](images))
    torch.backends.cudnn.allow_tf32 = cudnn
    if share < SAME:
        raise SystemExit(f"ours float32 has {share:.3f} of stock's objects: not the same network")
    return {"objects": sum(len(one["labels"]) for one in stock) / len(stock), "ours float32": share}


# ---- how fast


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def speed(way: Way, images: Sequence[Tensor], setting: Setting) -> float:
    """Images a second."""

    def work() -> None:
        for start in range(0, len(images), setting.batch):
            way(images[start : start + setting.batch])
        wait(setting.device)

    return len(images) / seconds(work)


def flops(network: nn.Module, setting: Setting, image: Tensor) -> int:
    """Of one image: products and sums of its convolutions and matrices."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network([image.to(setting.device).float() / 255])
    return int(counter.get_total_flops())


def active(way: Way, images: Sequence[Tensor], setting: Setting) -> float | None:
    """The share of the time in which at least one kernel runs on the GPU; None without one."""
    if setting.device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        speed(way, images, setting)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - spans[0][0])


def measure_network(name: str, setting: Setting, peak: float) -> dict[str, Any]:
    """All that is measured of one network, as JSON."""
    images = made_images(setting)
    network = build(name, setting, images[: min(4, setting.batch)])
    ways = ways_of(network, setting)
    cold = {way: seconds(partial(ways[way], images[: setting.batch])) for way in ways}
    checked = check(ways, images[: setting.batch])
    for way in ways.values():  # after other arithmetic than that which is measured
        speed(way, images[: setting.batch], setting)
    found = in_turn({way: partial(speed, ways[way], images, setting) for way in ways}, setting.repeats)
    work = flops(network, setting, images[0])
    return {
        "network": name,
        "gflop_per_image": work / 1e9,
        "cold_seconds": cold,
        "checked": checked,
        "images_per_second": found,
        "of_peak": {way: median(values) * work / peak for way, values in found.items()},
        "kernels_active": {way: active(ways[way], images, setting) for way in ways},
    }


def made_images(setting: Setting) -> list[Tensor]:
    """uint8 (3, H, W) blurred noise, each another."""
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(setting.batch * setting.batches, 3, 24, 32, generator=random) * 255
    return [interpolate(one[None], setting.image, mode="bicubic").clamp(0, 255)[0].byte() for one in noise]


# ---- the report


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    speeds, checked = found["images_per_second"], found["checked"]
    rows = []
    for way, values in speeds.items():
        kernels = found["kernels_active"][way]
        rows.append(
            [
                found["network"],
                way,
                spread(values),
                f"{median(ratios(values, speeds['stock float32'])):.2f}",
                f"{found['of_peak'][way]:.1%}",
                "-" if kernels is None else f"{kernels:.0%}",
                f"{checked[way]:.3f}" if way in checked else "-",
                f"{found['cold_seconds'][way]:.1f}",
            ]
        )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile of backbone, pyramid and heads as well")
    parser.add_argument("--peak", type=float, default=989e12, help="dense bf16 FLOP/s of the GPU (an H100's or H200's)")
    parser.add_argument("--quick", action="store_true", help="small images, to see it work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON and the table")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    device = torch.device(chosen.device)
    if chosen.quick:
        torch.set_num_threads(1)  # more would wait for each other where others work as well
    small = {"side": 96, "image": (96, 128), "batch": 2, "batches": 1, "repeats": 1, "proposals": 200}
    full = {"side": 800, "image": (480, 640), "batch": chosen.batch, "batches": chosen.batches}
    setting = Setting(device, compile=chosen.compile, **(small if chosen.quick else full | {"repeats": chosen.repeats}))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    results = [measure_network(name, setting, chosen.peak) for name in chosen.networks]
    speeds = {one["network"]: one["images_per_second"]["ours bf16"] for one in results}
    title = f"{where}: {setting.side} px, batches of {setting.batch}, images/s"
    if {"maskrcnn", "fasterrcnn"} <= speeds.keys():
        share = median(speeds["maskrcnn"]) / median(speeds["fasterrcnn"])
        title += f"; ours bf16: Mask R-CNN with RLE at {share:.2f} of Faster R-CNN"
    columns = ["network", "way", "images/s", "x stock float32", "of bf16 peak", "kernels active", "stock's objects"]
    rows = [row for one in results for row in rows_of(one)]
    print_table(title, [*columns, "first batch, s"], rows)
    chosen.results.mkdir(parents=True, exist_ok=True)
    name = f"gpu-{where.lower().replace(' ', '-')}" + "-quick" * chosen.quick
    about = {"machine": machine(PACKAGES), "device": where, "peak": chosen.peak, "title": title, "results": results}
    (chosen.results / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [" | ".join(row) for row in [[*columns, "first batch, s"], *rows]]
    (chosen.results / f"{name}.txt").write_text("\n".join([title, machine(PACKAGES), *lines]) + "\n")


if __name__ == "__main__":
    main()
