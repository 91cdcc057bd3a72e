"""Lays out a safetensors file before any of its tensors exists, so that they can be written one block at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_formats.dtypes import SAFETENSORS_BITS
from nemotron_formats.tensors import TensorEntry

__all__ = ["lay_out_file", "write_array"]

_ALIGNMENT = 64


def lay_out_file(
    file: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, TensorEntry], int]:
    """The header and the places of a file's tensors, in the order given and without holes.

    Args:
        tensors: name → (dtype in the format's words, shape).
        metadata: the header's free texts.

    Returns:
        The file's first bytes (length and header, padded so that data begins at a multiple of 64), name → entry with
        its offset in the file, and the file's length in bytes.
    """
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * SAFETENSORS_BITS[dtype] // 8
        places[name] = (start, end)
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    described |= {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(places[name])}
        for name, (dtype, shape) in tensors.items()
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    entries = {
        name: TensorEntry(name, dtype, shape, file, len(header) + places[name][0], places[name][1] - places[name][0])
        for name, (dtype, shape) in tensors.items()
    }
    return header, entries, len(header) + end


def write_array(file: int, values: npt.NDArray[Any], offset: int) -> None:
    """Writes the array's bytes to a file descriptor at an offset; several threads may write at once."""
    view = memoryview(np.ascontiguousarray(values).data).cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
