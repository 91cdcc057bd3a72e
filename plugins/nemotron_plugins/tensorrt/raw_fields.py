"""Fields to TensorRT and back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from nemotron_errors import MissingDependencyError

from nemotron_plugins.tensorrt.fields import Field

__all__ = ["FieldCollection", "field_reader"]

_ARRAYS = {"INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32, "FLOAT64": np.float64, "CHAR": np.int8,
           "INT8": np.int8, "UNKNOWN": np.int8}  # fmt: skip


class FieldCollection:
    """TensorRT's collection of fields, and what it points into: it must live as long as TensorRT may read it.

    Attributes:
        collection: the C++ collection itself: to make one of a Python list of fields, as TensorRT would, the bindings
            need a call of theirs on this thread, and TensorRT may ask from another.
    """

    def __init__(self, trt: Any, fields: Iterable[Field]) -> None:
        # names and data are pointers
        self._kept: list[Any] = []
        made = []
        for field in fields:
            array = np.frombuffer(field.data, _ARRAYS[field.type])
            made.append(trt.PluginField(field.name, array, getattr(trt.PluginFieldType, field.type)))
            self._kept += [field.name, field.data, array]
        fields_vector = trt.PluginFieldCollection(made)
        self._kept += [*made, fields_vector]
        self.collection: Any = trt.PluginFieldCollection_(fields_vector)


class _PluginField(ctypes.Structure):
    """``nvinfer1::PluginField``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


def field_reader(trt: Any) -> Callable[[Any], Field]:
    """A function that reads a ``PluginField`` whole.

    The Python bindings of TensorRT 10.6 were compiled for NumPy 1: under NumPy 2 every item of ``PluginField.data`` is
    the first one. There the field is read from the C++ object that the Python object holds a pointer to.

    Raises:
        MissingDependencyError: neither way gives back what a field was made of.
    """
    sample = Field("sample", "INT8", b"two items and more")
    made = FieldCollection(trt, [sample])
    (field,) = made.collection
    if _read_data(field) == sample:
        return _read_data
    if _structure(field) is not None and _read_structure(field) == sample:
        return _read_structure
    found = f"TensorRT {trt.__version__} with NumPy {np.__version__}, whose plugin fields cannot be read"
    raise MissingDependencyError(
        found, "bindings that fit NumPy", "install TensorRT 10.6 or a later one of version 10", where="tensorrt"
    )


def _read_data(field: Any) -> Field:
    kind = field.type.name
    return Field(field.name, kind, np.ascontiguousarray(field.data).tobytes() if kind in _ARRAYS else b"")


def _structure(field: Any) -> _PluginField | None:
    """The C++ object of a field; None where it is not where pybind11 keeps it, or says what Python does not."""
    if type(type(field)).__name__ != "pybind11_type":
        return None
    # the pointer to it follows the header that all Python objects have
    address = ctypes.c_void_p.from_address(id(field) + object.__basicsize__).value
    found = _PluginField.from_address(address) if address else None
    if found is None or (found.type, found.length) != (field.type.value, field.size):
        return None
    return found


def _read_structure(field: Any) -> Field:
    found, kind = _structure(field), field.type.name
    assert found is not None, "a field like those that the reader was chosen with"
    size = found.length * np.dtype(_ARRAYS[kind]).itemsize if kind in _ARRAYS else 0
    return Field(field.name, kind, ctypes.string_at(found.data, size) if size else b"")
