"""What a target makes of a trace, and what it needs for that besides the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from nemotron_errors import GraphError
from nemotron_formats.dtypes import dtype_of_onnx
from nemotron_formats.tensors import EncodedWeight, TensorEntry, WeightInput

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.fuse.qkv import PARTS
from nemotron_graphs.targets.record import PassRecord

__all__ = ["Lowered", "LoweredGraph", "LoweringContext", "ModelCounts", "dtype_name", "weight_inputs"]


@dataclass(frozen=True)
class LoweringContext:
    """What lowering needs besides the graph.

    Attributes:
        weights: name in the checkpoint → where it lies on disk.
        cos: RoPE table, float32 [table, R/2]; ``table`` is the largest capacity of a cache.
        sin: likewise.
        weights_folder: the bundle's folder that holds the weights' files; empty where they stay outside.
        encoded: name of a weight → its operands in another format, which ``weights`` has as well.
        fp32_mlp_layers: how many layers compute relu² and down_proj in fp32.
        chooses_tokens: whether the model is a language model, whose outputs are logits over the vocabulary.
    """

    weights: Mapping[str, TensorEntry]
    cos: np.ndarray
    sin: np.ndarray
    weights_folder: str = ""
    encoded: Mapping[str, EncodedWeight] = field(default_factory=dict)
    fp32_mlp_layers: int = 0
    chooses_tokens: bool = True


@dataclass(frozen=True)
class ModelCounts:
    """What a dialect graph has, by which a recipe says how much each fusion must find.

    Attributes:
        layers: decoder layers.
        fp32_mlp_layers: those whose relu² and down_proj are in fp32.
        heads: 1, or 0 where the graph gives hidden states.
        encoded: whether the projections' weights are in another format.
    """

    layers: int
    fp32_mlp_layers: int
    heads: int
    encoded: bool

    @classmethod
    def of(cls, model: ir.Model, context: LoweringContext) -> ModelCounts:
        """Those of a dialect graph."""
        layers = sum((node.domain, node.op_type) == (DOMAIN, "CachedAttention") for node in model.graph)
        last = model.graph.outputs[0].producer()
        head = last is not None and (last.domain, last.op_type) == (DOMAIN, "Linear")
        return cls(layers, context.fp32_mlp_layers, int(head), bool(context.encoded))


@dataclass(frozen=True)
class LoweredGraph:
    """One graph, the file that it goes to, and what each pass did."""

    model: ir.Model
    file: str
    passes: tuple[PassRecord, ...] = ()


@dataclass(frozen=True)
class Lowered:
    """What a target makes of a trace.

    Attributes:
        graphs: by the target's names of them, and those added to them.
        session: the manifest's session entry.
        weights: inputs of every graph that are weights, in order; none where the graphs refer to the weights' files.
    """

    graphs: Mapping[str, LoweredGraph]
    session: dict[str, Any]
    weights: tuple[WeightInput, ...] = ()

    @property
    def main(self) -> LoweredGraph:
        """The graph that the session's entry describes."""
        return next(graph for graph in self.graphs.values() if graph.file == self.session["graph"])

    def save(self, folder: Path) -> None:
        """Writes the graphs into a bundle's folder; no weight is read."""
        for graph in self.graphs.values():
            path = folder / graph.file
            path.parent.mkdir(exist_ok=True)
            ir.save(graph.model, path)


def weight_inputs(model: ir.Model, context: LoweringContext) -> tuple[WeightInput, ...]:
    """The inputs that are weights, or several weights put together.

    Raises:
        GraphError: a weight that is stored in another dtype than the graph's.
    """
    found = []
    for value in model.graph.inputs:
        if value.name not in context.weights and PARTS not in value.meta:
            continue
        parts = [context.weights[name] for name in value.meta.get(PARTS, (value.name,))]
        run, stored = dtype_name(value), {part.dtype_name for part in parts}
        if stored != {run}:
            disk = ", ".join(sorted(stored))
            raise GraphError(
                f"weight '{value.name}' stored in {disk}",
                f"{run}: an engine reads the checkpoint's weights as they are",
                f"build with --dtype {disk}, or convert the checkpoint to {run} first",
                where="--dtype",
            )
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        if value.shape is None or tuple(value.shape) != shape:
            raise ir.passes.PreconditionError(
                f"weight '{value.name}': found shape {list(shape)} on disk; "
                f"expected {value.shape}; check the checkpoint against its config"
            )
        found.append(WeightInput(str(value.name), run, shape, tuple(part.span for part in parts)))
    return tuple(found)


def dtype_name(value: ir.Value) -> str:
    """numpy's name of a value's dtype."""
    assert value.dtype is not None
    return dtype_of_onnx(int(value.dtype)).name
