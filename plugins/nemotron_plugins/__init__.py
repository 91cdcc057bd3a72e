"""The house of the GPU kernels and TensorRT plugin classes; no target uses it yet. It imports no other package here.

``launch``, ``launch_rules`` and ``attention_rules`` need nothing but Python; ``kernels``, ``compile`` and
``torch_launch`` need the ``build`` extra.
"""
