"""Target ``ort-cpu``: ONNX Runtime on the CPU, with its fused ops."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.target import Target

__all__ = ["ort_cpu"]


def _lowering() -> Sequence[ir.passes.PassBase]:
    return (passes.FormGroupQueryAttentionPass(), passes.PackQKVPass(), passes.LowerLinearToFusedMatMulPass())


ort_cpu = Target(
    name="ort-cpu",
    dtypes=("float32",),
    lowering=_lowering,
    session={
        "kind": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "graph": "model.onnx",
        # the CPU kernel refuses several rows of several tokens behind a past
        "prefill_rows": "one",
    },
    description="ONNX Runtime on the CPU: grouped-query attention on a shared cache, fused projections",
    extra="ort",
    device="cpu",
    quantized_bits=(8, 4),
)
