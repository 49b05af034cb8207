"""scenes: the bundled demo network, for the generated scenes; needs no download."""

from __future__ import annotations

from safetensors import safe_open

from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import Family, ModelSpec, Offer, unknown_model
from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, build_scenes_network
from prelabel.operators.weights import file_digest, load_weights, read_weights
from prelabel.schemas.categories import CategorySet


class ScenesFamily(Family):
    """`scenes:maskrcnn`; the weights beside this file, or a file of yours for the same network."""

    def offers(self) -> list[Offer]:
        """The only one."""
        return [Offer("maskrcnn", ("detect", "segment_instances"), "the scenes'")]

    def weights_path(self, spec: ModelSpec) -> str:
        """The file."""
        return spec.weights or str(SCENES_WEIGHTS)

    def load(self, spec: ModelSpec) -> DetectorModel:
        """The network; what it finds is said in the metadata of its weights."""
        if spec.rest not in self.names():
            raise unknown_model(spec.name)
        path = self.weights_path(spec)
        network = build_scenes_network()
        load_weights(network, read_weights(path), path)
        return DetectorModel(
            network,
            name=spec.name,
            categories=spec.categories or _categories(path),
            score_threshold=spec.score_threshold,
            device=spec.device,
            digest=file_digest(path),
        )


def _categories(path: str) -> CategorySet | None:
    """The COCO categories in a safetensors file's metadata; None where there are none."""
    if not path.endswith(".safetensors"):
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("categories")
    return CategorySet.from_json(text) if text else None
