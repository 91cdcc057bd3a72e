"""A plugin's fields: the request of its node, and the kernels that an engine keeps with it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemotron_errors import BundleError, GraphError

from nemotron_plugins.launches.launch import CompiledKernel, LaunchRecord
from nemotron_plugins.requests import KernelRequest

__all__ = ["Field", "kernel_fields", "kernels_of", "request_field", "request_in"]

_REQUEST = "kernel"
_TEXTS = ("CHAR", "INT8", "UNKNOWN")
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


def request_field(text: str) -> Field:
    """The attribute ``kernel`` of a node: the request in JSON, which :func:`request_in` reads back."""
    return Field(_REQUEST, "CHAR", text.encode())


def request_in(op: str, fields: Iterable[Field]) -> KernelRequest:
    """The request of a node of ``op``, which is all that its plugin takes of the node's attributes.

    Raises:
        GraphError: none, no text, or a request of another op.
    """
    where = f"{op}.{_REQUEST}"
    field = next((field for field in fields if field.name == _REQUEST), None)
    expected, remedy = f"a request for kernels of {op}", "bind the graph's nodes before the build"
    if field is None or field.type not in _TEXTS:
        found = "no such attribute" if field is None else f"a field of {field.type}"
        raise GraphError(found, expected, remedy, where=where)
    # the ONNX parser may hand a string over with its end mark
    request = KernelRequest.from_json(field.data.rstrip(b"\0").decode("utf-8", "replace"), where=where)
    if request.op != op:
        raise GraphError(f"a request for kernels of {request.op}", expected, remedy, where=where)
    return request


def kernel_fields(kernels: Mapping[str, CompiledKernel]) -> list[Field]:
    """Two fields for each kernel, by variant: its cubin, compressed by zlib, and its record."""
    fields = []
    for key, kernel in kernels.items():
        fields.append(Field(_CUBIN + key, "INT8", zlib.compress(kernel.cubin, _LEVEL)))
        fields.append(Field(_RECORD + key, "INT8", kernel.record.to_json().encode()))
    return fields


def kernels_of(op: str, fields: Iterable[Field]) -> dict[str, CompiledKernel]:
    """The kernels among fields, by variant; empty where there is a node's request alone.

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
