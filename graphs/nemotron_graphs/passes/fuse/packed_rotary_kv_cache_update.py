"""Forms PackedRotaryKVCacheUpdate: one projection for queries, keys and values, and their update from its result."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.fuse.qkv import pack_projections
from nemotron_graphs.passes.matching import FusionPass, input_of, only_reader, producer, require, shape_of, size_of

__all__ = ["FormPackedRotaryKVCacheUpdatePass"]


class FormPackedRotaryKVCacheUpdatePass(FusionPass):
    """Packs the projections before a rotation and cache update.

    Rules, per ``RotaryKVCacheUpdate(Reshape(Linear(x, w_q)), Reshape(Linear(x, w_k)), Reshape(Linear(x, w_v)), ...)``:
        1. the three projections become ``Linear(x, w_qkv)``, w_qkv an input that names its parts, as
           :class:`PackQKVPass` has it; biases likewise;
        2. the Reshapes vanish, and ``PackedRotaryKVCacheUpdate`` takes the packed projection; its outputs keep their
           names;
        3. where the projections cannot be packed, the nodes stay.

    Precondition: :class:`FormRotaryKVCacheUpdatePass` came before.
    """

    forms = "PackedRotaryKVCacheUpdate"
    anchor = ("RotaryKVCacheUpdate", DOMAIN)

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        q, k, v = (input_of(node, index) for index in range(3))
        reshapes = [producer(value, "Reshape") for value in (q, k, v)]
        for value in (q, k, v):
            only_reader(value)
            require(len(shape_of(value)) == 4, f"'{value.name}' has no axis of heads")
        projected = [input_of(reshape, 0) for reshape in reshapes]
        packed = pack_projections(graph, projected)
        new = ir.Node(
            DOMAIN,
            self.forms,
            [packed, *node.inputs[3:]],
            [ir.AttrInt64("num_heads", size_of(q, 2)), ir.AttrInt64("num_kv_heads", size_of(k, 2))],
            num_outputs=3,
        )
        linears = [producer(value, "Linear", DOMAIN) for value in projected]
        old = [node, *reshapes, *linears]
        ir.convenience.replace_nodes_and_values(graph, node, old, [new], node.outputs, new.outputs)
