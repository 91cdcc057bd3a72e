"""One PyTorch module → one ONNX IR graph in the dialect, on meta tensors, with weights as graph inputs."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from nemotron_graphs.ops import DOMAIN, DOMAIN_VERSION, OPS, register_schemas

__all__ = ["OPSET", "ExampleInput", "TracedPart", "trace_module"]

# The oldest opset that holds all that the graphs use; every ONNX Runtime since 1.18 reads it.
OPSET = 21

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"


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
        weights: names of its parameters, relative to what was wrapped.
    """

    model: ir.Model
    weights: tuple[str, ...]


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes the dialect's ops: as nodes of the domain, never as decompositions."""
    register_schemas()
    dialect = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)

    def emit(op_type: str) -> Callable[..., Any]:
        def translate(*args: Any) -> Any:
            return getattr(dialect, op_type)(*args)

        return translate

    table = {getattr(torch.ops.nemotron, name).default: emit(name) for name in OPS}
    # a linear stays one node on the checkpoint's own [out, in] layout, for each target to lower as it likes
    table[torch.ops.aten.linear.default] = emit("Linear")
    return table


# Example sizes of dynamic dims: at least 2, or torch.export specialises them; distinct, so that none are merged.
_EXAMPLE_SIZES = (2, 3, 5, 7, 11, 13)


def trace_module(
    module: torch.nn.Module,
    inputs: Sequence[ExampleInput],
    output_names: Sequence[str],
    *,
    wrapped: str,
    opset: int = OPSET,
) -> TracedPart:
    """Traces ``module(*inputs)`` without touching a weight.

    Args:
        module: a module on the meta device, in eval mode, whose forward takes ``*args``.
        inputs: its positional inputs.
        output_names: names for its flattened outputs.
        wrapped: the attribute under which the module holds what is traced; names are given relative to that.
        opset: version of ONNX's default domain.

    Returns:
        The graph, its values named by module path and its dynamic dims by the names in ``inputs``.
    """
    names = dict.fromkeys(dim for i in inputs for dim in i.dims if isinstance(dim, str))
    assert len(names) <= len(_EXAMPLE_SIZES)
    sizes = dict(zip(names, _EXAMPLE_SIZES, strict=False))
    dims = {name: torch.export.Dim(name) for name in names}
    args = tuple(
        torch.zeros([sizes[d] if isinstance(d, str) else d for d in i.dims], dtype=i.dtype, device="meta")
        for i in inputs
    )
    dynamic_shapes = tuple({axis: dims[d] for axis, d in enumerate(i.dims) if isinstance(d, str)} for i in inputs)
    # the registry reports every optional package that it does not find
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    exported = torch.export.export(module, args, dynamic_shapes=(dynamic_shapes,), strict=False)
    program = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=opset,
        custom_translation_table=_translations(),
        input_names=[i.name for i in inputs],
        output_names=list(output_names),
        optimize=False,
        verbose=False,
    )
    assert program is not None
    model = program.model
    _name_dims(model, inputs)
    _name_values_by_module(model.graph, f"{wrapped}.")
    return TracedPart(model, _weights_to_inputs(model, f"{wrapped}."))


def _name_dims(model: ir.Model, inputs: Sequence[ExampleInput]) -> None:
    """Gives torch's symbols (s11, …) the names that the caller chose."""
    renamed: dict[str, str] = {}
    for value, example in zip(model.graph.inputs, inputs, strict=True):
        assert value.shape is not None
        for symbol, dim in zip(value.shape, example.dims, strict=True):
            if isinstance(dim, str):
                assert isinstance(symbol, ir.SymbolicDim)
                assert symbol.value is not None
                renamed[symbol.value] = dim
    for value in _all_values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                [d if isinstance(d, int) else renamed.get(d.value or "", d.value) for d in value.shape]
            )


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values.extend(node.outputs)
    return values


def _name_values_by_module(graph: ir.Graph, wrapper: str) -> None:
    """Names each value ``<module path>.<op>``, so that an intermediate can be found in PyTorch by its name."""
    taken = {v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    outputs = set(graph.outputs)
    for node in graph:
        scopes: list[str] = ast.literal_eval(node.metadata_props.get(_NAME_SCOPES, "[]"))
        path = scopes[-2].removeprefix(wrapper) if len(scopes) > 1 else ""
        for value in node.outputs:
            if value in outputs:
                continue
            base = ".".join(part for part in (path, node.op_type) if part)
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            taken.add(name)
            value.name = name


def _weights_to_inputs(model: ir.Model, wrapper: str) -> tuple[str, ...]:
    graph = model.graph
    weights = list(graph.initializers.values())
    graph.initializers.clear()
    for value in weights:
        value.const_value = None
        assert value.name
        value.name = value.name.removeprefix(wrapper)
    graph.inputs.extend(weights)
    return tuple(v.name for v in weights if v.name)
