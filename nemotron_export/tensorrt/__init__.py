"""ONNX graphs → TensorRT engines."""

from __future__ import annotations

from nemotron_export.tensorrt.build import BuiltEngine, EngineJob, build_engine
from nemotron_export.tensorrt.messages import EngineError
from nemotron_export.tensorrt.products import PRODUCTS, Product, load_product

__all__ = ["PRODUCTS", "BuiltEngine", "EngineError", "EngineJob", "Product", "build_engine", "load_product"]
