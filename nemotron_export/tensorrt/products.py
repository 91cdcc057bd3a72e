"""NVIDIA's two builders of engines: TensorRT, and TensorRT for RTX."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any

from nemotron_errors import MissingDependencyError

from nemotron_export.installation.extras import PROVEN, install_command

__all__ = ["PRODUCTS", "Product", "load_product"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Product:
    """A builder: what people call it, its Python module, and the extra that brings it."""

    name: str
    module: str
    extra: str

    @property
    def proven(self) -> str:
        """The version (major.minor) that this project was run with."""
        return PROVEN[self.extra]


PRODUCTS = {
    product.extra: product
    for product in (
        Product("TensorRT", "tensorrt", "tensorrt"),
        Product("TensorRT for RTX", "tensorrt_rtx_bindings", "tensorrt-rtx"),
    )
}


def load_product(extra: str) -> Any:
    """Imports a builder's module; a version that is not proven is logged.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
    """
    product = PRODUCTS[extra]
    try:
        trt: Any = importlib.import_module(product.module)
        version = str(trt.__version__)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # a package without its libraries fails in more ways than a missing one
        raise MissingDependencyError(
            f"no {product.module} that can be imported ({error})", f"{product.name} {product.proven}",
            install_command(extra), where="this Python environment",
        ) from error  # fmt: skip
    if version.split(".")[:2] != product.proven.split("."):
        _log.warning("%s %s is not proven: this project was run with %s", product.name, version, product.proven)
    return trt
