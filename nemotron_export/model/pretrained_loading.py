"""``from_pretrained`` of every model class: folder or hub id, dtype and device as transformers takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nemotron_errors import MissingDependencyError, RequestError

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import MODEL_CLASSES, load_task_model
from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = ["device_count", "from_pretrained", "infer_device", "task_of"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# device maps that transformers spreads over the devices of the machine; one device holds the model here
_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def from_pretrained(
    cls: type[NemotronPreTrainedModel],
    path_or_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> NemotronPreTrainedModel:
    """Loads a checkpoint into a model class.

    Args:
        cls: one of the model classes.
        path_or_id: a folder or a hub id (organisation/name).
        dtype: a torch dtype or its name; "auto" is the config's, or else the weights'.
        device_map: one device, as a name, a number, a torch.device or {"": device}; "auto" is
            :func:`infer_device`'s; None is the CPU.
        attn_implementation: "eager", "sdpa" (None) or "flash_attention", PyTorch's flash kernel alone.
        revision: a branch, tag or commit of a hub id.
        token: an access token for the hub; None takes the one stored at login.
        local_files_only: ask no server.

    Returns:
        The model in eval mode, with the checkpoint's generation settings in ``generation_config``.

    Raises:
        CheckpointError, ConfigError: a checkpoint that is missing, broken or not of this class.
        RequestError: a dtype or device map that is not supported.
        MissingDependencyError: a device that this machine does not have.
    """
    device = _device(device_map)
    _dtype(dtype, "float32")  # a wrong one is refused before anything is downloaded
    folder = Checkpoint.resolve(path_or_id, revision=revision, token=token, offline=local_files_only)
    checkpoint = Checkpoint.open(folder, task=task_of(cls))
    run_dtype = _dtype(dtype, checkpoint.config.dtype or checkpoint.dtype)
    model = load_task_model(checkpoint, run_dtype, attn_implementation or "sdpa", device)
    model.generation_config = dict(checkpoint.generation_config)
    return model


def task_of(cls: type[NemotronPreTrainedModel]) -> str:
    """The task of a model class.

    Raises:
        RequestError: a class that belongs to no task.
    """
    for task, known in MODEL_CLASSES.items():
        if issubclass(cls, known):
            return task
    classes = ", ".join(known.__name__ for known in MODEL_CLASSES.values())
    raise RequestError(cls.__name__, f"one of {classes}", "use one of these classes")


def infer_device() -> str:
    """The best device of this machine: "cuda", "mps" or "cpu"."""
    return next(kind for kind in ("cuda", "mps", "cpu") if device_count(kind))


def device_count(kind: str) -> int:
    """How many devices of a kind ("cuda", "mps", "cpu") torch can use here."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1


def _dtype(wanted: str | torch.dtype, automatic: str) -> torch.dtype:
    name = str(wanted).removeprefix("torch.")
    name = automatic if name == "auto" else name
    if name not in _DTYPES:
        raise RequestError(name, f"auto, {', '.join(_DTYPES)}", "choose one of them", where="dtype")
    return _DTYPES[name]


def _device(wanted: Any) -> torch.device:
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
