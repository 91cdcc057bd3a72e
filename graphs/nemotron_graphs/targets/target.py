"""What a target is: a named list of passes and what a session must know of the graph they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from nemotron_errors import GraphError
from nemotron_formats.tensors import EncodedWeight, TensorEntry

from nemotron_graphs import passes
from nemotron_graphs.targets.record import OnStage, PassRecord, run_passes

__all__ = ["DTYPE_NAMES", "LoweredGraph", "LoweringContext", "Target", "cache_dtype"]


@dataclass(frozen=True)
class LoweringContext:
    """What lowering needs beside the graph.

    Attributes:
        weights: name in the checkpoint → where it lies on disk.
        cos: RoPE table, float32 [table, R/2]; ``table`` is the number of cache slots that a session may have.
        sin: likewise.
        weights_folder: the bundle's folder that holds the weights' files; empty where they stay outside.
        encoded: name of a weight → its encoded operands, which ``weights`` has as well.
    """

    weights: Mapping[str, TensorEntry]
    cos: np.ndarray
    sin: np.ndarray
    weights_folder: str = ""
    encoded: Mapping[str, EncodedWeight] = field(default_factory=dict)


@dataclass(frozen=True)
class LoweredGraph:
    """A graph ready to be written, small ones beside it by file name, and the manifest's session entry."""

    model: ir.Model
    session: dict[str, Any]
    passes: tuple[PassRecord, ...] = field(default=())
    beside: Mapping[str, ir.Model] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the graph, and those beside it into its folder; no weight is read."""
        ir.save(self.model, path)
        for name, model in self.beside.items():
            ir.save(model, path.with_name(name))


@dataclass(frozen=True)
class Target:
    """A place where graphs run.

    Attributes:
        name: what ``--target`` takes.
        dtypes: run dtypes that it takes ("float32", …); the first is the default.
        stored_dtype_first: the default is the checkpoint's dtype instead, where it is among ``dtypes``.
        lowering: makes the passes that lower the dialect's ops to the target's own; what they leave becomes standard
            ops.
        finishing: makes the passes that come last of all, when weights and tables are bound.
        weight_modes: what ``--weights`` may be; the first is the default.
        quantized_bits: bits of quantized weights that its projections take.
        session: the fixed part of the manifest's session entry.
        description: one line for users.
        requires: the extra that its session needs.
        candidates: how many of the likeliest tokens a language model's bundle has a graph of its own for; 0 for none.
    """

    name: str
    dtypes: tuple[str, ...]
    lowering: Callable[[], Sequence[ir.passes.PassBase]]
    session: Mapping[str, Any]
    description: str
    requires: str
    finishing: Callable[[], Sequence[ir.passes.PassBase]] = tuple
    weight_modes: tuple[str, ...] = ("reference", "link", "copy")
    quantized_bits: tuple[int, ...] = ()
    stored_dtype_first: bool = False
    candidates: int = 0

    def check_dtype(self, dtype: str) -> None:
        """Raises GraphError where the target cannot run in ``dtype``."""
        if dtype not in self.dtypes:
            raise GraphError(
                f"dtype {dtype}",
                f"one of {', '.join(self.dtypes)} for target {self.name}",
                "choose another --dtype or another --target",
                where="--dtype",
            )

    def allowing_cpu_nodes(self) -> Target:
        """The target whose session accepts nodes that ONNX Runtime places on the CPU.

        Raises:
            GraphError: where its nodes run on no GPU of ONNX Runtime's row contract.
        """
        if (self.session["kind"], self.session["provider"]) != ("onnxruntime", "CUDAExecutionProvider"):
            remedy = "leave --allow-cpu-nodes out, or choose --target ort-cuda"
            raise GraphError(f"target {self.name}", "ort-cuda", remedy, where="--allow-cpu-nodes")
        return replace(self, session={**self.session, "allow_cpu_nodes": True})

    def passes(self, context: LoweringContext) -> Sequence[ir.passes.PassBase]:
        """All passes, in order: weights and tables are bound last, so that no pass meets their data."""
        return (
            passes.CheckCacheReadersPass(),
            *((passes.LowerLinearToMatMulNBitsPass(context.encoded, 4),) if context.encoded else ()),
            *self.lowering(),
            passes.InlineDialectOpsPass(),
            passes.CanonicalizeShapesPass(),
            passes.cleanup(),
            passes.DropUnusedInputsPass(),
            passes.InferShapesPass(),
            passes.BindRopeTablesPass(context.cos, context.sin),
            passes.BindWeightsPass(context.weights, context.weights_folder),
            passes.CheckCacheReadersPass(),
            *self.finishing(),
        )

    def lower(self, model: ir.Model, context: LoweringContext, on_stage: OnStage | None = None) -> LoweredGraph:
        """Runs the target's passes over the dialect graph, in place.

        Args:
            model: the dialect graph.
            context: what is bound to it.
            on_stage: told of the graph after each pass.

        Raises:
            GraphError: where the target cannot run in the graph's dtype.
        """
        dtype = cache_dtype(model)
        self.check_dtype(dtype)
        chosen = self.passes(context)
        model, records = run_passes(model, chosen, on_stage)
        packed = [weight for each in chosen if isinstance(each, passes.BindWeightsPass) for weight in each.packed]
        session = {
            **self.session,
            "cache_dtype": dtype,
            "weights_folder": context.weights_folder,
            "packed": [
                [{"file": part.file, "offset": part.offset, "length": part.length} for part in parts]
                for parts in packed
            ],
            "inputs": [v.name for v in model.graph.inputs],
            "outputs": [v.name for v in model.graph.outputs],
        }
        return LoweredGraph(model, session, records)


DTYPE_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


def cache_dtype(model: ir.Model) -> str:
    """numpy's name of the dtype of a dialect graph's caches, which is the run dtype."""
    caches = [v for v in model.graph.inputs if (v.name or "").startswith("k_cache.")]
    assert caches, "a dialect graph has caches"
    assert caches[0].dtype is not None
    return DTYPE_NAMES[caches[0].dtype]
