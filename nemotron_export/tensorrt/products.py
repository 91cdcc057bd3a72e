"""NVIDIA's two builders of engines: TensorRT, and TensorRT for RTX."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from nemotron_errors import MissingDependencyError

from nemotron_export.installation.extras import PROVEN, install_command

__all__ = ["load_product"]

_log = logging.getLogger(__name__)


# Extra that brings it -> what people call it, and its Python module.
_PRODUCTS = {"tensorrt": ("TensorRT", "tensorrt"), "tensorrt-rtx": ("TensorRT for RTX", "tensorrt_rtx_bindings")}


def load_product(extra: str) -> Any:
    """Imports a builder's module; a version that is not proven is logged.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
    """
    (name, module), proven = _PRODUCTS[extra], PROVEN[extra]
    try:
        trt: Any = importlib.import_module(module)
        version = str(trt.__version__)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # a package without its libraries fails in more ways than a missing one
        raise MissingDependencyError(
            f"no {module} that can be imported ({error})", f"{name} {proven}",
            install_command(extra), where="this Python environment",
        ) from error  # fmt: skip
    if version.split(".")[:2] != proven.split("."):
        _log.warning("%s %s is not proven: this project was run with %s", name, version, proven)
    return trt
