"""The script that Ray Data's documentation leads to, for Mask R-CNN: readable, and as fast as its pages make it.

    python benchmarks/peers/as_documented.py IMAGES OUTPUT WEIGHTS FACTORY THRESHOLD

After Ray's "Object Detection Batch Inference with PyTorch": `read_images`, `map` makes float images of them, an actor
class holds the model, `map_batches` with batches of four, `write_parquet`. What that example lacks is added in the
plain way: stock torchvision pastes the masks, pycocotools encodes them. FACTORY is a function of workload.py, which
has to be on PYTHONPATH. `finished` tells the benchmark when a batch was.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import ray
import torch
from pycocotools import mask as coco_mask
from torchvision.transforms import ToTensor
from workload import stock_network


def preprocess(row: dict[str, Any]) -> dict[str, Any]:
    return {"path": row["path"], "transformed": ToTensor()(row["image"])}


class InstanceSegmentationModel:
    def __init__(self, weights: str, factory: str, threshold: float) -> None:
        self.model = stock_network(factory, weights, threshold)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        images = [torch.from_numpy(image) for image in batch["transformed"]]
        with torch.inference_mode():
            predictions = self.model(images)
        return {
            "path": batch["path"],
            "boxes": [one["boxes"].tolist() for one in predictions],
            "labels": [one["labels"].tolist() for one in predictions],
            "scores": [one["scores"].tolist() for one in predictions],
            "masks": [[encode(mask[0] > 0.5) for mask in one["masks"].numpy()] for one in predictions],
            "finished": [time.time()] * len(predictions),
        }


def encode(mask: np.ndarray) -> str:
    counts: bytes = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode()


def main(images: str, output: str, weights: str, factory: str, threshold: str) -> None:
    ds = ray.data.read_images(images, include_paths=True)
    ds = ds.map(preprocess)
    ds = ds.map_batches(
        InstanceSegmentationModel,
        fn_constructor_args=(weights, factory, float(threshold)),
        batch_size=4,
        concurrency=1,
    )
    ds.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
