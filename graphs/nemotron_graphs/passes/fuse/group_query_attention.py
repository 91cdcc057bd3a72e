"""Forms ONNX Runtime's GroupQueryAttention out of rotation, cache update and attention."""

from __future__ import annotations

import onnx_ir as ir
from nemotron_errors import GraphError

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import (
    CONTRIB,
    FusionPass,
    add_cast,
    add_constant,
    add_node,
    input_of,
    is_op,
    produced_by,
    producer,
    require,
    shape_of,
    size_of,
)

__all__ = ["FormGroupQueryAttentionPass"]

_INT32 = ir.DataType.INT32


class FormGroupQueryAttentionPass(FusionPass):
    """Fuses one layer's attention into one node on shared cache buffers.

    Rules, per ``CachedAttention(q, KVCacheUpdate(k_cache, k, start), KVCacheUpdate(v_cache, v, start), start)``:
        1. where q and k are ``PartialRotaryEmbedding`` of one table whose half width is a multiple of 8 (what the
           CPU kernel takes), the rotation goes inside (``do_rotary``), its width read from the table's shape, and the
           nodes before it go;
        2. otherwise the rotation stays a node of its own;
        3. the [B, S, heads, D] Reshapes around it vanish: the node takes and gives [B, S, heads * D].
    Once per graph: ``seqlens_k = int32(query_start + query_length - 1)`` and its maximum plus one.

    Args:
        total_input: that maximum is the graph input ``total_sequence_length`` (int32, a scalar) in place of nodes: on
            CUDA the kernel reads it on the host.

    Precondition: head_dim is a multiple of 8 (GraphError otherwise: what the kernel takes).
    """

    forms = "GroupQueryAttention"
    domain = CONTRIB
    anchor = ("CachedAttention", DOMAIN)

    def __init__(self, total_input: bool = False) -> None:
        super().__init__()
        self.total_input = total_input

    def begin(self, graph: ir.Graph) -> None:
        self._lengths: tuple[ir.Value, ir.Value] | None = None

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        q = input_of(node, 0)
        updates = [producer(value, "KVCacheUpdate", DOMAIN) for value in node.inputs[1:3]]
        k, v = (input_of(update, 1) for update in updates)
        out = node.outputs[0]
        flats = [reader for reader, _ in out.uses()]
        require(flats and all(_is_flat(each) for each in flats), "its result is read without a Reshape to 3 axes")
        heads, kv_heads, head_dim = size_of(q, 2), size_of(k, 2), size_of(q, 3)
        if head_dim % 8:
            raise GraphError(
                f"head_dim {head_dim}",
                "a multiple of 8, which ONNX Runtime's GroupQueryAttention takes",
                "build with --target onnx",
                where="--target",
            )
        rotations = _rotations(q, k)
        tables = rotations[0].inputs[1:3] if rotations else ()
        if rotations:
            q, k = (input_of(rotation, 0) for rotation in rotations)
        if self._lengths is None:
            self._lengths = _sequence_lengths(graph, node, self.total_input)
        new = ir.Node(
            CONTRIB,
            self.forms,
            [
                *(_flattened(graph, node, value) for value in (q, k, v)),
                *(update.inputs[0] for update in updates),
                *self._lengths,
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
        new.outputs[0].name, new.outputs[0].type = f"{out.name}/flat", out.type
        new.outputs[0].shape = ir.Shape([*shape_of(out)[:2], heads * head_dim])
        _replace(graph, node, updates, flats, new)
        # rotations first: they read the reshapes
        for bypassed in (*rotations, *(value.producer() for value in (q, k, v))):
            if bypassed is not None and not bypassed.outputs[0].uses():
                graph.remove(bypassed, safe=True)


def _replace(graph: ir.Graph, node: ir.Node, updates: list[ir.Node], flats: list[ir.Node], new: ir.Node) -> None:
    """Puts the fused node in the place of attention, updates and the Reshapes after the attention."""
    for flat in flats:
        # the attention's own name for it stays
        ir.convenience.replace_all_uses_with(flat.outputs[0], new.outputs[0], replace_graph_outputs=True)
    caches = [update.outputs[0] for update in updates]
    old = [*flats, node, *updates]
    ir.convenience.replace_nodes_and_values(graph, node, old, [new], caches, new.outputs[1:])


def _sequence_lengths(graph: ir.Graph, before: ir.Node, total_input: bool) -> tuple[ir.Value, ir.Value]:
    """``seqlens_k`` int32 [batch] and ``total_sequence_length`` int32 scalar, before the first attention."""
    inputs = {value.name: value for value in graph.inputs}
    one = add_constant(graph, before, 1, name="lengths/one")
    total = add_node(graph, before, "Add", [inputs["query_start"], inputs["query_length"]], name="lengths/total")
    last = add_node(graph, before, "Sub", [total, one], name="lengths/last")
    seqlens = add_cast(graph, before, last, _INT32, name="seqlens_k")
    if total_input:
        given = ir.Value(name="total_sequence_length", shape=ir.Shape([]), type=ir.TensorType(_INT32))
        graph.inputs.append(given)
        return seqlens, given
    longest = add_node(graph, before, "ReduceMax", [total], [ir.AttrInt64("keepdims", 0)], name="lengths/longest")
    return seqlens, add_cast(graph, before, longest, _INT32, name="total_sequence_length")


def _is_flat(node: ir.Node) -> bool:
    """Whether a node is the Reshape to [B, S, heads * D], which is what GroupQueryAttention gives by itself."""
    return is_op(node, "Reshape") and node.outputs[0].shape is not None and len(node.outputs[0].shape) == 3


def _rotations(q: ir.Value, k: ir.Value) -> tuple[ir.Node, ...]:
    """The rotations of queries and keys, where the kernel can do them."""
    rotations = [produced_by(value, "PartialRotaryEmbedding", DOMAIN) for value in (q, k)]
    found = tuple(rotation for rotation in rotations if rotation is not None)
    if len(found) != 2 or found[0].inputs[1:] != found[1].inputs[1:]:
        return ()
    half = shape_of(input_of(found[0], 1))[1]
    return found if isinstance(half, int) and half % 8 == 0 else ()


def _flattened(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """[B, S, heads, D] → [B, S, heads * D]: what the Reshape before it had, else a new Reshape."""
    reshape = produced_by(value, "Reshape")
    if reshape is not None:
        source = input_of(reshape, 0)
        if source.shape is not None and len(source.shape) == 3:
            return source
    width = size_of(value, 2) * size_of(value, 3)
    target = add_constant(graph, before, [0, 0, width], name=f"{value.name}/flat_shape")
    shape = [*shape_of(value)[:2], width]
    return add_node(
        graph, before, "Reshape", [value, target], name=f"{value.name}/flat", shape=shape, dtype=value.dtype
    )
