"""A strict reader of safetensors headers: reads 8 bytes and the header, never the tensors."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nemotron_errors import CheckpointError
from nemotron_formats.dtypes import SAFETENSORS_BITS
from nemotron_formats.tensors import TensorEntry

from nemotron_export.files.untrusted import open_regular, parse_json, quote, several

__all__ = ["MAX_HEADER_BYTES", "Shard", "read_header"]

# The format's own limit.
MAX_HEADER_BYTES = 100_000_000

_MAX_RANK = 64

_WHAT = "a safetensors file"
_AGAIN = "download or write the file again"


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file of `size` bytes, and what its checked header says.

    `header_bytes` counts the 8 length bytes and the header, after which the data starts; `header_sha256` hashes both.
    """

    path: Path
    size: int
    header_bytes: int
    header_sha256: str
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def read_header(path: Path) -> Shard:
    """Reads and checks the header of a safetensors file.

    Checked: the header's length against the file and the format's limit, UTF-8, JSON, duplicate keys, every entry's
    dtype, shape and offsets, and that the tensors cover the data without overlap, hole or trailing bytes.

    Raises:
        CheckpointError: naming the file and, where there is one, the tensor.
    """
    where = str(path)
    handle, file_bytes = open_regular(path, _WHAT)
    with handle:
        length_field, raw = _read_raw(handle, file_bytes, where)
    parsed = parse_json(raw, where=f"{where}: header", what="a safetensors header", remedy=_AGAIN)
    metadata = _metadata(parsed.pop("__metadata__", {}), where)
    header_bytes = len(length_field) + len(raw)
    tensors = {name: _entry(path, name, entry, header_bytes) for name, entry in parsed.items()}
    _check_layout(list(tensors.values()), header_bytes, file_bytes, where)
    digest = hashlib.sha256(length_field + raw).hexdigest()
    return Shard(path, file_bytes, header_bytes, digest, metadata, tensors)


def _broken(where: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(found, expected, _AGAIN, where=where)


def _read_raw(handle: BinaryIO, file_bytes: int, where: str) -> tuple[bytes, bytes]:
    if file_bytes < 10:
        raise _broken(where, f"{file_bytes} bytes", "8 length bytes and a header")
    length_field = _read_exactly(handle, 8, where)
    (length,) = struct.unpack("<Q", length_field)
    where = f"{where}: header"
    if length < 2:
        raise _broken(where, f"a header of {length} bytes", "at least the 2 bytes of {}")
    if length > MAX_HEADER_BYTES:
        hint = f"{_AGAIN}; this may be another format under a .safetensors name"
        raise CheckpointError(f"a header of {length} bytes", f"at most {MAX_HEADER_BYTES} bytes", hint, where=where)
    if length > file_bytes - 8:
        found = f"a header of {length} bytes in a file of {file_bytes} bytes (truncated)"
        raise _broken(where, found, f"at most {file_bytes - 8} bytes")
    raw = _read_exactly(handle, length, where)
    if not raw.startswith(b"{"):
        raise _broken(where, f"a header that begins with {quote(raw[:1])}", "{")
    return length_field, raw


def _read_exactly(handle: BinaryIO, count: int, where: str) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = handle.read(count - len(data))
        if not part:
            raise CheckpointError(f"{len(data)} bytes", f"{count} bytes", "do not change the file while it is read",
                                  where=where)  # fmt: skip
        data += part
    return bytes(data)


def _metadata(metadata: Any, where: str) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(f"{where}: header", f"__metadata__ = {quote(metadata)}", "an object of strings")
    return metadata


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(path: Path, name: str, entry: Any, header_bytes: int) -> TensorEntry:
    where = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict):
        raise _broken(where, f"the entry {quote(entry)}", "an object with dtype, shape, data_offsets")
    keys = {"dtype", "shape", "data_offsets"}
    if entry.keys() != keys:
        absent = sorted(keys - entry.keys())
        found = f"no {' and no '.join(absent)}" if absent else f"the unknown keys {quote(sorted(entry.keys() - keys))}"
        raise _broken(where, found, "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BITS:
        raise _broken(where, f"dtype {quote(dtype)}", f"one of {', '.join(SAFETENSORS_BITS)}")
    # Bounded, so that the product below is: a hostile shape of a million sizes would not end.
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(size) for size in shape):
        raise _broken(where, f"shape {quote(shape)}", "a list of non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise _broken(where, f"data_offsets {quote(offsets)}", "two non-negative integers")
    begin, end = offsets
    if begin > end:
        raise _broken(where, f"data_offsets {quote(offsets)}", "begin <= end")
    bits = math.prod(shape) * SAFETENSORS_BITS[dtype]
    if (end - begin) * 8 != bits:
        raise _broken(
            where, f"{quote(end - begin)} bytes", f"{quote(bits // 8)} bytes for {dtype} of shape {quote(shape)}"
        )
    return TensorEntry(name, dtype, tuple(shape), path.name, header_bytes + begin, end - begin)


def _check_layout(entries: list[TensorEntry], header_bytes: int, file_bytes: int, where: str) -> None:
    """The tensors must tile the data: no overlap (two tensors would alias), no hole, nothing after the last."""
    cursor, previous = header_bytes, ""
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.length)):
        if entry.offset < cursor:
            found = f"a tensor that begins at {entry.offset}, inside {quote(previous)}, which ends at {cursor}"
            raise _broken(f"{where}: tensor {quote(entry.name)}", found, "tensors that do not overlap")
        if entry.offset > cursor:
            found = f"a hole of {quote(entry.offset - cursor)} bytes before it"
            raise _broken(f"{where}: tensor {quote(entry.name)}", found, "tensors without holes between them")
        cursor, previous = entry.offset + entry.length, entry.name
    if cursor > file_bytes:
        cut = [quote(entry.name) for entry in entries if entry.offset + entry.length > file_bytes]
        found = f"{file_bytes} bytes (truncated: {several(cut, most=3)} lie past the end)"
        raise CheckpointError(found, f"{quote(cursor)} bytes", "download the file again", where=where)
    if cursor < file_bytes:
        found = f"{file_bytes - cursor} bytes after the last tensor"
        raise _broken(where, found, f"a file of {cursor} bytes")
