"""Projects queries, keys and values by one product over a weight whose rows are put together when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import (
    CONTRIB,
    FusionPass,
    NoMatch,
    add_cast,
    add_node,
    dtype_of,
    only_reader,
    produced_by,
    producer,
    require,
    shape_of,
    size_of,
)

__all__ = ["PARTS", "PackQKVPass", "pack_projections"]

# key of an input's metadata: the names of the weights whose rows it has, one after another
PARTS = "packed_from"


class PackQKVPass(FusionPass):
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
        5. where asked for, three ``MatMulNBits`` of one weight format without bias become one likewise: its codes and
           its scales (or what a Cast takes them from) are inputs that name the three's.
    """

    forms = "packed projection"
    domain = CONTRIB
    anchor = ("GroupQueryAttention", CONTRIB)

    def __init__(self, quantized: bool = False, concat: bool = False) -> None:
        super().__init__()
        assert not (quantized and concat), "quantized weights are packed by the runtime alone"
        self.quantized = quantized
        self.concat = concat

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        values = node.inputs[:3]
        projections = [value.producer() for value in values if value is not None]
        if self.quantized and produced_by(values[0], "MatMulNBits", CONTRIB) is not None:
            packed = _pack_quantized(graph, values)
        else:
            packed = pack_projections(graph, values, self.concat)
        node.replace_input_with(0, packed)
        for index in (1, 2):
            node.replace_input_with(index, None)
        graph.remove([each for each in projections if each is not None], safe=True)


def pack_projections(graph: ir.Graph, values: Sequence[ir.Value | None], concat: bool = False) -> ir.Value:
    """Puts ``Linear(x, w_qkv)`` next to three projections of one x, which the caller then replaces and removes.

    The graph gets the node, and the packed weight and bias as inputs.

    Args:
        values: results of the projections of queries, keys and values.
        concat: make them by ``Concat`` nodes in place of the inputs.

    Returns:
        The packed projection [..., rows of the three weights].

    Raises:
        NoMatch: another producer, x or reader, just some biases, or weights that are no inputs of one dtype.
    """
    linears = _projections(values, "Linear", DOMAIN)
    require(len({len(node.inputs) for node in linears}) == 1, "just some of the projections have a bias")
    columns = list(zip(*(node.inputs[1:] for node in linears), strict=True))
    parameters = [_packed_input(column) for column in columns]
    if concat:
        for value, parts in zip(parameters, columns, strict=True):
            del value.meta[PARTS]
            axis = ir.AttrInt64("axis", 0)
            graph.insert_before(linears[0], ir.Node("", "Concat", parts, [axis], outputs=[value]))
    else:
        graph.inputs.extend(parameters)
    return _add_projection(graph, linears[0], parameters, [])


def _pack_quantized(graph: ir.Graph, values: Sequence[ir.Value | None]) -> ir.Value:
    """The same of three ``MatMulNBits(x, codes, scales)``."""
    products = _projections(values, "MatMulNBits", CONTRIB)
    formats = [{name: each.value for name, each in node.attributes.items() if name != "N"} for node in products]
    require(all(each == formats[0] for each in formats), "the projections' weights have several formats")
    require(all(len(node.inputs) == 3 for node in products), "quantized projections with a bias are not packed")
    casts = [produced_by(node.inputs[2], "Cast") for node in products]
    stored = [node.inputs[2] if cast is None else cast.inputs[0] for node, cast in zip(products, casts, strict=True)]
    codes = _packed_input([node.inputs[1] for node in products])
    scales = taken = _packed_input(stored)
    graph.inputs.extend((codes, scales))
    q = products[0]
    if casts[0] is not None:
        taken = add_cast(graph, q, scales, dtype_of(casts[0].outputs[0]), name=f"{scales.name}/cast")
    attributes = [
        ir.AttrInt64("N", size_of(codes, 0)) if name == "N" else attribute for name, attribute in q.attributes.items()
    ]
    return _add_projection(graph, q, [codes, taken], attributes)


def _projections(values: Sequence[ir.Value | None], op_type: str, domain: str) -> list[ir.Node]:
    """The three projections of one x, which the attention alone reads."""
    nodes = [producer(value, op_type, domain) for value in values]
    require(len({node.inputs[0] for node in nodes}) == 1, "the projections do not read one value")
    for node in nodes:
        only_reader(node.outputs[0])
    return nodes


def _add_projection(
    graph: ir.Graph, q: ir.Node, parameters: Sequence[ir.Value], attributes: Sequence[ir.Attr]
) -> ir.Value:
    """Puts a product like q's over packed parameters before it; gives the result."""
    old, inputs = q.outputs[0], [q.inputs[0], *parameters]
    name = (old.name or "").replace("q_proj", "qkv_proj")
    shape = [*shape_of(old)[:-1], size_of(parameters[0], 0)]
    return add_node(graph, q, q.op_type, inputs, attributes, name=name, shape=shape, dtype=old.dtype, domain=q.domain)


def _packed_input(parts: Sequence[ir.Value | None]) -> ir.Value:
    """A new input for the rows of weights that are inputs of one dtype themselves."""
    found = [value for value in parts if value is not None and value.is_graph_input()]
    if len(found) != len(parts):
        raise NoMatch("a projection's weight is not an input of the graph")
    require(len({value.dtype for value in found}) == 1, "the projections' weights have several dtypes")
    first = found[0]
    shape = ir.Shape([sum(size_of(value, 0) for value in found), *shape_of(first)[1:]])
    packed = ir.Value(name=(first.name or "").replace("q_proj", "qkv_proj"), shape=shape, type=first.type)
    packed.meta[PARTS] = [value.name for value in found]
    return packed
