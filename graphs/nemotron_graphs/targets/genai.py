"""Targets ``genai-cpu`` and ``genai-cuda``: bundles that are folders for ONNX Runtime GenAI."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.target import Target

__all__ = ["genai_cpu", "genai_cuda"]


_Passes = Callable[[], Sequence[ir.passes.PassBase]]


def _cpu_lowering() -> Sequence[ir.passes.PassBase]:
    return (
        passes.FormGroupQueryAttentionPass(),
        passes.LowerLinearToFusedMatMulPass(),
        passes.GenaiAttentionMaskPass(),
        passes.FullLogitsPass(),
    )


def _cpu_finishing() -> Sequence[ir.passes.PassBase]:
    return (passes.FoldableGammaPass(), passes.GenaiNamesPass())


def _cuda_lowering() -> Sequence[ir.passes.PassBase]:
    return (
        passes.FormGroupQueryAttentionPass(),
        passes.PackQKVPass(concat=True),
        passes.LowerLinearToFusedMatMulPass(),
        passes.GenaiAttentionMaskPass(),
        passes.FullLogitsPass(),
        # GenAI searches in float32 and converts float16 on the device; not every version of it does so with bfloat16
        passes.WidenOutputPass(ir.DataType.BFLOAT16),
    )


def _cuda_finishing() -> Sequence[ir.passes.PassBase]:
    return (passes.FormSkipLayerNormalizationPass(), passes.FoldableGammaPass(), passes.GenaiNamesPass())


def _target(
    name: str,
    dtypes: tuple[str, ...],
    made_by: tuple[_Passes, _Passes],
    provider: str,
    description: str,
    quantized_bits: tuple[int, ...],
) -> Target:
    lowering, finishing = made_by
    return Target(
        name=name,
        dtypes=dtypes,
        lowering=lowering,
        finishing=finishing,
        session={
            "kind": "genai",
            "provider": provider,
            "graph": "model.onnx",
            # a row of its own has no padding, which the mask could not tell from tokens in a later chunk
            "prefill_rows": "one",
        },
        weight_modes=("link", "copy"),
        description=description,
        requires="ort",
        quantized_bits=quantized_bits,
    )


genai_cpu = _target(
    "genai-cpu",
    ("float32",),
    (_cpu_lowering, _cpu_finishing),
    "CPUExecutionProvider",
    "a folder that ONNX Runtime GenAI loads, on the CPU",
    (8, 4),
)
genai_cuda = _target(
    "genai-cuda",
    ("bfloat16", "float16"),
    (_cuda_lowering, _cuda_finishing),
    "CUDAExecutionProvider",
    "a folder that ONNX Runtime GenAI loads, on NVIDIA GPUs",
    (),
)
