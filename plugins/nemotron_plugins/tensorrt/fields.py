"""A plugin's fields: attributes of a node, and the kernels that an engine keeps beside them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemotron_errors import BundleError, GraphError

from nemotron_plugins.launches.launch import CompiledKernel, LaunchRecord

__all__ = ["Attribute", "Field", "FieldSpec", "attribute_fields", "attributes_of", "kernel_fields", "kernels_of"]

Attribute = int | float | str

# names of TensorRT's field types, their layout in memory
_NUMBERS = {"INT32": ("i", int), "INT64": ("q", int), "FLOAT32": ("f", float), "FLOAT64": ("d", float)}
_TEXTS = ("CHAR", "INT8", "UNKNOWN")
_WORDS = {int: "an integer", float: "a floating-point number", str: "a string"}
# a cubin is a zlib stream (RFC 1950): every node keeps its kernels, and they shrink to about a quarter
_CUBIN, _RECORD = "cubin.zlib:", "record:"
_LEVEL = 9
_REBUILD = "build the engine again"


@dataclass(frozen=True)
class Field:
    """One field as TensorRT keeps it: name, name of its type, and bytes."""

    name: str
    type: str
    data: bytes


@dataclass(frozen=True)
class FieldSpec:
    """What an attribute may be.

    Attributes:
        name: of the op's attribute.
        kind: its type.
        default: where it may be left out.
        choices: of a string, where there is a list.
    """

    name: str
    kind: type[int] | type[float] | type[str]
    default: Attribute | None = None
    choices: tuple[str, ...] = ()


def attributes_of(op: str, specs: Iterable[FieldSpec], fields: Iterable[Field]) -> dict[str, Attribute]:
    """The value of every attribute; fields of kernels are passed over.

    Raises:
        GraphError: an attribute that is missing, unknown, of another type, or none of its choices.
    """
    known = {spec.name: spec for spec in specs}
    found = {field.name: field for field in fields if not field.name.startswith((_CUBIN, _RECORD))}
    for name in found:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "no attributes"
            raise GraphError(f"an attribute {name}", expected, "remove it from the node", where=op)
    values: dict[str, Attribute] = {}
    for name, spec in known.items():
        where = f"{op}.{name}"
        field = found.get(name)
        if field is None:
            if spec.default is None:
                raise GraphError("no such attribute", _WORDS[spec.kind], "make the node with it", where=where)
            values[name] = spec.default
            continue
        value = values[name] = _value(field, spec, where)
        if spec.choices and value not in spec.choices:
            raise GraphError(f"'{value}'", f"one of {', '.join(spec.choices)}", "use one of them", where=where)
        if spec.kind is str and not value:
            raise GraphError("an empty string", "a name", "make the node with one", where=where)
    return values


def _value(field: Field, spec: FieldSpec, where: str) -> Attribute:
    if field.type in _NUMBERS:
        letter, kind = _NUMBERS[field.type]
        size = struct.calcsize(letter)
        if kind is spec.kind and len(field.data) == size:
            value: Attribute = struct.unpack(letter, field.data)[0]
            return value
        found = f"{len(field.data) // size} values of {field.type}"
    elif field.type in _TEXTS and spec.kind is str:
        # the ONNX parser may hand a string over with its end mark
        return field.data.rstrip(b"\0").decode("utf-8", "replace")
    else:
        found = f"a field of {field.type}"
    raise GraphError(found, _WORDS[spec.kind], "make the node's attribute one", where=where)


def attribute_fields(values: Mapping[str, Attribute]) -> list[Field]:
    """Fields that :func:`attributes_of` reads back; floating-point numbers become fp32, as in ONNX."""
    fields = []
    for name, value in values.items():
        if isinstance(value, str):
            fields.append(Field(name, "CHAR", value.encode()))
        elif isinstance(value, float):
            fields.append(Field(name, "FLOAT32", struct.pack("f", value)))
        else:
            fields.append(Field(name, "INT64", struct.pack("q", value)))
    return fields


def kernel_fields(kernels: Mapping[str, CompiledKernel]) -> list[Field]:
    """Two fields for each kernel: its cubin, compressed by zlib, and its record."""
    fields = []
    for key, kernel in kernels.items():
        fields.append(Field(_CUBIN + key, "INT8", zlib.compress(kernel.cubin, _LEVEL)))
        fields.append(Field(_RECORD + key, "INT8", kernel.record.to_json().encode()))
    return fields


def kernels_of(op: str, fields: Iterable[Field]) -> dict[str, CompiledKernel]:
    """The kernels among fields, by key; empty where a node has attributes alone.

    Raises:
        BundleError: a cubin without a record or the other way round, or one of them that cannot be read.
    """
    parts = {field.name: field.data for field in fields if field.name.startswith((_CUBIN, _RECORD))}
    keys = {name.partition(":")[2]: None for name in parts}
    kernels = {}
    for key in keys:
        for name in (_CUBIN + key, _RECORD + key):
            if name not in parts:
                raise BundleError(f"no field {name}", "the cubin and the record of a kernel", _REBUILD, where=op)
        where = f"{op}.{_RECORD}{key}"
        try:
            text = parts[_RECORD + key].decode()
        except UnicodeDecodeError as error:
            raise BundleError(f"{error}", "a launch record in JSON", _REBUILD, where=where) from error
        try:
            cubin = zlib.decompress(parts[_CUBIN + key])
        except zlib.error as error:
            raise BundleError(
                f"{error}", "a cubin compressed by zlib", _REBUILD, where=f"{op}.{_CUBIN}{key}"
            ) from error
        kernels[key] = CompiledKernel(cubin, LaunchRecord.from_json(text, where=where))
    return kernels
