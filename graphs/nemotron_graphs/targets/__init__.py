"""Targets: what a dialect graph can be lowered to."""

from __future__ import annotations

from nemotron_errors import GraphError

from nemotron_graphs.targets.candidate_graph import add_candidates
from nemotron_graphs.targets.genai import genai_cpu, genai_cuda
from nemotron_graphs.targets.onnx import onnx
from nemotron_graphs.targets.ort_cpu import ort_cpu
from nemotron_graphs.targets.ort_cuda import ort_cuda
from nemotron_graphs.targets.target import LoweredGraph, LoweringContext, Target
from nemotron_graphs.targets.tensorrt import tensorrt
from nemotron_graphs.targets.tensorrt_rtx import tensorrt_rtx

__all__ = ["TARGETS", "LoweredGraph", "LoweringContext", "Target", "add_candidates", "get_target"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (onnx, ort_cpu, ort_cuda, genai_cpu, genai_cuda, tensorrt, tensorrt_rtx)
}


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        GraphError: where there is none.
    """
    if name not in TARGETS:
        raise GraphError(f"target '{name}'", f"one of {', '.join(TARGETS)}", "choose one of them", where="--target")
    return TARGETS[name]
