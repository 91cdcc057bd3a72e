"""Dead code, constants, duplicates, names: what every target ends with."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from nemotron_graphs.passes.simplify.fold_constants import FoldConstantsPass

__all__ = ["cleanup"]


def cleanup() -> ir.passes.Sequential:
    """Linear-time clean-up by onnx-ir's own passes; no pattern matching, so it stays cheap for hundreds of layers."""
    return ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        FoldConstantsPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    )
