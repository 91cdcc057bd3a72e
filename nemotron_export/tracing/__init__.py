"""Tracing: the reference model, on meta tensors, to an ONNX graph in the ``nemotron`` dialect."""

from nemotron_export.tracing.trace import trace

__all__ = ["trace"]
