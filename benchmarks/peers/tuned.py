"""The same as as_documented.py, after an afternoon of tuning: stock torchvision inference and pycocotools stay.

    python benchmarks/peers/tuned.py IMAGES OUTPUT WEIGHTS FACTORY THRESHOLD [IMAGES_OF_A_BLOCK]

What was tuned, and why:

- The files' bytes travel, not float images: an image of 1080 x 1920 is 0.3 MB as a JPEG and 25 MB as floats.
- One actor for each processor, with one thread of torch: no thread waits for another.
- The network sees one image at a time: on a processor, batches of these networks are slower (caches).
- Blocks of a few images, so that all actors are busy until the end; each actor has the next block at hand.
- Masks become bool before they leave torch, and Fortran arrays without a copy; one call encodes all of an image.
"""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from ray.data import ActorPoolStrategy
from torch import Tensor
from workload import stock_network


class InstanceSegmentationModel:
    def __init__(self, weights: str, factory: str, threshold: float) -> None:
        torch.set_num_threads(1)
        self.model = stock_network(factory, weights, threshold)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        found = [self.look(data) for data in batch["bytes"]]
        columns = {name: [one[name] for one in found] for name in found[0]}
        return columns | {"path": batch["path"], "finished": [time.time()] * len(found)}

    @torch.inference_mode()
    def look(self, data: bytes) -> dict[str, Any]:
        image = torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).copy())
        (found,) = self.model([image.permute(2, 0, 1).contiguous() / 255])
        made = {name: found[name].tolist() for name in ("boxes", "labels", "scores")}
        return made | {"masks": encode(found["masks"])}


def encode(masks: Tensor) -> list[str]:
    # (N, 1, H, W) -> (H, W, N) in Fortran order is (N, W, H) in C order.
    dense = (masks[:, 0] > 0.5).view(torch.uint8).transpose(1, 2).contiguous().numpy()
    return [rle["counts"].decode() for rle in coco_mask.encode(dense.transpose(2, 1, 0))]


def main(images: str, output: str, weights: str, factory: str, threshold: str, block: str = "8") -> None:
    workers = os.cpu_count() or 1
    ray.init(num_cpus=workers + 1)  # one more for reading and writing, which wait, mostly
    blocks = max(1, len(os.listdir(images)) // int(block))
    ds = ray.data.read_binary_files(images, include_paths=True, override_num_blocks=blocks)
    ds = ds.map_batches(
        InstanceSegmentationModel,
        fn_constructor_args=(weights, factory, float(threshold)),
        batch_size=int(block),
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
    )
    ds.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
