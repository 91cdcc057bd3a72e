"""Projects queries, keys and values by one product over a weight that is packed when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.nodes import add_node

__all__ = ["PARTS", "PackQKVPass", "pack_projections"]

# key of a value's metadata: the names of the weights that it packs, rows behind rows
PARTS = "packed_from"


class PackQKVPass(ir.passes.InPlacePass):
    """Packs the three projections of an attention.

    A checkpoint lays the four projections out by their names (k, o, q, v), so that no reference into its file can be
    the packed matrix; the runtime puts the rows together when it loads them.

    Args:
        quantized: also of quantized weights, which costs a second copy of their codes on the host at load.
        concat: in the graph, for what loads it without this project's runtime: ONNX Runtime computes it once, at load.

    Rules, per ``GroupQueryAttention(Linear(x, w_q), Linear(x, w_k), Linear(x, w_v), …)``:
        1. the projections become ``Linear(x, w_qkv)``, w_qkv an input whose metadata names the three, and the attention
           takes it as its packed input;
        2. with biases, b_qkv likewise; where just some have one, the nodes stay;
        3. where a projection has another reader, or another x, the nodes stay;
        4. with ``concat``, w_qkv and b_qkv are ``Concat`` nodes of the three parameters, on axis 0, in place of inputs;
        5. where asked for, three ``MatMulNBits`` of one scheme without bias become one likewise: its codes and its
           scales (or what a Cast takes them from) are inputs that name the three's.
    """

    def __init__(self, quantized: bool = False, concat: bool = False) -> None:
        assert not (quantized and concat), "quantized weights are packed by the runtime alone"
        self.quantized = quantized
        self.concat = concat

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if (n.domain, n.op_type) == ("com.microsoft", "GroupQueryAttention")]
        packed = [_pack(model.graph, node, self.quantized, self.concat) for node in nodes]
        return ir.passes.PassResult(model, any(packed))


def _pack(graph: ir.Graph, attention: ir.Node, quantized: bool, concat: bool) -> bool:
    packed = pack_projections(graph, attention.inputs[:3], concat)
    if packed is None and quantized:
        packed = _pack_quantized(graph, attention.inputs[:3])
    if packed is None:
        return False
    projections = [value.producer() for value in attention.inputs[:3] if value is not None]
    attention.replace_input_with(0, packed)
    for index in (1, 2):
        attention.replace_input_with(index, None)
    graph.remove([node for node in projections if node is not None], safe=True)
    return True


def pack_projections(graph: ir.Graph, values: Sequence[ir.Value | None], concat: bool = False) -> ir.Value | None:
    """Puts ``Linear(x, w_qkv)`` beside three projections of one x, which the caller then replaces and removes.

    Args:
        graph: gets the node, and the packed weight and bias as inputs.
        values: results of the projections of queries, keys and values.
        concat: put ``Concat`` nodes in front in place of the inputs.

    Returns:
        The packed projection [..., rows of the three weights], or None where the three cannot be packed: another
        producer, x or reader, just some biases, or weights that are no inputs of one dtype.
    """
    linears = [node for node in map(_linear, values) if node is not None]
    if len(linears) != 3 or len({node.inputs[0] for node in linears}) != 1:
        return None
    if len({len(node.inputs) for node in linears}) != 1 or any(len(node.outputs[0].uses()) != 1 for node in linears):
        return None
    q = linears[0]
    inputs: list[ir.Value | None] = [q.inputs[0]]
    for column in zip(*(node.inputs[1:] for node in linears), strict=True):
        packed = _packed_input(graph, column)
        if packed is None:
            return None
        inputs.append(packed)
    if concat:
        columns = list(zip(*(node.inputs[1:] for node in linears), strict=True))
        _concatenate(graph, q, inputs[1:], columns)
    else:
        graph.inputs.extend(value for value in inputs[1:] if value is not None)
    assert inputs[1] is not None
    return _beside(graph, q, inputs, inputs[1], [])


def _pack_quantized(graph: ir.Graph, values: Sequence[ir.Value | None]) -> ir.Value | None:
    """The same of three ``MatMulNBits(x, codes, scales)``; None where they cannot be packed."""
    products = [node for node in map(_quantized, values) if node is not None]
    if len(products) != 3 or any(len(node.inputs) != 3 or len(node.outputs[0].uses()) != 1 for node in products):
        return None
    schemes = [
        {name: attribute.value for name, attribute in node.attributes.items() if name != "N"} for node in products
    ]
    if len({node.inputs[0] for node in products}) != 1 or any(scheme != schemes[0] for scheme in schemes):
        return None
    casts = [node.inputs[2].producer() if node.inputs[2] is not None else None for node in products]
    stored = [node.inputs[2] if cast is None else cast.inputs[0] for node, cast in zip(products, casts, strict=True)]
    codes = _packed_input(graph, tuple(node.inputs[1] for node in products))
    scales = _packed_input(graph, tuple(stored))
    if codes is None or scales is None:
        return None
    graph.inputs.extend((codes, scales))
    q, taken = products[0], scales
    if casts[0] is not None:
        to, made = casts[0].attributes["to"], casts[0].outputs[0]
        taken = add_node(
            graph, q, "Cast", [scales], [to], name=f"{scales.name}/cast", shape=scales.shape, dtype=made.dtype
        )
    rows = _rows(codes)
    attributes = [ir.AttrInt64(name, rows if name == "N" else q.attributes.get_int(name, 0)) for name in q.attributes]
    return _beside(graph, q, [q.inputs[0], codes, taken], codes, attributes)


def _beside(
    graph: ir.Graph, q: ir.Node, inputs: Sequence[ir.Value | None], packed: ir.Value, attributes: Sequence[ir.Attr]
) -> ir.Value:
    """Puts a product like q's over packed rows in front of it; gives the result."""
    old = q.outputs[0]
    assert old.name
    assert old.shape is not None
    name, shape = old.name.replace("q_proj", "qkv_proj"), [*old.shape[:-1], _rows(packed)]
    return add_node(graph, q, q.op_type, inputs, attributes, name=name, shape=shape, dtype=old.dtype, domain=q.domain)


