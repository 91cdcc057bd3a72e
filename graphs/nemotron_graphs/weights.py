"""Where a weight lies on disk: what a graph needs to refer to it without reading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

__all__ = ["SAFETENSORS_DTYPES", "QuantizedWeight", "WeightRef"]

SAFETENSORS_DTYPES = {
    "BF16": ir.DataType.BFLOAT16,
    "F16": ir.DataType.FLOAT16,
    "F32": ir.DataType.FLOAT,
    "U8": ir.DataType.UINT8,
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


@dataclass(frozen=True)
class QuantizedWeight:
    """The parts of a weight [O, I] that is stored as codes and scales of groups of input features.

    Attributes:
        bits: of a code.
        group_size: input features that share a scale.
        accuracy_level: how MatMulNBits may treat activations: 0 leaves them, 4 makes them int8.
        packed: name of the codes.
        packed_shape: [O, groups, bytes of a group].
        scales: name of the scales, float32 [O, groups].
    """

    bits: int
    group_size: int
    accuracy_level: int
    packed: str
    packed_shape: tuple[int, ...]
    scales: str
