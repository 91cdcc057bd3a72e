"""The house of the GPU kernels and TensorRT plugin classes; it imports no other package here.

``launch``, the rules, ``kernel_spec``, ``library`` and ``driver`` need no Triton and no PyTorch; ``kernels``,
``compile`` and what begins with ``torch_`` need the ``build`` extra.
"""
