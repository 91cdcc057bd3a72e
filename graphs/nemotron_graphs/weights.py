"""Where a weight lies on disk: what a graph needs to refer to it without reading it."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

__all__ = ["SAFETENSORS_DTYPES", "WeightRef"]

SAFETENSORS_DTYPES = {
    "BF16": ir.DataType.BFLOAT16,
    "F16": ir.DataType.FLOAT16,
    "F32": ir.DataType.FLOAT,
}


class WeightRef(Protocol):
    """A tensor inside a ``.safetensors`` file.

    Attributes:
        dtype: as safetensors spells it ("BF16", "F16", "F32").
        shape: its dims.
        file: the file's name, without a folder.
        offset: where its bytes start in the file.
        length: how many bytes it has.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def file(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
