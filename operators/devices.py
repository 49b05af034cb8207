"""Where a network runs."""

from __future__ import annotations

import torch

from prelabel.schemas.errors import ModelError


def torch_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises ModelError where there is none."""
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise ModelError(f"device {name!r}: torch sees no GPU here: take --device cpu, or a torch built for CUDA")
    return torch.device(("cuda" if available else "cpu") if name == "auto" else name)
