"""Targets ``genai-cpu`` and ``genai-cuda``: bundles that are folders for ONNX Runtime GenAI."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.target import Target

__all__ = ["genai_cpu", "genai_cuda"]


def _lowering() -> Sequence[ir.passes.PassBase]:
    return (
        passes.FormGroupQueryAttentionPass(),
        passes.LowerLinearToFusedMatMulPass(),
        passes.GenaiAttentionMaskPass(),
        passes.GenaiFullLogitsPass(),
    )


def _finishing() -> Sequence[ir.passes.PassBase]:
    return (passes.FoldableGammaPass(), passes.GenaiNamesPass())


def _target(
    name: str, dtypes: tuple[str, ...], provider: str, description: str, quantized_bits: tuple[int, ...]
) -> Target:
    return Target(
        name=name,
        dtypes=dtypes,
        lowering=_lowering,
        finishing=_finishing,
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
    "CPUExecutionProvider",
    "a folder that ONNX Runtime GenAI loads, on the CPU",
    (8, 4),
)
genai_cuda = _target(
    "genai-cuda",
    ("bfloat16", "float16"),
    "CUDAExecutionProvider",
    "a folder that ONNX Runtime GenAI loads, on NVIDIA GPUs",
    (),
)
