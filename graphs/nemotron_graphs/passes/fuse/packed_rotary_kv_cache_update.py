"""Forms PackedRotaryKVCacheUpdate: one projection for queries, keys and values, and their update from its result."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.fuse.qkv import pack_projections

__all__ = ["FormPackedRotaryKVCacheUpdatePass"]


class FormPackedRotaryKVCacheUpdatePass(ir.passes.InPlacePass):
    """Packs the projections in front of a rotation and cache update.

    Rules, per ``RotaryKVCacheUpdate(Reshape(Linear(x, w_q)), Reshape(Linear(x, w_k)), Reshape(Linear(x, w_v)), ...)``:
        1. the three projections become ``Linear(x, w_qkv)``, w_qkv an input that names its parts, as
           :class:`PackQKVPass` has it; biases likewise;
        2. the Reshapes vanish, and ``PackedRotaryKVCacheUpdate`` takes the packed projection; its outputs keep their
           names;
        3. where the projections cannot be packed, the nodes stay.

    Precondition: :class:`FormRotaryKVCacheUpdatePass` came before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "RotaryKVCacheUpdate")]
        formed = [_form(model.graph, node) for node in nodes]
        return ir.passes.PassResult(model, any(formed))


def _form(graph: ir.Graph, node: ir.Node) -> bool:
    reshapes = [_reshape(value) for value in node.inputs[:3]]
    found = [reshape for reshape in reshapes if reshape is not None]
    if len(found) != 3:
        return False
    packed = pack_projections(graph, [reshape.inputs[0] for reshape in found])
    if packed is None:
        return False
    linears = [reshape.inputs[0].producer() for reshape in found if reshape.inputs[0] is not None]
    q, k = node.inputs[:2]
    assert q is not None
    assert k is not None
    assert q.shape is not None
    assert k.shape is not None
    heads, kv_heads = q.shape[2], k.shape[2]
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    new = ir.Node(
        DOMAIN,
        "PackedRotaryKVCacheUpdate",
        [packed, *node.inputs[3:]],
        [ir.AttrInt64("num_heads", heads), ir.AttrInt64("num_kv_heads", kv_heads)],
        num_outputs=3,
    )
    for value, old in zip(new.outputs, node.outputs, strict=True):
        value.name, value.shape, value.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
    graph.remove([*found, *(linear for linear in linears if linear is not None)], safe=True)
    return True


def _reshape(value: ir.Value | None) -> ir.Node | None:
    """The Reshape to heads that gave a value, of which nothing else reads."""
    node = None if value is None or len(value.uses()) != 1 else value.producer()
    if node is None or (node.domain, node.op_type) != ("", "Reshape"):
        return None
    shape = node.outputs[0].shape
    return node if shape is not None and len(shape) == 4 else None
