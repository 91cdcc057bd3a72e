"""The kernels that plugins take while an engine is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from nemotron_plugins.library import KernelLibrary

__all__ = ["current_library", "use_library"]

_current: ContextVar[KernelLibrary | None] = ContextVar("kernel_library", default=None)


@contextmanager
def use_library(library: KernelLibrary) -> Iterator[None]:
    """Nodes that are parsed inside take their kernels from ``library``; it is of this thread."""
    token = _current.set(library)
    try:
        yield
    finally:
        _current.reset(token)


def current_library() -> KernelLibrary | None:
    """The library in use, or None."""
    return _current.get()
