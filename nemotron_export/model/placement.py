"""Where and in which dtype a model runs, as transformers' arguments say it."""

from __future__ import annotations

from typing import Any

import torch
from nemotron_errors import MissingDependencyError, RequestError
from nemotron_formats.dtypes import RUN_DTYPES

__all__ = ["device_count", "find_device", "find_dtype", "infer_device"]

# device maps that transformers spreads over the devices of the machine; one device holds the model here
_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def infer_device() -> str:
    """The best device of this machine: "cuda", "mps" or "cpu"."""
    return next(kind for kind in ("cuda", "mps", "cpu") if device_count(kind))


def device_count(kind: str) -> int:
    """How many devices of a kind ("cuda", "mps", "cpu") torch can use here."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1


def find_dtype(wanted: str | torch.dtype, automatic: str) -> torch.dtype:
    """The dtype of an argument ``dtype``; ``automatic`` is what "auto" means.

    Raises:
        RequestError: one that no model runs in.
    """
    name = str(wanted).removeprefix("torch.")
    name = automatic if name == "auto" else name
    if name not in RUN_DTYPES:
        raise RequestError(name, f"auto, {', '.join(RUN_DTYPES)}", "choose one of them", where="dtype")
    return getattr(torch, name)  # type: ignore[no-any-return]


def find_device(wanted: Any) -> torch.device:
    """The device of an argument ``device_map``.

    Raises:
        RequestError: a map over several devices, or no device.
        MissingDependencyError: one that this machine does not have.
    """
    if isinstance(wanted, dict):
        devices = {str(device) for device in wanted.values()}
        if len(devices) != 1 or "" not in wanted:
            found = f"a map over {', '.join(sorted(devices)) or 'no device'}"
            raise RequestError(found, 'one device for the whole model: {"": device}', "give one", where="device_map")
        wanted = wanted[""]
    if wanted is None:
        return torch.device("cpu")
    if isinstance(wanted, str) and wanted in _AUTOMATIC:
        return torch.device(infer_device())
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        wanted = f"cuda:{wanted}"
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(repr(wanted), "cpu, cuda, cuda:N, mps or auto", "choose one of them", where="device_map")
    there = device_count(device.type)
    if (device.index or 0) >= there:
        found = f"{there} {device.type} device{'' if there == 1 else 's'}"
        raise MissingDependencyError(found, str(device), "choose another device, such as cpu", where="this machine")
    return device
