"""Every dtype, once: its size, and what each library calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DTYPES", "RUN_DTYPES", "SAFETENSORS_BITS", "Dtype", "dtype_of_onnx", "dtype_of_safetensors", "item_bytes"]


@dataclass(frozen=True)
class Dtype:
    """One dtype.

    Attributes:
        name: numpy's and torch's name, which manifests and options use.
        bytes: of a value.
        safetensors: its name in a safetensors header.
        onnx: its number in ONNX's TensorProto.DataType.
        tensorrt: its name in ``tensorrt.DataType``.
        storage: numpy's dtype that holds its bytes: itself, or an unsigned integer where numpy has no such dtype.
    """

    name: str
    bytes: int
    safetensors: str
    onnx: int
    tensorrt: str
    storage: np.dtype[Any]


DTYPES: dict[str, Dtype] = {
    each.name: each
    for each in (
        Dtype("float32", 4, "F32", 1, "FLOAT", np.dtype(np.float32)),
        Dtype("float16", 2, "F16", 10, "HALF", np.dtype(np.float16)),
        Dtype("bfloat16", 2, "BF16", 16, "BF16", np.dtype(np.uint16)),
        Dtype("int64", 8, "I64", 7, "INT64", np.dtype(np.int64)),
        Dtype("int32", 4, "I32", 6, "INT32", np.dtype(np.int32)),
        Dtype("int8", 1, "I8", 3, "INT8", np.dtype(np.int8)),
        Dtype("uint8", 1, "U8", 2, "UINT8", np.dtype(np.uint8)),
    )
}
# what a graph may compute in, and a checkpoint may be stored in
RUN_DTYPES = ("float32", "float16", "bfloat16")

# bits of a value of every dtype that a safetensors header may name
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "BF16": 16, "F16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

_BY_SAFETENSORS = {each.safetensors: each for each in DTYPES.values()}
_BY_ONNX = {each.onnx: each for each in DTYPES.values()}


def item_bytes(name: str) -> int:
    """Bytes of a value of the dtype of that name."""
    return DTYPES[name].bytes


def dtype_of_safetensors(code: str) -> Dtype | None:
    """The dtype that a safetensors header calls ``code``; None for one that this project does not use."""
    return _BY_SAFETENSORS.get(code)


def dtype_of_onnx(number: int) -> Dtype:
    """The dtype of a number of ONNX's TensorProto.DataType, one of :data:`DTYPES`."""
    return _BY_ONNX[number]
