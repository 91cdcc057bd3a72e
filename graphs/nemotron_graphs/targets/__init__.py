"""Targets: what a dialect graph can be lowered to."""

from __future__ import annotations

from nemotron_errors import GraphError

from nemotron_graphs.targets.genai import genai_cpu, genai_cuda
from nemotron_graphs.targets.onnx import onnx
from nemotron_graphs.targets.ort_cpu import ort_cpu
from nemotron_graphs.targets.ort_cuda import ort_cuda
from nemotron_graphs.targets.target import GraphRecipe, LoweringContext, Target
from nemotron_graphs.targets.tensorrt import tensorrt, tensorrt_native, tensorrt_rtx

__all__ = [
    "TARGETS",
    "GraphRecipe",
    "LoweringContext",
    "Target",
    "get_target",
    "tensorrt_native",
]

_TARGETS: tuple[Target, ...] = (
    onnx,
    ort_cpu,
    ort_cuda,
    genai_cpu,
    genai_cuda,
    tensorrt,
    tensorrt_rtx,
)
TARGETS: dict[str, Target] = {target.name: target for target in _TARGETS}


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        GraphError: where there is none.
    """
    if name not in TARGETS:
        raise GraphError(f"target '{name}'", f"one of {', '.join(TARGETS)}", "choose one of them", where="--target")
    return TARGETS[name]
