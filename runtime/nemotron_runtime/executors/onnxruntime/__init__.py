"""Executors over ONNX Runtime."""
