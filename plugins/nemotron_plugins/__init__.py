"""The house of the GPU kernels and TensorRT plugin classes; no target uses it yet. It imports no other package here."""
