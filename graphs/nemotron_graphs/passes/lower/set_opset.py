"""Moves a graph to a later opset."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["SetOpsetPass"]

# opset → the oldest IR version that may hold it
_IR_VERSIONS = {21: 10, 22: 10, 23: 11, 24: 12}


class SetOpsetPass(ir.passes.InPlacePass):
    """Names another opset of ONNX's own domain.

    Args:
        version: of the opset, and not below the graph's.

    Rule: opset and IR version are set, nodes stay: from 21 to 24 what the traced graphs use only takes more dtypes.
    """

    def __init__(self, version: int) -> None:
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = model.opset_imports[""]
        if not before <= self.version or self.version not in _IR_VERSIONS:
            raise ir.passes.PreconditionError(
                f"opset {before}: found opset {self.version} to move to; expected {before} to {max(_IR_VERSIONS)}; "
                "trace in that opset"
            )
        model.opset_imports[""] = self.version
        model.ir_version = max(model.ir_version or 0, _IR_VERSIONS[self.version])
        return ir.passes.PassResult(model, before != self.version)
