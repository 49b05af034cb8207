"""A GPU for machines that have none: tensors that say they lie on one, are computed by the processor, and count waits.

As strict as CUDA about what may meet what: a tensor of the GPU's and one of the host's only in a copy, or where the
host's is an index. It knows nothing of speed, of streams, and of how a GPU rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}
_WAITING = {
    "nonzero",
    "_local_scalar_dense",
    "masked_select",
    "equal",
    "bincount",
    "unique_consecutive",
    "_unique2",
    "nms",
}


class OnGpu(Tensor):
    """Says that it is there; `inner` has the numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        options: dict[str, Any] = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made: OnGpu = Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=GPU, **options)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} of a GPU's tensor, and there is no GPU")


class PretendGpu(TorchDispatchMode):
    """Runs all that concerns the GPU on its tensors' `inner`; `waits` counts what keeps the host waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = [one for one in tensors if isinstance(one, OnGpu)]
        if not there and not _is_gpu(kwargs.get("device")):
            return function(*args, **kwargs)
        if function is _ATEN._to_copy.default:
            return self._copy(function, *args, **kwargs)
        if function is _ATEN.as_strided_.default:  # by pooling, for sides of one pixel
            return args[0]
        self._note(function, args, kwargs)
        if function is not _ATEN.copy_.default and function not in _INDEXING:
            strangers = [one for one in tensors if one.ndim and not isinstance(one, OnGpu)]
            assert not (there and strangers), f"{function} of tensors here and there"
        if _is_gpu(kwargs.get("device")):
            kwargs = kwargs | {"device": "cpu"}
        found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        written = [one for one in there if one.inner is found]
        return written[0] if written else tree_map(lambda one: OnGpu(one) if isinstance(one, Tensor) else one, found)

    def _copy(self, function: Any, tensor: Tensor, **options: Any) -> Tensor:
        was, device = isinstance(tensor, OnGpu), options.pop("device", None)
        will_be = was if device is None else _is_gpu(device)
        if was and not will_be:
            self.waits["to the host"] += 1
        elif will_be and not was and not options.get("non_blocking"):
            self.waits["to the GPU"] += 1
        copy: Tensor = function(_inner(tensor), **options)
        if copy is tensor:
            copy = copy.clone()
        return OnGpu(copy) if will_be else copy

    def _note(self, function: Any, args: Any, kwargs: Any) -> None:
        name = function.overloadpacket.__name__
        masks = function in _INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1])
        repeats = function is _ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None
        crosses = name == "copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu)
        if name in _WAITING or masks or repeats or crosses:
            self.waits[name] += 1


class _Calls(TorchFunctionMode):
    """Stands in for calls that need a GPU before torch dispatches anything."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], OnGpu):
            if function is Tensor.tolist:
                self.gpu.waits["tolist"] += 1
                return args[0].inner.tolist()
            if function is Tensor.untyped_storage:
                return args[0].inner.untyped_storage()
            assert function is not Tensor.numpy, "a GPU's tensor as an array"
        if function in (torch.tensor, torch.as_tensor) and _is_gpu(kwargs.get("device")):
            self.gpu.waits["to the GPU"] += 1
            return function(*args, **kwargs | {"device": "cpu"}).to(GPU, non_blocking=True)
        if _is_gpu(kwargs.get("device")):
            kwargs = kwargs | {"device": GPU}
        args = tree_map(lambda one: GPU if isinstance(one, torch.device) and one.type == "cuda" else one, args)
        return function(*args, **kwargs)


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """Torch sees a GPU meanwhile."""
    torch._C._ensureCUDADeviceGuardSet()
    stand_ins: dict[Any, dict[str, Callable[..., Any]]] = {
        torch.cuda: {"_lazy_init": lambda: None, "is_available": lambda: True, "is_bf16_supported": lambda: True},
        torch.cuda.amp.common: {"amp_definitely_not_available": lambda: False},
        torch: {"inference_mode": torch.no_grad},  # in which torch dispatches only what it computes
        Tensor: {"pin_memory": lambda tensor: tensor.clone()},
        torch.__future__: {"get_overwrite_module_params_on_conversion": lambda: True},
    }
    with ExitStack() as stack:
        for owner, functions in stand_ins.items():
            for name, function in functions.items():
                stack.enter_context(patch.object(owner, name, function))
        gpu = PretendGpu()
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(_Calls(gpu))
        yield stack.enter_context(gpu)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGpu) else value
