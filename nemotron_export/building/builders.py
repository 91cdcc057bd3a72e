"""The builder of each target."""

from __future__ import annotations

from nemotron_graphs.targets import get_target

from nemotron_export.building.builder import Builder
from nemotron_export.building.genai import GenaiBuilder
from nemotron_export.building.request import BuildRequest
from nemotron_export.building.tensorrt import TensorRTBuilder
from nemotron_export.building.tensorrt_rtx import RTXBuilder

__all__ = ["BUILDERS", "builder_for"]

# executor of the target's bundles → what builds them
BUILDERS: dict[str, type[Builder]] = {
    "onnxruntime": Builder,
    "onnxruntime-cuda": Builder,
    "genai": GenaiBuilder,
    "tensorrt": TensorRTBuilder,
    "tensorrt-rtx": RTXBuilder,
}


def builder_for(request: BuildRequest) -> Builder:
    """The builder of a request's target.

    Raises:
        GraphError: no such target.
        RequestError: options that the target does not take.
    """
    target = get_target(request.target)
    if request.allow_cpu_nodes:
        target = target.allowing_cpu_nodes()
    return BUILDERS[target.executor](target, request)
