"""Which provider of ONNX Runtime computes which node, and the refusal of nodes that fell back to the CPU."""

from __future__ import annotations

from typing import Any

from nemotron_errors import BundleError

__all__ = ["RECORD_PLACEMENT", "check_placement", "cpu_nodes"]

# the session's configuration under which ONNX Runtime records the placement
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
_CPU = "CPUExecutionProvider"
# shape arithmetic, which ONNX Runtime keeps on the host by design
_SHAPE_OPS = frozenset({"Constant", "Shape", "Size"})
_NAMED = 8


def cpu_nodes(session: Any) -> list[str]:
    """Nodes that compute on the CPU, as "op 'name'"; the session was opened with RECORD_PLACEMENT."""
    return [
        f"{node.op_type} '{node.name}'"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _CPU
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPS
    ]


def check_placement(session: Any, where: str) -> None:
    """Raises BundleError, naming them, where nodes compute on the CPU: each costs two copies a step, and no CUDA graph
    holds them."""
    nodes = cpu_nodes(session)
    if nodes:
        named = ", ".join(nodes[:_NAMED]) + (f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else "")
        raise BundleError(
            f"{len(nodes)} nodes on the CPU: {named}",
            "every node on the GPU",
            "use the onnxruntime-gpu that the bundle was checked with, or build with --allow-cpu-nodes",
            where=where,
        )
