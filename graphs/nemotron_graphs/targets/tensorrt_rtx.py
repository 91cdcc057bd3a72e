"""Target ``tensorrt-rtx``: layers that TensorRT has itself, in place of plugins; and the same graphs for TensorRT."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nemotron_graphs import passes
from nemotron_graphs.targets.record import OnStage
from nemotron_graphs.targets.target import LoweringContext, Target, cache_dtype
from nemotron_graphs.targets.tensorrt import TensorRTGraphs, common_ending, lower_graph, weight_inputs

__all__ = ["NATIVE_OPSET", "lower_native", "tensorrt_rtx"]

# the first with TensorScatter, and with an Attention that goes with it
NATIVE_OPSET = 24


class _TensorRTRTX(Target):
    """Its :meth:`passes` and :meth:`lower` are those of the graph for any number of tokens."""

    def passes(self, context: LoweringContext) -> Sequence[ir.passes.PassBase]:
        return _passes(context, decode=False)


tensorrt_rtx = _TensorRTRTX(
    name="tensorrt-rtx",
    dtypes=("bfloat16", "float16"),
    lowering=tuple,
    session={"kind": "tensorrt-rtx", "provider": "TensorRT-RTX", "graph": "prefill.onnx", "prefill_rows": "all"},
    description="TensorRT for RTX engines of NVIDIA's native layers for several GPU architectures, built without a GPU",
    requires="tensorrt-rtx",
)


def lower_native(
    model: ir.Model, context: LoweringContext, target: Target = tensorrt_rtx, on_stage: OnStage | None = None
) -> TensorRTGraphs:
    """Lowers a dialect graph, which is left as it is, to native layers.

    Inputs and outputs are those of the plugins' graphs, but caches have as many slots as there are RoPE angles, and
    every weight is an input of its own.

    Args:
        model: what ``trace`` gave.
        context: its weights and RoPE tables are used.
        target: whose dtypes and session entry the graphs have.
        on_stage: told of the prefill graph after each pass.

    Raises:
        GraphError: another dtype, or weights that are stored in another dtype than the run's.
    """
    target.check_dtype(cache_dtype(model))
    prefill, decode = (
        lower_graph(model.clone(), _passes(context, decode=decode), target, file, told)
        for decode, file, told in ((False, "prefill.onnx", on_stage), (True, "decode.onnx", None))
    )
    return TensorRTGraphs(prefill, decode, weight_inputs(prefill.model, context))


def _passes(context: LoweringContext, *, decode: bool) -> Sequence[ir.passes.PassBase]:
    return (
        passes.CheckCacheReadersPass(),
        *((passes.FullLogitsPass(), passes.FixDimPass("tokens", 1)) if decode else ()),
        # TensorRT's layer wants a cache of a known length
        passes.FixDimPass("cache_len", len(context.cos)),
        passes.SetOpsetPass(NATIVE_OPSET),
        passes.LowerPartialRotaryEmbeddingPass(),
        passes.LowerKVCacheUpdatePass(),
        passes.LowerCachedAttentionPass(),
        passes.WidenOutputPass(),
        passes.InlineDialectOpsPass(),
        *common_ending(context),
    )
