"""Train the bundled network's semantic head on its frozen feature maps: about 10 minutes on two cores.

The Mask R-CNN in the weights file stays as it is, bit for bit; the head and its figures are added to it. Every scene
is seen once. Same options, versions and processor: same weights.
"""

import json
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import MaskRCNN

from prelabel.operators.base import Segments, Task
from prelabel.operators.models.scenes import SEMANTIC, ScenesModel
from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, SemanticHead, build_scenes_network
from prelabel.pipeline.scenes import CATEGORIES, Scene, make_scene
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.rle import decode

EVALUATION_SEED = 1_000_003
"""Seeds of this size are kept for evaluation: no demo and no training uses them."""
VOID = 0
STRIDE = 4


class SemanticDataset(Dataset[tuple[Tensor, Tensor]]):
    """Scenes 0 to ``count`` - 1 of a seed: float (3, H, W) in 0..1, and the category id of every pixel, (H, W)."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = make_scene(self.seed, index)
        return to_tensor(scene).float() / 255, torch.from_numpy(truth_of(scene))


def to_tensor(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()


def truth_of(scene: Scene) -> np.ndarray:
    """Return the category id of every pixel, uint8 (H, W): each is a thing's or stuff."""
    labels = scene.stuff.copy()
    for instance in scene.instances:
        labels[instance.mask] = instance.category_id
    return labels


def train(network: MaskRCNN, head: SemanticHead, seed: int, iterations: int, batch: int, peak: float) -> None:
    loader = DataLoader(
        SemanticDataset(seed, iterations * batch), batch, collate_fn=list, num_workers=1, prefetch_factor=4
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=peak, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, iterations, pct_start=0.1)
    network.eval().requires_grad_(False)
    head.train()
    began, recent = time.monotonic(), []
    for iteration, pairs in enumerate(loader, start=1):
        images, _ = network.transform([image for image, _ in pairs])
        targets = [target(truth, *images.image_sizes[k], images.tensors) for k, (_, truth) in enumerate(pairs)]
        loss = cross_entropy(head(network.backbone(images.tensors)), torch.stack(targets), ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if iteration % 25 == 0 or iteration == iterations:
            click.echo(f"{iteration:5d}/{iterations}  {time.monotonic() - began:5.0f} s  loss {np.mean(recent):.3f}")
            recent.clear()


def target(truth: Tensor, height: int, width: int, padded: Tensor) -> Tensor:
    """Return the labels at the centres of the head's pixels, for an image resized to ``height`` x ``width``."""
    resized = interpolate(truth[None, None].float(), (height, width))[0, 0].long()
    below, right = padded.shape[-2] - height, padded.shape[-1] - width
    return pad(resized, (0, right, 0, below), value=VOID)[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def evaluate(model: ScenesModel, seed: int, count: int) -> dict[str, str]:
    """Return the pixel accuracy and each category's IoU on scenes 0 to ``count`` - 1 of ``seed``."""
    confusion = np.zeros((len(CATEGORIES) + 1,) * 2, np.int64)
    for index in range(count):
        scene = make_scene(seed, index)
        (prediction,) = model.predict([to_tensor(scene)], frozenset({Task.SEGMENT_SEMANTIC}))
        assert prediction.semantic is not None
        found = label_map_of(prediction.semantic, scene.stuff.shape)
        np.add.at(confusion, (truth_of(scene), found), 1)
    both = np.diag(confusion)
    iou = both / np.maximum(confusion.sum(0) + confusion.sum(1) - both, 1)
    per_category = {category["name"]: round(iou[category["id"]], 4) for category in CATEGORIES}
    return {
        "pixel_accuracy": f"{both.sum() / confusion.sum():.4f}",
        "mean_iou": f"{np.mean(list(per_category.values())):.4f}",
        "iou": json.dumps(per_category),
    }


def label_map_of(segments: Segments, size: tuple[int, ...]) -> np.ndarray:
    labels = np.full(size, VOID, np.uint8)
    for category_id, mask in zip(segments.category_ids, segments.masks, strict=True):
        labels[decode(mask.rle)] = category_id
    return labels


@click.command(help=__doc__)
@click.option("--seed", default=2, show_default=True, help="Seed of the head and of the training scenes.")
@click.option("--iterations", default=600, show_default=True)
@click.option("--batch", default=8, show_default=True, help="Scenes an iteration.")
@click.option("--peak", default=4e-3, show_default=True, help="Highest learning rate.")
@click.option("--unseen", default=100, show_default=True, help="Scenes to evaluate on.")
@click.option("--threads", default=2, show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), default=SCENES_WEIGHTS, show_default=False)
def main(seed: int, iterations: int, batch: int, peak: float, unseen: int, threads: int, weights: Path) -> None:
    if seed >= 1_000_000:
        raise click.BadParameter("seeds from 1,000,000 on are for evaluation; choose another", param_hint="--seed")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tensors = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith(SEMANTIC)}
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    network, head = build_scenes_network(), SemanticHead()
    network.load_state_dict(tensors)
    train(network, head, seed, iterations, batch, peak)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in head.state_dict().items()}
    head.load_state_dict(halved)
    categories = CategorySet.from_json(json.dumps(CATEGORIES))
    figures = evaluate(ScenesModel(network, head, name="scenes", categories=categories), EVALUATION_SEED, unseen)
    training = {"seed": seed, "iterations": iterations, "batch": batch, "unseen_scenes": unseen, **figures}
    metadata |= {f"semantic_{name}": str(value) for name, value in training.items()}
    metadata["categories"] = categories.to_json()
    save_file(tensors | {SEMANTIC + name: value.contiguous() for name, value in halved.items()}, weights, metadata)
    click.echo(f"{figures}  {weights.stat().st_size / 1e6:.2f} MB  {time.process_time() / 120:.1f} min of two cores")


if __name__ == "__main__":
    main()
