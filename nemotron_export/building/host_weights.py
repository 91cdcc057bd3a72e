"""The weights of engines that hold them, as the builder reads them: over the mapped checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nemotron_errors import CheckpointError
from nemotron_formats.tensors import FileSpan, WeightInput

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.tensorrt.constants import Constant

__all__ = ["host_constants"]

# whatever the dtype, and no less than what its items need
_ALIGNMENT = 4
_Bytes = npt.NDArray[np.uint8]


def host_constants(checkpoint: Checkpoint, weights: Sequence[WeightInput]) -> dict[str, Constant]:
    """Each weight by its name; equal parts are one array.

    Only packed weights, and what a file has at an odd place, are copied, one after another; the rest stays mapped as
    long as its constant lives.

    Raises:
        CheckpointError: a file that cannot be mapped.
    """
    needed = {part.file for weight in weights for part in weight.parts}
    files = {shard.path.name: _map(shard.path) for shard in checkpoint.shards if shard.path.name in needed}
    known: dict[tuple[FileSpan, ...], _Bytes] = {}
    constants = {}
    for weight in weights:
        if weight.parts not in known:
            known[weight.parts] = _bytes(files, weight.parts)
        constants[weight.name] = Constant(weight.dtype, weight.shape, known[weight.parts])
    return constants


def _map(path: Path) -> _Bytes:
    try:
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"a file that cannot be mapped ({error})", "weights", "restore the file", where=str(path)
        ) from error


def _bytes(files: Mapping[str, _Bytes], spans: Sequence[FileSpan]) -> _Bytes:
    parts = [np.asarray(files[span.file][span.offset : span.offset + span.length]) for span in spans]
    if len(parts) == 1 and parts[0].ctypes.data % _ALIGNMENT == 0:
        return parts[0]
    # a new array is aligned for any dtype
    return np.concatenate(parts)
