"""Target ``onnx``: standard ops alone, for any runtime."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.target import LoweringContext, Target

__all__ = ["onnx"]


def _passes(context: LoweringContext) -> Sequence[ir.passes.PassBase]:
    return (
        passes.SimplifyReshapesPass(),
        passes.CheckCacheReadersPass(),
        passes.InlineDialectOpsPass(),
        passes.CanonicalizeShapesPass(),
        passes.cleanup(),
        passes.DropUnusedInputsPass(),
        passes.BindRopeTablesPass(context.cos, context.sin),
        passes.BindWeightsPass(context.weights),
        passes.CheckCacheReadersPass(),
    )


onnx = Target(
    name="onnx",
    dtypes=("float32", "float16", "bfloat16"),
    passes=_passes,
    session={
        "kind": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "graph": "model.onnx",
        "prefill_rows": "all",
    },
    description="standard ONNX ops (opset 21), for any runtime",
    requires="ort",
)
