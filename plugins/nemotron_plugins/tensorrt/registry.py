"""The plugins by op, and how they are made known to TensorRT."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from nemotron_errors import MissingDependencyError

from nemotron_plugins.tensorrt.attention import CachedAttention, PackedRotaryCachedAttention
from nemotron_plugins.tensorrt.linear import LayerNormLinear, LinearResidual
from nemotron_plugins.tensorrt.operator import PluginOp
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryKVCacheUpdate
from nemotron_plugins.tensorrt.plugin import PLUGIN_VERSION, plugin_classes

__all__ = ["PLUGIN_OPS", "register"]

PLUGIN_OPS: dict[str, type[PluginOp]] = {
    op.name: op
    for op in (
        PackedRotaryCachedAttention,
        PackedRotaryKVCacheUpdate,
        CachedAttention,
        LayerNormLinear,
        LinearResidual,
    )
}

_lock = threading.Lock()
# a registry keeps pointers to creators
_creators: list[Any] = []


def register() -> None:
    """Registers a creator for each op with TensorRT, once per process; needs no GPU. Also before an engine is loaded.

    Raises:
        MissingDependencyError: no TensorRT, bindings whose fields cannot be read, or a registry that refuses.
    """
    with _lock:
        if _creators:
            return
        try:
            trt: Any = importlib.import_module("tensorrt")
        except ImportError as error:
            raise MissingDependencyError(
                f"no tensorrt ({error})", "TensorRT 10.6", 'pip install "nemotron-export[tensorrt]"', where="tensorrt"
            ) from error
        _, creator = plugin_classes(trt)
        made = [creator(op) for op in PLUGIN_OPS.values()]
        registry = trt.get_plugin_registry()
        for each in made:
            if registry.register_creator(each, "") is False:
                found, expected = f"a plugin {each.name} already", f"one creator of {each.name} {PLUGIN_VERSION}"
                raise MissingDependencyError(found, expected, "load no other library of such plugins", where="tensorrt")
        _creators.extend(made)
