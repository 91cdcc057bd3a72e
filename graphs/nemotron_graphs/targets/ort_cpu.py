"""Target ``ort-cpu``: ONNX Runtime on the CPU, with its fused ops."""

from __future__ import annotations

from nemotron_graphs import passes
from nemotron_graphs.targets.onnx_passes import onnx_graph, packed_projections
from nemotron_graphs.targets.target import Passes, Target

__all__ = ["ort_cpu"]


def _lowering() -> Passes:
    return (passes.FormGroupQueryAttentionPass(), passes.PackQKVPass(), passes.LowerLinearToFusedMatMulPass())


ort_cpu = Target(
    name="ort-cpu",
    description="ONNX Runtime on the CPU: grouped-query attention on a shared cache, fused projections",
    dtypes=("float32",),
    graphs=onnx_graph(
        _lowering,
        forms={
            "GroupQueryAttention": lambda n: n.layers,
            # codes of three projections stay apart: one copy of them is enough on the host
            "packed projection": lambda n: 0 if n.encoded else packed_projections(n),
        },
    ),
    executor="onnxruntime",
    provider="CPUExecutionProvider",
    device="cpu",
    extra="ort",
    # the CPU kernel refuses several sequences of several tokens after a past
    session={"prefill_rows": "one"},
    formats=("int8", "int4"),
)
