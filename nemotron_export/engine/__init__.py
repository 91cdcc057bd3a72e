"""ONNX graphs → TensorRT engines."""

from __future__ import annotations

from nemotron_export.engine.build import BuiltEngine, EngineJob, build_engine
from nemotron_export.engine.messages import EngineError
from nemotron_export.engine.products import PRODUCTS, Product, load_product

__all__ = ["PRODUCTS", "BuiltEngine", "EngineError", "EngineJob", "Product", "build_engine", "load_product"]
