"""Ahead-of-time compilation of the kernels."""
