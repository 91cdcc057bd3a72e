"""Targets whose bundles hold engines: one way in for both of NVIDIA's builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_errors import RequestError
from nemotron_graphs.targets import LoweredGraph, Target
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest_tensorrt import RTXRecord, TensorRTRecord

from nemotron_export.building.graph import make_tensorrt_graphs
from nemotron_export.building.host_weights import host_constants
from nemotron_export.building.tensorrt import (
    EngineMachine,
    EnginePlan,
    find_machine,
    is_tensorrt,
    kernel_spec,
    plan_engines,
)
from nemotron_export.building.tensorrt import write_engines as write_tensorrt
from nemotron_export.building.tensorrt_rtx import RTXPlan, find_rtx, is_tensorrt_rtx, plan_rtx, write_rtx_engines
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.parity.provider import check_cuda_provider
from nemotron_export.progress import Progress

__all__ = ["EngineOptions", "find_builder", "plan_target_engines", "write_target_engines"]


@dataclass(frozen=True)
class EngineOptions:
    """What a user may say of engines.

    Attributes:
        architectures: "sm_80", …: for tensorrt, more than the GPU's that the bundle has kernels for; for tensorrt-rtx,
            those that engines are built for.
        plugins: whether the project's own kernels compute, or layers that TensorRT has.
        embed_weights: whether the weights are inside the engines.
    """

    architectures: Sequence[str] = ()
    plugins: bool = True
    embed_weights: bool = False


def find_builder(target: Target, options: EngineOptions, parity: bool) -> Any:
    """What builds the target's engines here; None where it has none.

    Raises:
        RequestError: options that the target does not take.
        MissingDependencyError: what the build, or the parity check at its end, needs is not here.
    """
    if is_tensorrt(target):
        return find_machine(options.plugins)
    if options.embed_weights:
        found, expected = (
            f"--embed-weights for target {target.name}",
            "it for target tensorrt, whose engines can hold them",
        )
        remedy = "leave it out; --weights copy makes a folder that ships"
        raise RequestError(found, expected, remedy, where="--embed-weights")
    if options.plugins is False:
        expected = "it for target tensorrt, which has plugins"
        raise RequestError(f"--no-plugins for target {target.name}", expected, "leave it out", where="--no-plugins")
    if is_tensorrt_rtx(target):
        return find_rtx(parity)
    if options.architectures:
        found, expected = f"architectures for target {target.name}", "them for tensorrt or tensorrt-rtx"
        raise RequestError(found, expected, "leave the option out", where="--architectures")
    if parity:
        check_cuda_provider(target)
    return None


def plan_target_engines(
    builder: Any, checkpoint: Checkpoint, dtype: str, limits: Limits, options: EngineOptions
) -> EnginePlan | RTXPlan | None:
    """Checks that the engines can be built; see :func:`plan_engines` and :func:`plan_rtx`."""
    if isinstance(builder, EngineMachine):
        return plan_engines(
            builder, checkpoint, dtype, limits, options.architectures,
            plugins=options.plugins, embed_weights=options.embed_weights,
        )  # fmt: skip
    return None if builder is None else plan_rtx(builder, checkpoint, dtype, options.architectures)


def write_target_engines(
    plan: EnginePlan | RTXPlan, target: Target, checkpoint: Checkpoint, dtype: str, limits: Limits,
    wide_layers: Sequence[int], folder: Path, progress: Progress,
) -> tuple[LoweredGraph, dict[str, TensorRTRecord | RTXRecord]]:  # fmt: skip
    """Traces, lowers and builds; gives the graph that the manifest describes, and its records of engines by key."""
    native = isinstance(plan, RTXPlan) or not plan.plugins
    graphs = make_tensorrt_graphs(checkpoint, target, dtype, limits, wide_layers=wide_layers, native=native)
    if isinstance(plan, RTXPlan):
        lowered, rtx = write_rtx_engines(plan, graphs, limits, folder, progress)
        return lowered, {"tensorrt_rtx": rtx}
    spec = kernel_spec(checkpoint, dtype, limits, plan.machine.gpu.multiprocessors)
    constants = host_constants(checkpoint, graphs.weights) if plan.embed_weights else {}
    lowered, record = write_tensorrt(plan, graphs, spec, limits, folder, progress, constants)
    return lowered, {"tensorrt": record}
