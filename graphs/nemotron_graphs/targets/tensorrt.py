"""Target ``tensorrt``: two graphs of one trace, for two engines that share their weights, caches and kernels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from nemotron_errors import GraphError
from nemotron_formats.tensors import TensorEntry

from nemotron_graphs import passes
from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.fuse.qkv import PARTS
from nemotron_graphs.targets.record import OnStage, run_passes
from nemotron_graphs.targets.target import DTYPE_NAMES, LoweredGraph, LoweringContext, Target, cache_dtype

__all__ = [
    "PLUGIN_OPS",
    "TensorRTGraphs",
    "WeightInput",
    "common_ending",
    "lower_graph",
    "lower_tensorrt",
    "tensorrt",
    "weight_inputs",
]

# ops of the dialect that stay: each is a plugin
PLUGIN_OPS = (
    "PackedRotaryKVCacheUpdate", "CachedAttention", "PackedRotaryCachedAttention", "LayerNormLinear", "LinearResidual",
)  # fmt: skip


# what TensorRT computes with less than PyTorch's kernels do where it is let; bf16 products have no sums but float32's
_FLOAT32_INSIDE = {
    "Gemm": (ir.DataType.FLOAT16,),
    "LayerNormalization": (ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
}
_ROW_INPUTS = ("input_ids", "query_start", "logits_index")


@dataclass(frozen=True)
class WeightInput:
    """A graph input that is a weight: of both graphs, under one name.

    Attributes:
        name: of the input: the weight's name in the checkpoint, or that of a packed one, which has several parts.
        dtype: "bfloat16" or "float16", which is what its parts have on disk.
        shape: its dims.
        part_names: names in the checkpoint of what it consists of.
        parts: where those lie: the input's bytes are theirs, one part behind another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    part_names: tuple[str, ...]
    parts: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class TensorRTGraphs:
    """What the target makes of a trace.

    Both graphs take ``input_ids`` int64 [batch, tokens], ``query_start`` int64 [batch], ``k_cache.{l}`` and
    ``v_cache.{l}`` [batch, G, cache_len, D] and the weights, and give their first output (``logits``) in float32
    [batch, positions, C] and ``k_cache_out.{l}``, ``v_cache_out.{l}``, whose memory is that of the caches taken.

    Attributes:
        prefill: takes ``logits_index`` int64 [batch, positions] too.
        decode: one new token per row, which gets an output: tokens and positions are 1.
        weights: in the order in which both graphs take them, behind their other inputs.
    """

    prefill: LoweredGraph
    decode: LoweredGraph
    weights: tuple[WeightInput, ...]


class _TensorRT(Target):
    """Its :meth:`passes` and :meth:`lower` are those of the decode graph; :func:`lower_tensorrt` makes both graphs."""

    def passes(self, context: LoweringContext) -> Sequence[ir.passes.PassBase]:
        return _passes(context, decode=True)


tensorrt = _TensorRT(
    name="tensorrt",
    dtypes=("bfloat16", "float16"),
    lowering=tuple,
    session={"kind": "tensorrt", "provider": "TensorRT", "graph": "decode.onnx", "prefill_rows": "all"},
    description="TensorRT engines for one kind of NVIDIA GPU, with kernels of our own for decoding",
    requires="tensorrt",
)


def lower_tensorrt(
    model: ir.Model,
    context: LoweringContext,
    *,
    on_decode_stage: OnStage | None = None,
    on_prefill_stage: OnStage | None = None,
) -> TensorRTGraphs:
    """Lowers a dialect graph, which is left as it is, to the two graphs.

    Args:
        model: what ``trace`` gave, in bfloat16 or float16.
        context: its weights and RoPE tables are used.
        on_decode_stage: told of the decode graph after each pass.
        on_prefill_stage: likewise of the prefill graph.

    Raises:
        GraphError: another dtype, or weights that are stored in another dtype than the run's.
    """
    tensorrt.check_dtype(cache_dtype(model))
    prefill, decode = (
        lower_graph(model.clone(), _passes(context, decode=decode), tensorrt, file, on_stage, PLUGIN_OPS)
        for decode, file, on_stage in (
            (False, "prefill.onnx", on_prefill_stage), (True, "decode.onnx", on_decode_stage)
        )
    )  # fmt: skip
    weights = weight_inputs(prefill.model, context)
    assert [w.name for w in weights] == [w.name for w in weight_inputs(decode.model, context)]
    return TensorRTGraphs(prefill, decode, weights)


def _passes(context: LoweringContext, *, decode: bool) -> Sequence[ir.passes.PassBase]:
    """One list for both graphs; what is decode's alone comes between the common parts."""
    fixed: tuple[ir.passes.PassBase, ...] = ()
    fused: tuple[ir.passes.PassBase, ...] = ()
    if decode:
        fixed = (passes.FullLogitsPass(), passes.FixDimPass("tokens", 1))
        fused = (
            passes.FormPackedRotaryCachedAttentionPass(),
            passes.FormLayerNormLinearPass(),
            passes.FormLinearResidualPass(),
        )
    return (
        passes.CheckCacheReadersPass(),
        *fixed,
        passes.FormRotaryKVCacheUpdatePass(),
        passes.FormPackedRotaryKVCacheUpdatePass(),
        *fused,
        passes.WidenOutputPass(),
        # a plugin's op has no function beside it, which a parser would take instead
        passes.InlineDialectOpsPass(("Linear",)),
        *common_ending(context),
    )


def common_ending(context: LoweringContext) -> Sequence[ir.passes.PassBase]:
    """What every TensorRT graph's passes end with, once its ops are lowered."""
    return (
        passes.CanonicalizeShapesPass(),
        passes.cleanup(),
        passes.EliminateZeroSumsPass(),
        passes.DropUnusedInputsPass(),
        passes.InferShapesPass(),
        passes.BindRopeTablesPass(context.cos, context.sin),
        passes.ComputeInFloat32Pass(_FLOAT32_INSIDE),
        passes.CheckCacheReadersPass(),
    )


def lower_graph(
    model: ir.Model,
    chosen: Sequence[ir.passes.PassBase],
    target: Target,
    file: str,
    on_stage: OnStage | None,
    kept: Collection[str] = (),
) -> LoweredGraph:
    """Runs the passes; of the dialect's ops only those of ``kept`` may be left."""
    dtype = cache_dtype(model)
    model, records = run_passes(model, chosen, on_stage)
    left = {node.op_type for node in model.graph if node.domain == DOMAIN}
    assert left <= set(kept), f"ops that nothing lowers: {', '.join(sorted(left))}"
    session: dict[str, Any] = {
        **target.session,
        "graph": file,
        "cache_dtype": dtype,
        "inputs": [v.name for v in model.graph.inputs],
        "outputs": [v.name for v in model.graph.outputs],
    }
    return LoweredGraph(model, session, records)


def weight_inputs(model: ir.Model, context: LoweringContext) -> tuple[WeightInput, ...]:
    """The inputs that are weights, or packed of weights."""
    found = []
    for value in model.graph.inputs:
        assert value.name
        if value.name in _ROW_INPUTS or value.name.startswith(("k_cache.", "v_cache.")):
            continue
        names = tuple(value.meta.get(PARTS, (value.name,)))
        parts = tuple(context.weights[name] for name in names)
        assert value.dtype is not None
        stored, run = {part.dtype_name for part in parts}, DTYPE_NAMES[value.dtype]
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
        found.append(WeightInput(value.name, DTYPE_NAMES[value.dtype], shape, names, parts))
    return tuple(found)
