"""Reads JSON objects into dataclasses, strictly: a missing, unknown or mistyped key is an error."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from nemotron_errors import BundleError

__all__ = ["read_dataclass"]

_T = TypeVar("_T")
_REMEDY = "build the bundle again"


def read_dataclass(kind: type[_T], value: object, where: str) -> _T:
    """An instance of the dataclass ``kind`` from a JSON object.

    Field types may be str, int, float, bool, None, dict, list, tuple[X, ...], Literal, unions and dataclasses.

    Raises:
        BundleError: naming the key.
    """
    if not isinstance(value, dict):
        raise BundleError(_describe(value), "an object", _REMEDY, where=where)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    no_default = (dataclasses.MISSING, dataclasses.MISSING)
    required = {name for name, field in fields.items() if (field.default, field.default_factory) == no_default}
    if unknown := sorted(set(value) - set(fields)):
        raise BundleError(
            f"unknown keys {', '.join(unknown)}", f"keys {', '.join(sorted(fields))}", _REMEDY, where=where
        )
    if missing := sorted(required - set(value)):
        raise BundleError(f"no {', '.join(missing)}", "these keys", _REMEDY, where=where)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _read(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _read(hint, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise BundleError(repr(value), f"one of {', '.join(map(repr, arguments))}", _REMEDY, where=where)
        return value
    if origin is dict and isinstance(value, dict):
        return {str(key): _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return read_dataclass(typing.cast("type[Any]", hint), value, where)
    if hint is Any:
        return value
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise BundleError(_describe(value), f"a value of type {expected.__name__}", _REMEDY, where=where)
    return value


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:120]
