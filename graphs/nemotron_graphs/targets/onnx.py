"""Target ``onnx``: standard ops alone, for any runtime."""

from __future__ import annotations

from nemotron_graphs.targets.target import Target

__all__ = ["onnx"]


onnx = Target(
    name="onnx",
    dtypes=("float32", "float16", "bfloat16"),
    lowering=tuple,  # nothing of its own: every op becomes standard ops
    session={
        "kind": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "graph": "model.onnx",
        "prefill_rows": "all",
    },
    description="standard ONNX ops (opset 21), for any runtime",
    extra="ort",
    device="cpu",
)
