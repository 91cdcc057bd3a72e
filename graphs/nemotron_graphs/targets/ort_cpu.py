"""Target ``ort-cpu``: ONNX Runtime on the CPU, with its fused ops."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.target import LoweringContext, Target

__all__ = ["ort_cpu"]


def _passes(context: LoweringContext) -> Sequence[ir.passes.PassBase]:
    return (
        passes.SimplifyReshapesPass(),
        passes.CheckCacheReadersPass(),
        passes.FormGroupQueryAttentionPass(),
        passes.LowerLinearToFusedMatMulPass(),
        passes.InlineDialectOpsPass(),
        passes.CanonicalizeShapesPass(),
        passes.cleanup(),
        passes.DropUnusedInputsPass(),
        passes.BindRopeTablesPass(context.cos, context.sin),
        passes.BindWeightsPass(context.weights),
        passes.CheckCacheReadersPass(),
    )


ort_cpu = Target(
    name="ort-cpu",
    dtypes=("float32",),
    passes=_passes,
    session={
        "kind": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "graph": "model.onnx",
        # the CPU kernel refuses several rows of several tokens behind a past
        "prefill_rows": "one",
    },
    description="ONNX Runtime on the CPU: grouped-query attention on a shared cache, fused projections",
    requires="ort",
)
