"""Target ``onnx``: standard ops alone, for any runtime."""

from __future__ import annotations

from nemotron_graphs.targets.onnx_passes import onnx_graph
from nemotron_graphs.targets.target import Target

__all__ = ["onnx"]

onnx = Target(
    name="onnx",
    description="standard ONNX ops (opset 21), for any runtime",
    dtypes=("float32", "float16", "bfloat16"),
    graphs=onnx_graph(),
    executor="onnxruntime",
    provider="CPUExecutionProvider",
    device="cpu",
    extra="ort",
    session={"prefill_rows": "all"},
)
