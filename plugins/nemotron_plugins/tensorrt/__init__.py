"""The dialect's ops as TensorRT plugins. Importing this package needs no TensorRT; :func:`register` does.

Whoever builds or loads an engine calls :func:`register` first, builds inside :func:`use_library`, and asks
:func:`take_error` after every call of TensorRT: it drops what a plugin raises.
"""

from __future__ import annotations

from nemotron_plugins.tensorrt.errors import take_error
from nemotron_plugins.tensorrt.plugin import use_library
from nemotron_plugins.tensorrt.registry import PLUGIN_OPS, register

__all__ = ["PLUGIN_OPS", "register", "take_error", "use_library"]
