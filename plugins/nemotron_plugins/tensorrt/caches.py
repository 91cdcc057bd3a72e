"""Caches that a plugin updates in place."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from nemotron_plugins.driver import copy_on_device
from nemotron_plugins.launch_rules import ITEM_BYTES
from nemotron_plugins.tensorrt.operator import Tensor

__all__ = ["copy_caches"]

_log = logging.getLogger(__name__)


def copy_caches(name: str, dtype: str, caches: Iterable[tuple[Tensor, Tensor]], stream: int) -> None:
    """Copies caches whose output is not their input's memory; a session binds both to one, a builder may not."""
    for source, target in caches:
        if source.address != target.address:
            _log.warning("%s: a cache is copied, as TensorRT gave other memory for the output", name)
            size = math.prod(source.shape) * ITEM_BYTES[dtype]
            copy_on_device(stream, target.address, source.address, size)
