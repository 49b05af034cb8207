"""Train the bundled demo network on generated scenes and write its weights: about 50 minutes on two cores.

Every scene is seen once. Same options, versions and processor: same weights. The file holds the Mask R-CNN alone;
``train_semantic.py`` adds the semantic head.
"""

import io
import json
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import MaskRCNN
from torchvision.ops import masks_to_boxes

from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, build_scenes_network
from prelabel.pipeline.scenes import THING_CATEGORIES, Scene, make_scene

EVALUATION_SEED = 1_000_003
"""Seeds of this size are kept for evaluation: no demo and no training uses them."""

Target = dict[str, torch.Tensor]


class SceneDataset(Dataset[tuple[torch.Tensor, Target]]):
    """Scenes 0 to ``count`` - 1 of a seed in torchvision's detection form."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        scene = make_scene(self.seed, index)
        masks = torch.zeros((len(scene.instances), *scene.stuff.shape), dtype=torch.uint8)
        for mask, instance in zip(masks, scene.instances, strict=True):
            mask.copy_(torch.from_numpy(instance.mask))
        labels = torch.tensor([instance.category_id for instance in scene.instances])
        boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return to_tensor(scene), {"boxes": boxes, "labels": labels, "masks": masks}


def to_tensor(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255


def train(network: MaskRCNN, seed: int, iterations: int, batch: int, peak: float, save: Path) -> None:
    loader = DataLoader(
        SceneDataset(seed, iterations * batch), batch, collate_fn=list, num_workers=1, prefetch_factor=4
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, iterations, pct_start=0.08)
    network.train()
    began, recent = time.monotonic(), []
    for iteration, pairs in enumerate(loader, start=1):
        losses = network(*map(list, zip(*pairs, strict=True)))
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        recent.append([value.item() for value in losses.values()])
        if iteration % 50 == 0 or iteration == iterations:
            parts = "  ".join(
                f"{n.removeprefix('loss_')} {v:.3f}" for n, v in zip(losses, np.mean(recent, 0), strict=True)
            )
            click.echo(f"{iteration:5d}/{iterations}  {time.monotonic() - began:5.0f} s  {parts}")
            recent.clear()
        if iteration % 500 == 0:
            torch.save(network.state_dict(), save.with_suffix(".checkpoint"))


@torch.inference_mode()
def evaluate(network: MaskRCNN, seed: int, count: int) -> dict[str, float]:
    """Return COCO AP and AP50 of masks and boxes on scenes 0 to ``count`` - 1 of ``seed``."""
    network.eval()
    truth, found, images = [], [], []
    for index in range(count):
        scene = make_scene(seed, index)
        images.append({"id": index, "height": scene.stuff.shape[0], "width": scene.stuff.shape[1]})
        for instance in scene.instances:
            truth.append(entry(index, instance.category_id, instance.mask) | {"iscrowd": 0, "id": len(truth) + 1})
        (output,) = network([to_tensor(scene)])
        masks = (output["masks"][:, 0] > 0.5).numpy()
        for mask, label, score, box in zip(masks, output["labels"], output["scores"], output["boxes"], strict=True):
            x, y, right, bottom = box.tolist()
            found.append(
                entry(index, int(label), mask) | {"score": float(score), "bbox": [x, y, right - x, bottom - y]}
            )
    return coco_ap(truth, found, images)


def entry(index: int, category_id: int, mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "image_id": index,
        "category_id": category_id,
        "segmentation": rle,
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
    }


def coco_ap(truth: list[dict[str, Any]], found: list[dict[str, Any]], images: list[dict[str, int]]) -> dict[str, float]:
    figures = {}
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": truth, "categories": THING_CATEGORIES}
        coco.createIndex()
        detections = COCO()
        for number, detection in enumerate(found, start=1):
            detection.update(id=number, iscrowd=0)
        detections.dataset = {"images": images, "annotations": found, "categories": THING_CATEGORIES}
        detections.createIndex()
        for name, kind in (("mask", "segm"), ("box", "bbox")):
            evaluation = COCOeval(coco, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures |= {f"{name}_ap": round(evaluation.stats[0], 4), f"{name}_ap50": round(evaluation.stats[1], 4)}
    return figures


def halve(network: MaskRCNN) -> dict[str, torch.Tensor]:
    """Return the weights as float16 and put the rounded values back into the network."""
    state = network.state_dict()
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    network.load_state_dict(halved)
    return halved


@click.command(help=__doc__)
@click.option("--seed", default=1, show_default=True, help="Seed of the weights and of the training scenes.")
@click.option("--iterations", default=2000, show_default=True)
@click.option("--batch", default=8, show_default=True, help="Scenes an iteration.")
@click.option("--peak", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--unseen", default=200, show_default=True, help="Scenes to evaluate on.")
@click.option("--threads", default=2, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=SCENES_WEIGHTS, show_default=False)
def main(seed: int, iterations: int, batch: int, peak: float, unseen: int, threads: int, output: Path) -> None:
    if seed == EVALUATION_SEED:
        raise click.BadParameter(f"{EVALUATION_SEED} is the evaluation's seed; choose another", param_hint="--seed")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    network = build_scenes_network().to(memory_format=torch.channels_last)
    train(network, seed, iterations, batch, peak, output)
    weights = halve(network)
    figures = evaluate(network, EVALUATION_SEED, unseen)
    metadata = {
        "seed": seed,
        "iterations": iterations,
        "batch": batch,
        "unseen_scenes": unseen,
        **figures,
        "categories": json.dumps(THING_CATEGORIES),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, output, {name: str(value) for name, value in metadata.items()})
    click.echo(f"{figures}  {output.stat().st_size / 1e6:.2f} MB  {time.process_time() / 120:.1f} min of two cores")


if __name__ == "__main__":
    main()
