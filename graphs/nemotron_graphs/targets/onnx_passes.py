"""What every target of ONNX Runtime does around its own passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from nemotron_formats.tensors import EncodedWeight

from nemotron_graphs import passes
from nemotron_graphs.targets.target import GraphRecipe, LoweringContext, ModelCounts, Passes

__all__ = ["onnx_graph", "packed_projections"]

# MatMulNBits on ONNX Runtime: activations become int8, by group and token, for the product. Left as they are, the 8-bit
# op of the CPU provider converts the whole weight in every call (22 ms in place of 0.07 ms for [3072, 768]), and the
# 4-bit op is 3 times slower, for an error that is small next to that of the weights.
_INT8_ACTIVATIONS = 4


def packed_projections(n: ModelCounts) -> int:
    """Attentions whose projections can be packed: a rotation outside of their kernel stands between."""
    return n.layers if n.rotary_half % 8 == 0 else 0


def _integers(weights: Mapping[str, EncodedWeight]) -> Any:
    return passes.LowerLinearToMatMulNBitsPass(weights, _INT8_ACTIVATIONS)


def onnx_graph(
    lowering: Callable[[], Passes] = tuple,
    finishing: Callable[[], Passes] = tuple,
    forms: Mapping[str, Callable[[ModelCounts], int]] = MappingProxyType({}),
    encoded: Callable[[Mapping[str, EncodedWeight]], Any] = _integers,
) -> dict[str, GraphRecipe]:
    """The one graph of a target of ONNX Runtime.

    Args:
        lowering: makes the passes that lower the dialect's ops to the target's own; what they leave becomes standard
            ops.
        finishing: makes the passes that come last, when weights and tables are bound.
        forms: of the recipe.
        encoded: makes the pass of projections whose weights are in another format.
    """

    def make(context: LoweringContext) -> Passes:
        return (
            passes.CheckCacheReadersPass(),
            *((encoded(context.encoded),) if context.encoded else ()),
            *lowering(),
            passes.InlineDialectOpsPass(),
            passes.CanonicalizeShapesPass(),
            passes.cleanup(),
            passes.DropUnusedInputsPass(),
            passes.InferShapesPass(),
            # weights and tables are bound last, so that no pass meets their data
            passes.BindRopeTablesPass(context.cos, context.sin),
            passes.BindWeightsPass(context.weights, context.weights_folder),
            passes.CheckCacheReadersPass(),
            *finishing(),
        )

    return {"model": GraphRecipe("model.onnx", make, forms)}
