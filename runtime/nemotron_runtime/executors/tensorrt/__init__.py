"""The executor over TensorRT engines."""
