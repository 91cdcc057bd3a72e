"""Kernel libraries without Triton, kernels that keep what they were launched with, and a TensorRT for plugins alone."""

from __future__ import annotations

import enum
import hashlib
import weakref
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from nemotron_plugins.build import launches_of
from nemotron_plugins.launches.launch import CompiledKernel, Launch, LaunchRecord
from nemotron_plugins.library import KernelLibrary, kernel_key
from nemotron_plugins.requests import KernelRequest

from support.kernel_requests import H100, ModelSizes

__all__ = ["SIZES", "FakeTensorRT", "RecordingKernel", "library_of", "record_of", "to_fields"]

SIZES = ModelSizes(
    query_heads=6, kv_heads=2, head_dim=16, rotary_dim=8, hidden=64, intermediate=96, outputs=40, sequences=5,
    capacity=512,
)  # fmt: skip
_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def record_of(launch: Launch, cubin: bytes, *, dtype: str = "bfloat16", **changes: Any) -> LaunchRecord:
    """What a compiler would write of a launch."""
    known = {
        "kernel": launch.kernel,
        "entry": launch.kernel,
        "architecture": "sm_90",
        "dtype": dtype,
        "arguments": tuple((name, kind.replace("T", _TYPES[dtype])) for name, kind in launch.arguments),
        "hidden_arguments": ("global_scratch", "profile_scratch"),
        "constexprs": launch.constexprs,
        "grid": launch.grid,
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "shared_bytes": 1024,
        "cluster": (1, 1, 1),
        "scratch_bytes": {"global_scratch": 0, "profile_scratch": 0},
        "scratch_alignment": {"global_scratch": 1, "profile_scratch": 1},
        "fp_fusion": launch.fp_fusion,
        "pdl": launch.pdl,
        "triton": "3.6.0",
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
    }
    return LaunchRecord(**{**known, **changes})


def library_of(requests: Iterable[KernelRequest] | None = None) -> KernelLibrary:
    """A library of requests, those of ``SIZES`` by default; a cubin is its key between zeros."""
    kernels = {}
    for request in SIZES.requests.values() if requests is None else requests:
        for variant, launch in launches_of(request, H100).items():
            key = kernel_key(request, variant)
            cubin = b"\0\xff" + key.encode() + b"\0"
            kernels[key] = CompiledKernel(cubin, record_of(launch, cubin, dtype=request.dtype))
    return KernelLibrary("sm_90", kernels)


class RecordingKernel:
    """In the place of a ``LoadedKernel``: keeps each launch as (variant, stream, values by argument, sizes)."""

    launches: list[tuple[str, int, dict[str, int], dict[str, int]]] = []  # noqa: RUF012

    def __init__(self, record: LaunchRecord, cubin: bytes) -> None:
        assert hashlib.sha256(cubin).hexdigest() == record.cubin_sha256
        self.record, self._key = record, cubin[2:-1].decode().rpartition(".")[2]

    def launch(self, stream: int, arguments: list[int], **sizes: int) -> None:
        names = [name for name, _ in self.record.arguments]
        self.launches.append((self._key, stream, dict(zip(names, arguments, strict=True)), sizes))


class _FieldType(enum.Enum):
    FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, CHAR, DIMS, UNKNOWN = range(9)
    INT64 = 10


class _Field:
    """Like TensorRT's: it points to name and data and keeps neither."""

    def __init__(self, name: str = "", data: Any = b"", type: _FieldType = _FieldType.UNKNOWN) -> None:
        self.name, self.type = name, type
        array = np.asarray(data)
        self.size = array.size
        self._data = weakref.ref(data)

    @property
    def data(self) -> Any:
        data = self._data()
        assert data is not None, f"the memory of field {self.name} is gone"
        return data.copy()


class _DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)


class _TensorFormat(enum.Enum):
    LINEAR, CHW32 = 0, 5


class _Registry:
    def __init__(self) -> None:
        self.creators: dict[str, Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        assert namespace == creator.plugin_namespace
        return self.creators.setdefault(creator.name, creator) is creator


class FakeTensorRT(ModuleType):
    """What plugins use of the module ``tensorrt``."""

    __version__ = "10.6.0"
    PluginFieldType, PluginField, PluginFieldCollection, PluginFieldCollection_ = _FieldType, _Field, list, list
    DataType, TensorFormat = _DataType, _TensorFormat

    def __init__(self) -> None:
        super().__init__("tensorrt")
        bases = "IPluginV3 IPluginV3OneCore IPluginV3OneBuildV2 IPluginV3OneRuntime IPluginCreatorV3One"
        for name in bases.split():
            setattr(self, name, type(name, (), {}))
        self.registry = _Registry()

    def DimsExprs(self, size: int) -> list[Any]:  # noqa: N802
        return [None] * size

    def get_plugin_registry(self) -> _Registry:
        return self.registry


def to_fields(trt: Any, attributes: dict[str, Any]) -> tuple[Any, list[Any]]:
    """A node's attributes as the ONNX parser hands them to a creator, and what must be kept alive with them."""
    kinds = trt.PluginFieldType
    kept, fields = [], []
    for name, value in attributes.items():
        if isinstance(value, str):
            array, kind = np.frombuffer(value.encode(), np.int8), kinds.CHAR
        elif isinstance(value, float):
            array, kind = np.array([value], np.float32), kinds.FLOAT32
        else:
            array, kind = np.array([value], np.int32), kinds.INT32
        field = trt.PluginField(name, array, kind)
        kept += [name, array, field]
        fields.append(field)
    return trt.PluginFieldCollection(fields), kept
