"""Passes to ONNX Runtime GenAI's contract."""
