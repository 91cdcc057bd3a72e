"""Targets ``genai-cpu`` and ``genai-cuda``: bundles that are folders for ONNX Runtime GenAI."""

from __future__ import annotations

from typing import Any

from nemotron_graphs import passes
from nemotron_graphs.targets.onnx_passes import onnx_graph, packed_projections
from nemotron_graphs.targets.target import Passes, Target

__all__ = ["genai_cpu", "genai_cuda"]


def _cpu_lowering() -> Passes:
    return (
        passes.FormGroupQueryAttentionPass(),
        passes.LowerLinearToFusedMatMulPass(),
        passes.GenaiAttentionMaskPass(),
        passes.FullLogitsPass(),
    )


def _cpu_finishing() -> Passes:
    return (passes.FoldableGammaPass(), passes.GenaiNamesPass())


def _cuda_lowering() -> Passes:
    import onnx_ir as ir

    return (
        passes.FormGroupQueryAttentionPass(),
        passes.PackQKVPass(concat=True),
        passes.LowerLinearToFusedMatMulPass(),
        passes.GenaiAttentionMaskPass(),
        passes.FullLogitsPass(),
        # GenAI searches in float32 and converts float16 on the device; not every version of it does so with bfloat16
        passes.WidenOutputPass(ir.DataType.BFLOAT16),
    )


def _cuda_finishing() -> Passes:
    return (passes.FormSkipLayerNormalizationPass(), passes.FoldableGammaPass(), passes.GenaiNamesPass())


_COMMON: dict[str, Any] = {
    "executor": "genai",
    # a sequence of its own has no padding, which the mask could not tell from tokens in a later chunk
    "session": {"prefill_rows": "one"},
    # GenAI opens a folder by path
    "weight_modes": ("link", "copy"),
}

genai_cpu = Target(
    name="genai-cpu",
    description="a folder that ONNX Runtime GenAI loads, on the CPU",
    dtypes=("float32",),
    graphs=onnx_graph(_cpu_lowering, _cpu_finishing, {"GroupQueryAttention": lambda n: n.layers}),
    provider="CPUExecutionProvider",
    device="cpu",
    extra="genai",
    formats=("int8", "int4"),
    **_COMMON,
)
genai_cuda = Target(
    name="genai-cuda",
    description="a folder that ONNX Runtime GenAI loads, on NVIDIA GPUs",
    dtypes=("bfloat16", "float16"),
    graphs=onnx_graph(
        _cuda_lowering,
        _cuda_finishing,
        {
            "GroupQueryAttention": lambda n: n.layers,
            "packed projection": packed_projections,
            "SkipLayerNormalization": lambda n: 2 * n.layers,
        },
    ),
    provider="CUDAExecutionProvider",
    device="cuda",
    extra="genai-cuda",
    runner="ONNX Runtime GenAI",
    **_COMMON,
)
