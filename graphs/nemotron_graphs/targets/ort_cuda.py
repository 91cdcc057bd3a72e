"""Target ``ort-cuda``: ONNX Runtime on NVIDIA GPUs, with its fused ops and one CUDA graph per decode step."""

from __future__ import annotations

from typing import Any

from nemotron_graphs import passes
from nemotron_graphs.targets.onnx_passes import onnx_graph, packed_projections
from nemotron_graphs.targets.target import LoweringContext, Passes, Target

__all__ = ["ort_cuda"]

# top-k candidates of each sequence that a second graph finds where the logits are
_CANDIDATES = 128


def _lowering() -> Passes:
    return (
        # the kernel reads the longest sequence's length on the host: computed in the graph it would be copied there
        passes.FormGroupQueryAttentionPass(total_input=True),
        passes.PackQKVPass(quantized=True),
        passes.LowerLinearToFusedMatMulPass(),
        passes.WidenOutputPass(),
        passes.GreedyTokensPass(),
    )


def _finishing() -> Passes:
    return (passes.FormSkipLayerNormalizationPass(), passes.FoldableGammaPass())


def _add(lowered: Any, context: LoweringContext) -> Any:
    # needs onnx
    from nemotron_graphs.targets.candidate_graph import add_candidates

    return add_candidates(lowered, _CANDIDATES) if context.chooses_tokens else lowered


ort_cuda = Target(
    name="ort-cuda",
    description="ONNX Runtime on NVIDIA GPUs: grouped-query attention on a shared cache, a CUDA graph per decode step",
    dtypes=("bfloat16", "float16"),
    graphs=onnx_graph(
        _lowering,
        _finishing,
        {
            "GroupQueryAttention": lambda n: n.layers,
            "packed projection": packed_projections,
            # the first norm follows no sum, and the last one the positions that are wanted
            "SkipLayerNormalization": lambda n: 2 * n.layers - 1,
        },
    ),
    executor="onnxruntime-cuda",
    provider="CUDAExecutionProvider",
    device="cuda",
    extra="ort-gpu",
    session={"prefill_rows": "one", "cuda_graph": True},
    stored_dtype_first=True,
    formats=("int8", "int4"),
    takes_cpu_nodes=True,
    add=_add,
)
