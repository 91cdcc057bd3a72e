"""GPU kernels and TensorRT plugins, from the bottom up:

- ``launches``: how each kernel is compiled and launched, as data; ``kernels``: the Triton functions;
- ``driver``: launches compiled kernels; ``compiling``: compiles them, in processes;
- ``requests``: what a node asks for; ``library``: compiled kernels, which a bundle keeps;
- ``tensorrt``: a plugin per op, with the rule that turns a request into launches;
- ``build``: compiles a set of requests.

``kernels``, ``compiling`` and ``build`` need Triton, of the ``build`` extra; nothing needs PyTorch.
"""
