"""Whether two tensors in files hold the same bytes, compared chunk by chunk."""

from __future__ import annotations

from pathlib import Path

from nemotron_errors import CheckpointError
from nemotron_formats.tensors import TensorEntry

from nemotron_export.files.untrusted import open_regular

__all__ = ["same_bytes"]

_CHUNK_BYTES = 4 << 20


def same_bytes(directory: Path, a: TensorEntry, b: TensorEntry) -> bool:
    """Streams both tensors once, up to the first difference; memory stays at two chunks.

    Raises:
        CheckpointError: where a file became shorter since its header was read.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    file_a, _ = open_regular(directory / a.file, "a safetensors file")
    file_b, _ = open_regular(directory / b.file, "a safetensors file")
    with file_a, file_b:
        file_a.seek(a.offset)
        file_b.seek(b.offset)
        left = a.length
        while left:
            count = min(left, _CHUNK_BYTES)
            part_a, part_b = file_a.read(count), file_b.read(count)
            if len(part_a) != count or len(part_b) != count:
                raise CheckpointError(
                    "a file that ends early", "the bytes that its header names",
                    "do not change the file while it is read", where=str(directory / a.file),
                )  # fmt: skip
            if part_a != part_b:
                return False
            left -= count
    return True
