"""Refuses engines that cannot run here, or that are not what the manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_errors import BundleError
from nemotron_formats.cache import CacheSpec

from nemotron_runtime.bundle.engine_records import TensorRTRecord
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.cuda import Device
from nemotron_runtime.executors.tensorrt.context import BuiltEngine

__all__ = ["check_engine", "check_machine"]


def check_machine(bundle: Bundle, record: TensorRTRecord, version: str, device: Device) -> None:
    """Refuses engines of another TensorRT or another GPU architecture: neither can load them.

    Raises:
        BundleError: naming what the bundle was built with and what is here.
    """
    where = str(bundle.directory)
    if _release(version) != _release(record.version):
        remedy = f"install TensorRT {record.version}, or build the bundle again with {version}"
        raise BundleError(f"TensorRT {version}", f"TensorRT {record.version}, which built it", remedy, where=where)
    if device.architecture != record.architecture:
        found = f"{device.name} ({device.architecture})"
        expected = f"a GPU of {record.architecture}, as the {record.gpu} that it was built on"
        raise BundleError(found, expected, "build the bundle again on this GPU", where=where)


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:3])


def check_engine(
    engine: BuiltEngine,
    bundle: Bundle,
    record: TensorRTRecord,
    caches: Sequence[CacheSpec],
    row_inputs: tuple[str, ...],
) -> None:
    """Refuses an engine that is not what the manifest says.

    Args:
        engine: the engine.
        bundle: whose it is.
        record: of its engines.
        caches: which it updates.
        row_inputs: its inputs that are neither caches nor weights.

    Raises:
        BundleError: other inputs, outputs, dtypes or shapes.
    """
    manifest = bundle.manifest
    tensors: dict[str, tuple[str, Any]] = {w.name: (w.dtype, w.shape) for w in record.weights}
    tensors |= dict.fromkeys(row_inputs, ("int64", None))
    for cache in caches:
        shape_BGTD = cache.shape(-1, record.cache_capacity or -1)
        tensors |= dict.fromkeys((cache.input_name, cache.output_name), (cache.dtype, shape_BGTD))
    tensors[manifest.head.output] = ("float32", None)
    inputs = (*row_inputs, *(cache.input_name for cache in caches), *(weight.name for weight in record.weights))
    engine.check(inputs, (manifest.head.output, *(cache.output_name for cache in caches)), tensors)
