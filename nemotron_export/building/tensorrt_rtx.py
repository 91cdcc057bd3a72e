"""The engines of a bundle for TensorRT for RTX, which are built on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from nemotron_errors import RequestError
from nemotron_graphs.targets import LoweredGraph, Target
from nemotron_graphs.targets.tensorrt import TensorRTGraphs
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest_tensorrt import RTXRecord

from nemotron_export.building.tensorrt import GRAPHS_FOLDER, check_stored_dtype, weight_records
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.progress import Progress
from nemotron_export.tensorrt import EngineJob, build_engine, load_product
from nemotron_export.tensorrt.messages import node_ops
from nemotron_export.tensorrt.shapes import MAX_LOGITS, Range, input_shapes, prefill_ranges

__all__ = ["DEFAULT_ARCHITECTURES", "RTXPlan", "find_rtx", "is_tensorrt_rtx", "plan_rtx", "write_rtx_engines"]

# RTX 30, RTX 40 and L4, RTX 50
DEFAULT_ARCHITECTURES = ("sm_86", "sm_89", "sm_120")
ENGINES_FOLDER = "engines"


@dataclass(frozen=True)
class RTXPlan:
    """What was decided before the build: the builder's module, and the architectures as it spells them ("SM89")."""

    trt: Any
    architectures: tuple[str, ...]


def is_tensorrt_rtx(target: Target) -> bool:
    """Whether a target's bundles hold engines of TensorRT for RTX."""
    return bool(target.session["kind"] == "tensorrt-rtx")


def find_rtx(parity: bool) -> Any:
    """The builder's module.

    Raises:
        RequestError: a proof of engines that this runtime does not run.
        MissingDependencyError: it is not installed.
    """
    if parity:
        raise RequestError(
            "a parity check of target tensorrt-rtx", "--no-parity: NVIDIA's runtime for RTX runs these engines",
            "add --no-parity; the bundle's parity is pending then", where="--parity",
        )  # fmt: skip
    return load_product("tensorrt-rtx")


def plan_rtx(trt: Any, checkpoint: Checkpoint, dtype: str, architectures: Sequence[str] = ()) -> RTXPlan:
    """Checks what can be checked before anything is made.

    Args:
        trt: the builder's module.
        checkpoint: the checkpoint.
        dtype: run dtype.
        architectures: "sm_89" or "89"; :data:`DEFAULT_ARCHITECTURES` where there are none.

    Raises:
        GraphError: weights in another dtype.
        RequestError: an architecture that the builder does not know.
    """
    check_stored_dtype(checkpoint, dtype)
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    chosen: dict[str, None] = {}
    for name in architectures or DEFAULT_ARCHITECTURES:
        spelled = f"SM{name.strip().removeprefix('sm_')}"
        if spelled not in known:
            expected = ", ".join(each.replace("SM", "sm_") for each in known)
            raise RequestError(f"'{name}'", expected, "name some of them", where="--architectures")
        chosen[spelled] = None
    return RTXPlan(trt, tuple(chosen))


def write_rtx_engines(
    plan: RTXPlan, graphs: TensorRTGraphs, limits: Limits, folder: Path, progress: Progress
) -> tuple[LoweredGraph, RTXRecord]:
    """Writes the graph, and an engine of it for each architecture, into a bundle.

    Returns:
        The graph, whose session entry is the manifest's, and the record of the engines.

    Raises:
        EngineError: the builder refuses the graph.
        KeyboardInterrupt: interrupted.
    """
    graph = graphs.prefill
    file = f"{GRAPHS_FOLDER}/model.onnx"
    for name in (GRAPHS_FOLDER, ENGINES_FOLDER):
        (folder / name).mkdir()
    graph.save(folder / file)
    ranges = prefill_ranges(limits)
    one = {"tokens": Range(1, 1, 1), "positions": Range(1, 1, 1)}
    profiles = [input_shapes(graph.model.graph.inputs, each) for each in (ranges, {**ranges, **one})]
    data = ir.to_proto(graph.model).SerializeToString()
    engines = {}
    for spelled in plan.architectures:

        def options(config: Any, capability: Any = getattr(plan.trt.ComputeCapability, spelled)) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(capability, 0)

        architecture = spelled.replace("SM", "sm_")
        nodes = node_ops(graph.model.graph)
        job = EngineJob(f"{architecture}", data, profiles, nodes, options=options, loads=False)
        engines[architecture] = f"{ENGINES_FOLDER}/{architecture}.engine"
        (folder / engines[architecture]).write_bytes(build_engine(plan.trt, job, progress=progress).plan)
    version = ".".join(str(plan.trt.__version__).split(".")[:3])
    record = RTXRecord(version, engines, limits.max_seq_len, MAX_LOGITS, weight_records(graphs))
    return replace(graph, session={**graph.session, "graph": file}), record
