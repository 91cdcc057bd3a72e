"""Binds the weights to their places on disk, converting in the graph where the run dtype differs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from nemotron_formats.tensors import FileSpan, TensorEntry

from nemotron_graphs.passes.fuse.qkv import PARTS
from nemotron_graphs.passes.matching import add_cast, cast_output, dtype_of, is_op, onnx_dtype

__all__ = ["PACKED_FILE", "BindWeightsPass", "is_weight", "stored_parts"]

PACKED_FILE = "packed"


class BindWeightsPass(ir.passes.InPlacePass):
    """Makes every weight input an initializer whose data stays in its ``.safetensors`` file.

    Args:
        weights: name in the checkpoint → its place on disk.
        folder: put before the file's name in the location; a bundle that holds its weights names the folder that they
            are in, so that any ONNX runtime finds them. A file that names its own folder is in the bundle anyway.

    Attributes:
        packed: the parts of each packed input, one input after another, as the file ``packed`` has them.

    Rules:
        1. an input whose name is a weight's becomes an external initializer of the dtype on disk;
        2. where the graph computes in another dtype, its readers take ``Cast(weight)``;
        3. a Gather of such a weight is cast after the Gather, so that an embedding is never converted whole;
        4. an input that packs several weights (see :class:`PackQKVPass`) refers to the file ``packed``, which the
           runtime makes in memory from :attr:`packed`; its parts must have one dtype on disk.

    Postcondition: no other inputs than data remain, and shapes agree.
    """

    def __init__(self, weights: Mapping[str, TensorEntry], folder: str = "") -> None:
        self.weights = weights
        self.folder = folder
        self.packed: list[tuple[FileSpan, ...]] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.packed = []
        bound = [value for value in model.graph.inputs if is_weight(value, self.weights)]
        packed_bytes = 0
        for value in bound:
            parts, shape = stored_parts(value, self.weights)
            if PARTS in value.meta:
                self.packed.append(tuple(part.span for part in parts))
                span = FileSpan(PACKED_FILE, packed_bytes, sum(part.length for part in parts))
                packed_bytes += span.length
            else:
                span = parts[0].span
                if self.folder and "/" not in span.file:
                    span = FileSpan(f"{self.folder}/{span.file}", span.offset, span.length)
            names = {part.dtype_name for part in parts}
            if len(names) != 1:
                raise ir.passes.PreconditionError(
                    f"'{value.name}': found parts of {', '.join(sorted(names))}; expected one dtype; "
                    "convert the checkpoint to one"
                )
            run_dtype, disk_dtype = dtype_of(value), onnx_dtype(parts[0])
            value.type = ir.TensorType(disk_dtype)
            value.const_value = ir.ExternalTensor(
                span.file, span.offset, span.length, disk_dtype, shape=ir.Shape(shape), name=value.name or ""
            )
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
            if run_dtype != disk_dtype:
                _cast(model.graph, value, run_dtype)
        return ir.passes.PassResult(model, bool(bound))


def is_weight(value: ir.Value, weights: Mapping[str, TensorEntry]) -> bool:
    """Whether an input is a weight, or several weights put together."""
    return value.name in weights or PARTS in value.meta


def stored_parts(value: ir.Value, weights: Mapping[str, TensorEntry]) -> tuple[list[TensorEntry], tuple[int, ...]]:
    """The weights whose rows such an input has, and their shape together.

    Raises:
        PreconditionError: another shape than the input's.
    """
    parts = [weights[name] for name in value.meta.get(PARTS, (value.name,))]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].shape else ()
    if value.shape is None or tuple(value.shape) != shape:
        raise ir.passes.PreconditionError(
            f"weight '{value.name}': found shape {list(shape)} on disk; "
            f"expected {value.shape}; check the checkpoint against its config"
        )
    return parts, shape


def _cast(graph: ir.Graph, weight: ir.Value, run_dtype: ir.DataType) -> None:
    readers = list(weight.uses())
    gathers = [node for node, index in readers if is_op(node, "Gather") and index == 0]
    for gather in gathers:
        cast_output(graph, gather, dtype_of(weight), "stored")
    others = [(node, index) for node, index in readers if node not in gathers]
    if others:
        # it depends on an initializer alone, so the front is always early enough
        cast = add_cast(graph, graph[0], weight, run_dtype, name=f"{weight.name}/{run_dtype.name.lower()}")
        for node, index in others:
            node.replace_input_with(index, cast)