def _rows(packed: ir.Value) -> int:
    assert packed.shape is not None
    rows = packed.shape[0]
    assert isinstance(rows, int)
    return rows


def _concatenate(
    graph: ir.Graph, before: ir.Node, packed: Sequence[ir.Value | None], columns: Sequence[Sequence[ir.Value | None]]
) -> None:
    """Makes packed values the results of nodes over their parts."""
    for value, parts in zip(packed, columns, strict=True):
        assert value is not None
        del value.meta[PARTS]
        graph.insert_before(before, ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 0)], outputs=[value]))


def _linear(value: ir.Value | None) -> ir.Node | None:
    return _produced_by(value, (DOMAIN, "Linear"))


def _quantized(value: ir.Value | None) -> ir.Node | None:
    return _produced_by(value, ("com.microsoft", "MatMulNBits"))


def _produced_by(value: ir.Value | None, kind: tuple[str, str]) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == kind else None


def _packed_input(graph: ir.Graph, parts: tuple[ir.Value | None, ...]) -> ir.Value | None:
    """A new input for weights that are inputs of one dtype themselves."""
    found = [value for value in parts if value is not None and value in graph.inputs]
    if len(found) != len(parts) or len({value.dtype for value in found}) != 1:
        return None
    shapes = [value.shape for value in found]
    rows = sum(shape[0] for shape in shapes if shape is not None and isinstance(shape[0], int))
    first = found[0]
    assert first.name
    assert first.shape is not None
    packed = ir.Value(
        name=first.name.replace("q_proj", "qkv_proj"), shape=ir.Shape([rows, *first.shape[1:]]), type=first.type
    )
    packed.meta[PARTS] = [value.name for value in found]
    return packed
