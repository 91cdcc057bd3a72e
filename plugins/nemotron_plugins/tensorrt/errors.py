"""Errors that plugins raised inside TensorRT, which itself only tells that something failed."""

from __future__ import annotations

import logging
import threading

__all__ = ["record_error", "take_error"]

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_first: Exception | None = None


def record_error(where: str, error: Exception) -> None:
    """Logs an error and keeps it for :func:`take_error`; of several, the first, which is the cause of the others."""
    global _first
    _log.error("%s: %s", where, error)
    with _lock:
        _first = _first or error


def take_error() -> Exception | None:
    """The first error since the last call, or None. Whoever called TensorRT asks, whatever TensorRT returned."""
    global _first
    with _lock:
        error, _first = _first, None
    return error
