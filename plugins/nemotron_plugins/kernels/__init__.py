"""The Triton kernels: a launch names one as ``file.function``; this package imports none of them."""
