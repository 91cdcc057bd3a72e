"""ONNX graphs → TensorRT engines."""

from __future__ import annotations

from nemotron_export.tensorrt.build import BuiltEngine, EngineJob, build_engine
from nemotron_export.tensorrt.messages import EngineError
from nemotron_export.tensorrt.products import load_product

__all__ = ["BuiltEngine", "EngineError", "EngineJob", "build_engine", "load_product"]
