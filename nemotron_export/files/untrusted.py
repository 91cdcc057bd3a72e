"""Opening untrusted files: regular files alone, every failure told in one shape."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from nemotron_errors import CheckpointError, NemotronError

__all__ = ["file_size", "list_folder", "number", "open_regular", "parse_json", "quote", "read_json", "several"]

_MAX_JSON_BYTES = 64 << 20
_MAX_QUOTED = 120


def quote(value: object) -> str:
    """`repr` of a value out of an untrusted file, kept to one short line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 3]}..."


def several(items: list[str], *, most: int = 5) -> str:
    """The first few items and how many follow: `a, b, c and 12 more`."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def number(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


_CHECK_PATH = "check the path"
# error number -> what was found, and what to do
_OS_ERRORS = {
    errno.ENOENT: ("no such file or folder", "check the path, and that the download was complete"),
    errno.EACCES: ("no permission to read it", "give this user read permission (chmod, chown)"),
    errno.EPERM: ("no permission to read it", "give this user read permission (chmod, chown)"),
    errno.ELOOP: ("a loop of symbolic links", "replace the link by the file that it stands for"),
    errno.ENOTDIR: ("a file where a folder should be", _CHECK_PATH),
    errno.ENAMETOOLONG: ("a name too long for this file system", _CHECK_PATH),
}


def _os_error(
    path: Path, error: OSError | ValueError, expected: str, refusal: type[NemotronError] = CheckpointError
) -> NemotronError:
    if isinstance(error, ValueError):
        return refusal("a path with a null byte", expected, _CHECK_PATH, where=str(path))
    unknown = f"an error of the operating system ({error})", "check the disk and the path"
    found, remedy = _OS_ERRORS.get(error.errno or 0, unknown)
    if error.errno == errno.ENOENT and path.is_symlink():
        found = "a symbolic link whose target is missing"
    return refusal(found, expected, remedy, where=str(path))


def file_size(path: Path, expected: str, refusal: type[NemotronError] = CheckpointError) -> int:
    """Size in bytes of a regular file; raises ``refusal`` for anything else."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _os_error(path, error, expected, refusal) from None
    if not stat.S_ISREG(status.st_mode):
        # A pipe or a device would block or never end.
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise refusal(kind, expected, "put the file itself there", where=str(path))
    return status.st_size


def open_regular(path: Path, expected: str, refusal: type[NemotronError] = CheckpointError) -> tuple[BinaryIO, int]:
    """Opens a regular file unbuffered for reading; returns it and its size in bytes."""
    size = file_size(path, expected, refusal)
    try:
        return open(path, "rb", buffering=0), size
    except (OSError, ValueError) as error:
        raise _os_error(path, error, expected, refusal) from None


def list_folder(path: Path, expected: str) -> list[str]:
    """Sorted names in a folder; CheckpointError where it is none or cannot be read."""
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError) as error:
        raise _os_error(path, error, expected) from None


class _RefusedError(Exception):
    """Carries a finding out of the JSON parser's hooks."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {quote(key)} twice in one JSON object")
            seen.add(key)
    return result


def _constant(name: str) -> Any:
    raise _RefusedError(f"{name}, which is not JSON")


def parse_json(
    data: bytes, *, where: str, what: str, remedy: str, refusal: type[NemotronError] = CheckpointError
) -> dict[str, Any]:
    """Parses a JSON object strictly: UTF-8, no duplicate keys, no NaN, bounded nesting."""

    def refused(found: str) -> NemotronError:
        return refusal(found, f"{what} as one JSON object", remedy, where=where)

    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise refused(f"bytes that are not UTF-8 at {error.start}") from None
    except _RefusedError as error:
        raise refused(str(error)) from None
    except RecursionError:
        raise refused("JSON nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise refused(f"broken JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise refused(f"a JSON {type(parsed).__name__}")
    return parsed


def read_json(path: Path, what: str, refusal: type[NemotronError] = CheckpointError) -> dict[str, Any]:
    """Reads a JSON file of bounded size strictly.

    Raises ``refusal``, which calls it ``what``, where it is missing, unreadable or not one JSON object.
    """
    handle, size = open_regular(path, what, refusal)
    with handle:
        if size > _MAX_JSON_BYTES:
            limit = f"at most {_MAX_JSON_BYTES} bytes"
            raise refusal(f"{size} bytes", limit, f"check that this is {what}", where=str(path))
        data = handle.read()
    return parse_json(data, where=str(path), what=what, remedy="download or write the file again", refusal=refusal)
