"""Target ``ort-cuda``: ONNX Runtime on NVIDIA GPUs, with its fused ops and one CUDA graph per decode step."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.target import Target

__all__ = ["ort_cuda"]


def _lowering() -> Sequence[ir.passes.PassBase]:
    return (
        # the kernel reads the longest row's length on the host: computed in the graph it would be copied there
        passes.FormGroupQueryAttentionPass(total_input=True),
        passes.PackQKVPass(quantized=True),
        passes.LowerLinearToFusedMatMulPass(),
        passes.WidenOutputPass(),
        passes.GreedyTokensPass(),
    )


def _finishing() -> Sequence[ir.passes.PassBase]:
    return (passes.FormSkipLayerNormalizationPass(), passes.FoldableGammaPass())


ort_cuda = Target(
    name="ort-cuda",
    dtypes=("bfloat16", "float16"),
    stored_dtype_first=True,
    lowering=_lowering,
    finishing=_finishing,
    session={
        "kind": "onnxruntime",
        "provider": "CUDAExecutionProvider",
        "graph": "model.onnx",
        "prefill_rows": "one",
        "cuda_graph": True,
    },
    description="ONNX Runtime on NVIDIA GPUs: grouped-query attention on a shared cache, a CUDA graph per decode step",
    extra="ort-gpu",
    device="cuda",
    quantized_bits=(8, 4),
    candidates=128,
)
