"""Calls of kernels on PyTorch tensors: what every wrapper shares."""

from __future__ import annotations

import torch
from nemotron_errors import RequestError

from nemotron_plugins.kernels import KERNELS
from nemotron_plugins.launches.launch import Launch
from nemotron_plugins.launches.rotary import ITEM_BYTES

__all__ = ["architecture_of", "check_rows", "check_tensor", "has_pdl", "multiprocessors_of", "run_launch"]

# what the interpreter, which has no GPU, is given
_INTERPRETED_ARCHITECTURE = 80
_INTERPRETED_MULTIPROCESSORS = 8


def run_launch(launch: Launch, *arguments: torch.Tensor | int, **sizes: int) -> None:
    """Compiles the kernel where that is not done yet, and launches it on the current stream."""
    KERNELS[launch.kernel][launch.grid_of(**sizes)](
        *arguments,
        **launch.constexprs,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        enable_fp_fusion=launch.fp_fusion,
        launch_pdl=launch.pdl,
    )


def architecture_of(tensor: torch.Tensor) -> int:
    """Compute capability × 10 of the tensor's GPU."""
    if not tensor.is_cuda:
        return _INTERPRETED_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors_of(tensor: torch.Tensor) -> int:
    """Multiprocessors of the tensor's GPU."""
    if not tensor.is_cuda:
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def has_pdl(tensor: torch.Tensor) -> bool:
    """Whether the tensor's GPU has programmatic dependent launch."""
    return architecture_of(tensor) >= 90


def check_rows(like: torch.Tensor, B: int, N: int, **indices: torch.Tensor | None) -> None:
    """Checks indices [B] and that there are cache rows for all rows.

    Raises:
        RequestError: where that is not so.
    """
    for name, tensor in indices.items():
        if tensor is not None:
            check_tensor(name, tensor, (B,), like, torch.int64)
    if indices["cache_row"] is None and B > N:
        raise RequestError(f"{B} rows and {N} cache rows", "a cache row for each row", "pass cache_row", where="cache")


def check_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype | None = None
) -> None:
    """Checks shape, dtype (that of ``like`` by default), device and contiguity.

    Raises:
        RequestError: where the tensor is another.
    """
    dtype = dtype or like.dtype
    if tensor is like and str(dtype).removeprefix("torch.") not in ITEM_BYTES:
        raise RequestError(f"{dtype}", "one of " + ", ".join(ITEM_BYTES), "cast the inputs", where=name)
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != like.device or not tensor.is_contiguous():
        found = f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
        raise RequestError(
            found, f"contiguous {dtype} {list(shape)} on {like.device}", "pass such a tensor", where=name
        )
