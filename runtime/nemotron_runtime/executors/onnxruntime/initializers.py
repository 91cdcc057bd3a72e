"""Which weights a graph's file refers to, read from its protocol buffers: the runtime needs no onnx package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["ExternalTensor", "external_tensors"]

# numbers of fields in onnx.proto
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1
# wire types of protocol buffers, and the bytes of those of fixed size
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer of ONNX's type ``data_type``, bytes ``offset`` to ``offset + length`` of a file."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """The initializers of a serialized model's graph whose data is elsewhere, in order.

    Raises:
        ValueError: bytes that are no model, or a tensor that does not say where its data is.
    """
    found = []
    with memoryview(model) as whole:
        graphs = (value for number, value in _fields(whole) if number == _MODEL_GRAPH)
        for graph in graphs:
            initializers = (value for number, value in _fields(_bytes(graph)) if number == _GRAPH_INITIALIZER)
            found += [tensor for value in initializers if (tensor := _tensor(_bytes(value))) is not None]
    return found


def _tensor(message: memoryview) -> ExternalTensor | None:
    name, data_type, location, shape = "", 0, 0, []
    entries: dict[str, str] = {}
    for number, value in _fields(message):
        if number == _DIMS:
            # one by one or packed, as the writer likes
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _DATA_TYPE:
            data_type = _int(value)
        elif number == _NAME:
            name = str(_bytes(value), "utf-8")
        elif number == _DATA_LOCATION:
            location = _int(value)
        elif number == _EXTERNAL_DATA:
            pair = {key: str(_bytes(text), "utf-8") for key, text in _fields(_bytes(value)) if key in (_KEY, _VALUE)}
            entries[pair.get(_KEY, "")] = pair.get(_VALUE, "")
    if location != _EXTERNAL:
        return None
    if "location" not in entries or "length" not in entries:
        raise ValueError(f"initializer '{name}' without location or length of its data")
    where = entries["location"], int(entries.get("offset", "0")), int(entries["length"])
    return ExternalTensor(name, data_type, tuple(shape), *where)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of a message's fields; those of fixed size are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif kind == _BYTES:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError(f"field {number} of {length} bytes, {len(message) - at} left")
            yield number, message[at : at + length]
            at += length
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"field {number} of wire type {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value


def _int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes in place of a number")
    return value
