"""Binds the weights to where they lie on disk, converting in the graph where the run dtype differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from nemotron_graphs.passes.fuse.qkv import PARTS
from nemotron_graphs.weights import SAFETENSORS_DTYPES, WeightRef

__all__ = ["PACKED_FILE", "BindWeightsPass"]

PACKED_FILE = "packed"


class BindWeightsPass(ir.passes.InPlacePass):
    """Makes every weight input an initializer whose data stays in its ``.safetensors`` file.

    Args:
        weights: name in the checkpoint → where it lies.
        folder: put before the file's name in the location; a bundle that holds its weights names the folder that they
            are in, so that any ONNX runtime finds them. A file that names its own folder lies in the bundle anyway.

    Rules:
        1. an input whose name is a weight's becomes an external initializer of the dtype on disk;
        2. where the graph computes in another dtype, its readers take ``Cast(weight)``;
        3. a Gather of such a weight is cast after the Gather, so that an embedding is never converted whole;
        4. an input that packs several weights (see :class:`PackQKVPass`) refers to the file ``packed``, which the
           runtime makes in memory from :attr:`packed`; its parts must have one dtype on disk.

    Postcondition: no other inputs than data remain, and shapes agree.
    """

    def __init__(self, weights: Mapping[str, WeightRef], folder: str = "") -> None:
        self.weights = weights
        self.folder = folder
        self.packed: list[list[WeightRef]] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        bound = [v for v in graph.inputs if v.name in self.weights or PARTS in v.meta]
        end = 0
        for value in bound:
            assert value.name
            if PARTS in value.meta:
                ref, location = self._pack(value, end), PACKED_FILE
                end += ref.length
            else:
                ref = self.weights[value.name]
                location = f"{self.folder}/{ref.file}" if self.folder and "/" not in ref.file else ref.file
            if value.shape is None or tuple(value.shape) != tuple(ref.shape):
                raise ir.passes.PreconditionError(
                    f"weight '{value.name}': found shape {list(ref.shape)} on disk; "
                    f"expected {value.shape}; check the checkpoint against its config"
                )
            graph.inputs.remove(value)
            run_dtype, disk_dtype = value.dtype, SAFETENSORS_DTYPES[ref.dtype]
            value.type = ir.TensorType(disk_dtype)
            value.const_value = ir.ExternalTensor(
                location, ref.offset, ref.length, disk_dtype, shape=ir.Shape(ref.shape), name=value.name
            )
            graph.register_initializer(value)
            assert run_dtype is not None
            if run_dtype != disk_dtype:
                _cast(graph, value, run_dtype)
        return ir.passes.PassResult(model, bool(bound))

    def _pack(self, value: ir.Value, begin: int) -> WeightRef:
        parts = [self.weights[name] for name in value.meta[PARTS]]
        if len({part.dtype for part in parts}) != 1:
            raise ir.passes.PreconditionError(
                f"'{value.name}': found parts of {', '.join(part.dtype for part in parts)}; expected one dtype; "
                "convert the checkpoint to one"
            )
        self.packed.append(parts)
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return _Packed(parts[0].dtype, shape, PACKED_FILE, begin, sum(part.length for part in parts))


@dataclass(frozen=True)
class _Packed:
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


def _cast(graph: ir.Graph, weight: ir.Value, run_dtype: ir.DataType) -> None:
    uses = list(weight.uses())
    readers = []
    for node, index in uses:
        if node.op_type == "Gather" and not node.domain and index == 0:
            old = node.outputs[0]
            cast = ir.Node("", "Cast", [old], [ir.AttrInt64("to", run_dtype)])
            new = cast.outputs[0]
            new.name, new.shape, new.type = old.name, old.shape, old.type
            old.name, old.type = f"{old.name}/stored", weight.type
            # replace first, or the Cast would read itself
            cast.replace_input_with(0, None)
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            cast.replace_input_with(0, old)
            graph.insert_after(node, cast)
        else:
            readers.append((node, index))
    if not readers:
        return
    cast = ir.Node("", "Cast", [weight], [ir.AttrInt64("to", run_dtype)])
    new = cast.outputs[0]
    new.name, new.shape, new.type = f"{weight.name}/{run_dtype.name.lower()}", weight.shape, ir.TensorType(run_dtype)
    # it depends on an initializer alone, so the front is always early enough
    graph.insert_before(graph[0], cast)
    for node, index in readers:
        node.replace_input_with(index, new)
