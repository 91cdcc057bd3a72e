"""Forms ONNX Runtime's GroupQueryAttention out of rotation, cache update and attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from nemotron_errors import GraphError

from nemotron_graphs.ops import DOMAIN, OPS

__all__ = ["FormGroupQueryAttentionPass"]


class FormGroupQueryAttentionPass(ir.passes.InPlacePass):
    """Fuses one layer's attention into one node on shared cache buffers.

    Rules, per ``CachedAttention(q, KVCacheUpdate(k_cache, k, start), KVCacheUpdate(v_cache, v, start), start)``:
        1. where q and k are ``PartialRotaryEmbedding`` of one table whose half width is a multiple of 8 (what the
           CPU kernel takes), the rotation goes inside (``do_rotary``), its width read from the table's shape, and the
           nodes in front go;
        2. otherwise the rotation stays in front;
        3. the [B, S, heads, D] Reshapes around it vanish: the node takes and gives [B, S, heads * D].
    Once per graph: ``seqlens_k = int32(query_start + query_length - 1)`` and its maximum plus one.

    Args:
        total_input: that maximum is the graph input ``total_sequence_length`` (int32, a scalar) in place of nodes: on
            CUDA the kernel reads it on the host.

    Preconditions: no node has a cache_row (the node's cache rows are its batch rows); head_dim is a multiple of 8
    (GraphError otherwise: what the kernel takes).
    """

    def __init__(self, total_input: bool = False) -> None:
        self.total_input = total_input

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attentions = [n for n in graph if (n.domain, n.op_type) == (DOMAIN, "CachedAttention")]
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        inputs = {v.name: v for v in graph.inputs}
        start, length = inputs["query_start"], inputs["query_length"]
        seqlens = _sequence_lengths(graph, attentions[0], start, length, self.total_input)
        for node in attentions:
            _fuse(graph, node, seqlens)
        model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=True)


def _sequence_lengths(
    graph: ir.Graph, before: ir.Node, query_start: ir.Value, query_length: ir.Value, total_input: bool
) -> tuple[ir.Value, ir.Value]:
    """``seqlens_k`` int32 [batch] and ``total_sequence_length`` int32 scalar, before the first attention."""
    one = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array(1, np.int64)))])
    total = ir.Node("", "Add", [query_start, query_length])
    last = ir.Node("", "Sub", [total.outputs[0], one.outputs[0]])
    seqlens = ir.Node("", "Cast", [last.outputs[0]], [ir.AttrInt64("to", ir.DataType.INT32)])
    if total_input:
        given = ir.Value(name="total_sequence_length", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT32))
        graph.inputs.append(given)
        _insert(graph, before, {"rows/one": one, "rows/total": total, "rows/last": last, "seqlens_k": seqlens})
        return seqlens.outputs[0], given
    longest = ir.Node("", "ReduceMax", [total.outputs[0]], [ir.AttrInt64("keepdims", 0)])
    longest_32 = ir.Node("", "Cast", [longest.outputs[0]], [ir.AttrInt64("to", ir.DataType.INT32)])
    _insert(
        graph,
        before,
        {
            "rows/one": one,
            "rows/total": total,
            "rows/last": last,
            "seqlens_k": seqlens,
            "rows/longest": longest,
            "total_sequence_length": longest_32,
        },
    )
    return seqlens.outputs[0], longest_32.outputs[0]


def _insert(graph: ir.Graph, before: ir.Node, nodes: dict[str, ir.Node]) -> None:
    for name, node in nodes.items():
        node.outputs[0].name = name
    graph.insert_before(before, list(nodes.values()))


def _fuse(graph: ir.Graph, node: ir.Node, seqlens: tuple[ir.Value, ir.Value]) -> None:
    q, k_updated, v_updated = node.inputs[:3]
    assert q is not None
    assert k_updated is not None
    assert v_updated is not None
    k_update, v_update = _producer(k_updated, "KVCacheUpdate"), _producer(v_updated, "KVCacheUpdate")
    for each in (node, k_update, v_update):
        row = [i.name for i in OPS[each.op_type].inputs].index("cache_row")
        if len(each.inputs) > row and each.inputs[row] is not None:
            raise ir.passes.PreconditionError(
                f"{each.op_type} '{each.outputs[0].name}': found a cache_row input; expected none; "
                "choose a target whose attention takes cache rows"
            )
    k, v = k_update.inputs[1], v_update.inputs[1]
    assert k is not None
    assert v is not None
    assert q.shape is not None
    assert k.shape is not None
    heads, kv_heads, head_dim = q.shape[2], k.shape[2], q.shape[3]
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    assert isinstance(head_dim, int)
    if head_dim % 8:
        raise GraphError(
            f"head_dim {head_dim}",
            "a multiple of 8, which ONNX Runtime's GroupQueryAttention takes",
            "build with --target onnx",
            where="--target",
        )

    tables: list[ir.Value | None] = []
    q_rotary, k_rotary = _rotary(q), _rotary(k)
    if q_rotary is not None and k_rotary is not None and _fits_kernel(q_rotary, k_rotary):
        q, k = q_rotary.inputs[0], k_rotary.inputs[0]
        tables = list(q_rotary.inputs[1:3])
        assert q is not None
        assert k is not None
    fused = ir.Node(
        "com.microsoft",
        "GroupQueryAttention",
        [
            _flattened(graph, node, q),
            _flattened(graph, node, k),
            _flattened(graph, node, v),
            k_update.inputs[0],
            v_update.inputs[0],
            *seqlens,
            *tables,
        ],
        [
            ir.AttrInt64("num_heads", heads),
            ir.AttrInt64("kv_num_heads", kv_heads),
            ir.AttrInt64("do_rotary", int(bool(tables))),
            ir.AttrInt64("rotary_interleaved", 0),
            ir.AttrFloat32("scale", head_dim**-0.5),
        ],
        num_outputs=3,
    )
    out, k_out, v_out = fused.outputs
    old = node.outputs[0]
    assert old.shape is not None
    out.name, out.type = f"{old.name}/flat", old.type
    out.shape = ir.Shape([*old.shape[:2], heads * head_dim])
    graph.insert_before(node, fused)
    for new, update in ((k_out, k_update), (v_out, v_update)):
        previous = update.outputs[0]
        new.name, new.shape, new.type = previous.name, previous.shape, previous.type
        previous.name = f"{previous.name}/unfused"
        ir.convenience.replace_all_uses_with(previous, new, replace_graph_outputs=True)
    for user, _ in list(old.uses()):
        # the Reshape to [B, S, heads * D] that followed is what the node gives by itself
        if user.op_type == "Reshape" and user.outputs[0].shape is not None and len(user.outputs[0].shape) == 3:
            ir.convenience.replace_all_uses_with(user.outputs[0], out, replace_graph_outputs=True)
            graph.remove(user, safe=True)
    assert not old.uses(), "attention is read through a Reshape to [B, S, heads * D] alone"
    graph.remove(node, safe=True)
    graph.remove([k_update, v_update], safe=True)
    reshapes = [value.producer() for value in (q, k, v)]
    # rotations first: they read the reshapes
    for bypassed in (q_rotary, k_rotary, *reshapes):
        if bypassed is not None and not bypassed.outputs[0].uses():
            graph.remove(bypassed, safe=True)


def _producer(value: ir.Value, op_type: str) -> ir.Node:
    node = value.producer()
    if node is None or (node.domain, node.op_type) != (DOMAIN, op_type):
        raise ir.passes.PreconditionError(
            f"'{value.name}': found {node.op_type if node else 'a graph input'} as its producer; "
            f"expected {op_type}; run this pass before the dialect's ops are lowered"
        )
    return node


def _rotary(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and (node.domain, node.op_type) == (DOMAIN, "PartialRotaryEmbedding") else None


def _fits_kernel(q_rotary: ir.Node, k_rotary: ir.Node) -> bool:
    cos = q_rotary.inputs[1]
    assert cos is not None
    assert cos.shape is not None
    half = cos.shape[1]
    return q_rotary.inputs[1:] == k_rotary.inputs[1:] and isinstance(half, int) and half % 8 == 0


def _flattened(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """[B, S, heads, D] → [B, S, heads * D]: what the Reshape in front had, else a new Reshape."""
    node = value.producer()
    if node is not None and node.op_type == "Reshape" and not node.domain:
        source = node.inputs[0]
        if source is not None and source.shape is not None and len(source.shape) == 3:
            return source
    assert value.shape is not None
    width = value.shape[2] * value.shape[3]  # type: ignore[operator]
    target = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array([0, 0, width], np.int64)))])
    reshape = ir.Node("", "Reshape", [value, target.outputs[0]])
    target.outputs[0].name, reshape.outputs[0].name = f"{value.name}/flat_shape", f"{value.name}/flat"
    reshape.outputs[0].shape, reshape.outputs[0].type = ir.Shape([*value.shape[:2], width]), value.type
    graph.insert_before(before, [target, reshape])
    return reshape.outputs[0]
