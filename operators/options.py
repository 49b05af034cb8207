"""What a job says to its models and operators besides their names; all of it changes results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The defaults are those of the command line.

    Attributes:
        keep_proposals: rows of the proposals table per image, at most
        top_labels: image-level labels per image, at most
        panoptic_score: instances and queries below it are no panoptic segments; None: 0.5
        panoptic_overlap: an instance or query with less than this fraction of its mask left free by better ones is
            dropped; None: 0.5 where instances are fused, 0.8 for end-to-end models, their authors' values
        panoptic_stuff_area: fused stuff of fewer pixels is void
        precision: "float32", or "bf16" for most of a network's arithmetic in bfloat16
        tile: side of the windows, in pixels, through which larger images are looked at; None: as a whole
        tile_overlap: fraction of a window's side that it shares with the next one
    """

    keep_proposals: int = 1000
    top_labels: int = 5
    panoptic_score: float | None = None
    panoptic_overlap: float | None = None
    panoptic_stuff_area: int = 4096
    precision: str = "float32"
    tile: int | None = None
    tile_overlap: float = 0.25


DEFAULTS = Options()
