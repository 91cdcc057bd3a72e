"""Launching compiled kernels through the CUDA driver; needs no Triton."""
