"""Makes the RoPE tables initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nemotron_graphs.passes.matching import dtype_of, shape_of

__all__ = ["BindRopeTablesPass"]


class BindRopeTablesPass(ir.passes.InPlacePass):
    """Binds the graph inputs ``cos`` and ``sin``.

    Args:
        cos: float32 [table, R/2].
        sin: float32 [table, R/2].

    Rules:
        1. the input becomes an initializer of the input's dtype (rounded as PyTorch rounds: to nearest, ties to even);
        2. the symbolic table length becomes the table's own.
    """

    def __init__(self, cos: np.ndarray, sin: np.ndarray) -> None:
        self.tables = {"cos": cos, "sin": sin}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inputs = {v.name: v for v in model.graph.inputs}
        for name, table in self.tables.items():
            value = inputs[name]
            assert table.shape[1:] == tuple(shape_of(value)[1:])
            model.graph.inputs.remove(value)
            value.shape = ir.Shape(table.shape)
            value.const_value = ir.tensor(table.astype(dtype_of(value).numpy()), name=name)
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=True)
