"""Refuses a graph that reads a cache other than through its update."""

from __future__ import annotations

import onnx_ir as ir
from nemotron_formats.cache import find_cache

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import CONTRIB, is_op

__all__ = ["CheckCacheReadersPass"]

# GroupQueryAttention and PackedRotaryCachedAttention are update and reader in one node; the scatter ops are what
# KVCacheUpdate is lowered to.
_UPDATES = {
    (DOMAIN, "KVCacheUpdate"),
    (DOMAIN, "RotaryKVCacheUpdate"),
    (DOMAIN, "PackedRotaryKVCacheUpdate"),
    (DOMAIN, "PackedRotaryCachedAttention"),
    (CONTRIB, "GroupQueryAttention"),
    ("", "ScatterElements"),
    ("", "TensorScatter"),
}


class CheckCacheReadersPass(ir.passes.InPlacePass):
    """Checks what makes in-place caches right; changes nothing.

    With a cache's output bound to its input's memory, any node other than its update that reads the old cache sees new
    data or old data, depending on the order in which nodes run.

    Conditions, for every graph input that is a cache:
        1. exactly one node reads its data, and that node is its update;
        2. it is not itself a graph output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for value in model.graph.inputs:
            if find_cache(value.name) is None:
                continue
            # Shape reads no data
            kinds = [(node.domain, node.op_type) for node, _ in value.uses() if not is_op(node, "Shape")]
            if value.is_graph_output() or len(kinds) != 1 or kinds[0] not in _UPDATES:
                found = f"readers {kinds or 'none'}" + (" and a graph output" if value.is_graph_output() else "")
                raise ir.passes.InvariantError(
                    f"cache '{value.name}': found {found}; expected its update alone; "
                    "let the other readers take the updated cache"
                )
        return ir.passes.PassResult(model, modified=False)
