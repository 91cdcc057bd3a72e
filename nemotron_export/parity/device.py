"""Where the reference model computes: the CPU, or a GPU in true fp32."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nemotron_errors import MissingDependencyError, RequestError, ResourceError
from nemotron_graphs.targets import Target

__all__ = ["REFERENCE_DEVICES", "choose_device", "default_device", "device_name", "true_fp32"]

_log = logging.getLogger(__name__)

REFERENCE_DEVICES = ("auto", "cpu", "cuda")

# activations and keys and values of the longest prompt, and what PyTorch's libraries take
_ROOM = 2_000_000_000


def default_device(target: Target) -> str:
    """What the reference of a bundle of that target computes on where nobody chose.

    A bundle for a GPU is compared with PyTorch on the same GPU, where there is one: its rounding in low precision is
    what the bundle's is measured by. Others run on the CPU, and so does their reference.
    """
    return "auto" if target.device == "cuda" else "cpu"


def choose_device(wanted: str, num_parameters: int) -> str:
    """Chooses "cpu" or "cuda" for a model that is held in fp32; where "auto" must do without a GPU, that is logged.

    Args:
        wanted: one of REFERENCE_DEVICES.
        num_parameters: of the model.

    Raises:
        RequestError: another name.
        MissingDependencyError: "cuda", and PyTorch sees no GPU.
        ResourceError: "cuda", and too little of its memory is free.
    """
    if wanted not in REFERENCE_DEVICES:
        expected = f"one of {', '.join(REFERENCE_DEVICES)}"
        raise RequestError(repr(wanted), expected, "choose one of them", where="--reference-device")
    if wanted == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        found = f"PyTorch {torch.__version__} that sees no GPU"
        if wanted == "cuda":
            remedy = "install a build of PyTorch for this GPU, or choose cpu"
            raise MissingDependencyError(found, "a GPU that it can use", remedy, where="--reference-device")
        _log.info("%s: the reference is made on the CPU", found)
        return "cpu"
    free, total = torch.cuda.mem_get_info()
    needed = 4 * num_parameters + _ROOM
    if needed <= free:
        return "cuda"
    found = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB of GPU memory"
    expected = f"about {needed / 1e9:.1f} GB for the fp32 model"
    if wanted == "cuda":
        raise ResourceError(found, expected, "end what else uses the GPU, or choose cpu", where="--reference-device")
    _log.warning("%s, %s needed: the reference is made on the CPU", found, expected)
    return "cpu"


def device_name(device: str) -> str:
    """What a report calls it."""
    return "the CPU" if device == "cpu" else torch.cuda.get_device_name(device)


@contextmanager
def true_fp32(device: str) -> Iterator[None]:
    """Multiplies fp32 matrices in fp32, never in TF32, inside; gives PyTorch's unused GPU memory back at the end."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        if device == "cuda":
            torch.cuda.empty_cache()
