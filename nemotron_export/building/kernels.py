"""What the nodes of a lowered graph ask of the kernels."""

from __future__ import annotations

import onnx_ir as ir
from nemotron_formats.dtypes import dtype_of_onnx
from nemotron_plugins.requests import KernelRequest, request_of
from nemotron_plugins.tensorrt import PLUGIN_OPS
from nemotron_runtime.bundle.limits import Limits

__all__ = ["bind_kernels"]


def bind_kernels(model: ir.Model, limits: Limits) -> list[KernelRequest]:
    """Binds every node that a plugin computes, by its attribute ``kernel``; returns what they ask for, each once.

    Args:
        model: a lowered graph; a size without a number varies from call to call.
    """
    found: dict[KernelRequest, None] = {}
    for node in model.graph:
        if node.domain != "nemotron" or node.op_type not in PLUGIN_OPS:
            continue
        inputs = [value for value in node.inputs if value is not None]
        attributes = {name: each.value for name, each in node.attributes.items() if name != "kernel"}
        assert inputs[0].dtype is not None
        request = request_of(
            node.op_type, list(map(_shape, inputs)), dtype_of_onnx(inputs[0].dtype.value).name, attributes,
            sequences=limits.max_batch, capacity=limits.max_seq_len,
        )  # fmt: skip
        node.attributes["kernel"] = ir.AttrString("kernel", request.to_json())
        found[request] = None
    return list(found)


def _shape(value: ir.Value) -> list[int | None]:
    assert value.shape is not None, f"shapes were inferred, but not of {value.name}"
    return [size if isinstance(size, int) else None for size in value.shape]
