"""Where a tensor lies: in a file, and of what parts an input of an engine consists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemotron_formats.dtypes import dtype_of_safetensors
from nemotron_formats.weights import WeightFormat

__all__ = ["EncodedWeight", "FileSpan", "TensorEntry", "WeightInput"]


@dataclass(frozen=True, slots=True)
class FileSpan:
    """``length`` bytes from ``offset`` on in a weights file; ``file`` is its name in the folder of the weights."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file: ``length`` bytes at the absolute ``offset`` of ``file`` in its folder.

    ``dtype`` is spelled as in the header ("BF16", "F16", "F32", "U8", …).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int

    @property
    def num_elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def span(self) -> FileSpan:
        """Its bytes."""
        return FileSpan(self.file, self.offset, self.length)

    @property
    def dtype_name(self) -> str:
        """numpy's name of the dtype; the header's own where this project does not use it."""
        known = dtype_of_safetensors(self.dtype)
        return self.dtype if known is None else known.name


@dataclass(frozen=True)
class WeightInput:
    """A weight that a graph or an engine takes as an input.

    Attributes:
        name: of the input.
        dtype: numpy's name.
        shape: its dims.
        parts: its bytes are theirs, one part after another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[FileSpan, ...]


@dataclass(frozen=True)
class EncodedWeight:
    """A weight that is stored in a format of its own.

    Attributes:
        format: the format.
        operands: name of each of the format's operands → where it lies.
    """

    format: WeightFormat
    operands: Mapping[str, TensorEntry]
