"""One PyTorch module → one ONNX IR graph in the dialect, on meta tensors, with weights as graph inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from nemotron_errors import GraphError
from nemotron_graphs.ops import DOMAIN, DOMAIN_VERSION

from nemotron_export.tracing.translations import TRANSLATIONS
from nemotron_export.tracing.writer import GraphWriter

__all__ = ["IR_VERSION", "OPSET_IMPORTS", "ExampleInput", "TracedPart", "trace_module"]

# The oldest opset that holds all that the graphs use; every ONNX Runtime since 1.18 reads it.
OPSET_IMPORTS = {"": 21, DOMAIN: DOMAIN_VERSION}
IR_VERSION = 10


@dataclass(frozen=True)
class ExampleInput:
    """An input of the traced module: its name and its dims, each a number or the name of a dynamic dim."""

    name: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True)
class TracedPart:
    """A traced module.

    Attributes:
        model: its graph; inputs are ``inputs`` followed by ``weights``.
        weights: names of the parameters that it reads, relative to what was wrapped.
    """

    model: ir.Model
    weights: tuple[str, ...]


# Example sizes of dynamic dims: at least 2, or torch.export specialises them; distinct, so that none are merged.
_EXAMPLE_SIZES = (2, 3, 5, 7, 11, 13)


def trace_module(
    module: torch.nn.Module, inputs: Sequence[ExampleInput], output_names: Sequence[str], *, wrapped: str
) -> TracedPart:
    """Traces ``module(*inputs)`` without touching a weight.

    Args:
        module: a module on the meta device, in eval mode, whose forward takes ``*args``.
        inputs: its positional inputs.
        output_names: names for its flattened outputs.
        wrapped: the attribute under which the module holds what is traced; names are given relative to that.

    Returns:
        The graph, its values named by module path and its dynamic dims by the names in ``inputs``.

    Raises:
        GraphError: an op that no rule of :data:`TRANSLATIONS` writes.
    """
    exported = _export(module, inputs)
    graph_nodes = list(exported.graph.nodes)
    targets = {spec.arg.name: spec.target for spec in exported.graph_signature.input_specs if spec.target}
    placeholders = [node for node in graph_nodes if node.op == "placeholder"]
    data = [node for node in placeholders if node.name not in targets]
    writer = GraphWriter(wrapped, _dim_names(data, inputs))
    values: dict[torch.fx.Node, ir.Value] = {}
    for node, example in zip(data, inputs, strict=True):
        values[node] = writer.input(example.name, node.meta["val"])
    weights: dict[str, ir.Value] = {}
    for node in placeholders:
        # a parameter that this part does not read is another part's
        if node.name in targets and node.users:
            name = str(targets[node.name]).removeprefix(f"{wrapped}.")
            # tied parameters have one tensor and, in the signature, one name each
            values[node] = weights.setdefault(name, writer.input(name, node.meta["val"]))
    outputs: list[ir.Value] = []
    for node in graph_nodes:
        # unused values: torch's own checks, and sizes that a constant target replaced
        if node.op == "call_function" and node.users:
            values[node] = _translate(writer, node, values)
        elif node.op == "output":
            outputs = [values[each] for each in node.args[0]]
    for value, name in zip(outputs, output_names, strict=True):
        value.name = name
    graph = ir.Graph(
        [*(values[node] for node in data), *weights.values()],
        outputs,
        nodes=writer.nodes,
        opset_imports=dict(OPSET_IMPORTS),
        name="nemotron",
    )
    return TracedPart(ir.Model(graph, ir_version=IR_VERSION), tuple(weights))


def _export(module: torch.nn.Module, inputs: Sequence[ExampleInput]) -> torch.export.ExportedProgram:
    names = dict.fromkeys(dim for i in inputs for dim in i.dims if isinstance(dim, str))
    assert len(names) <= len(_EXAMPLE_SIZES)
    sizes = dict(zip(names, _EXAMPLE_SIZES, strict=False))
    dims = {name: torch.export.Dim(name) for name in names}
    args = tuple(
        torch.zeros([sizes[d] if isinstance(d, str) else d for d in i.dims], dtype=i.dtype, device="meta")
        for i in inputs
    )
    dynamic_shapes = tuple({axis: dims[d] for axis, d in enumerate(i.dims) if isinstance(d, str)} for i in inputs)
    return torch.export.export(module, args, dynamic_shapes=(dynamic_shapes,), strict=False)


def _dim_names(data: Sequence[torch.fx.Node], inputs: Sequence[ExampleInput]) -> dict[str, str]:
    """torch's symbols (s11, …) → the names that the caller chose."""
    return {
        str(symbol): dim
        for node, example in zip(data, inputs, strict=True)
        for symbol, dim in zip(node.meta["val"].shape, example.dims, strict=True)
        if isinstance(dim, str)
    }


def _translate(writer: GraphWriter, node: torch.fx.Node, values: Mapping[torch.fx.Node, ir.Value]) -> ir.Value:
    rule = TRANSLATIONS.get(node.target)
    if rule is None:
        raise GraphError(
            f"the op {node.target}",
            f"one of {', '.join(sorted(map(str, TRANSLATIONS)))}",
            "add a rule to nemotron_export/tracing/translations.py",
            where="trace",
        )
    writer.enter(node)
    args: Any = torch.fx.map_arg(node.args, values.__getitem__)  # type: ignore[arg-type]
    # device and layout mean nothing in a graph
    result = rule(writer, *args)
    writer.finish(result)
    return result
