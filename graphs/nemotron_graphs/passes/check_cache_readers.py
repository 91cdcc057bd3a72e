"""Refuses a graph that reads a cache other than through its update."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN

__all__ = ["CheckCacheReadersPass"]

# GroupQueryAttention and PackedRotaryCachedAttention are update and reader in one node; the scatter ops are what
# KVCacheUpdate is lowered to.
_UPDATES = {
    (DOMAIN, "KVCacheUpdate"),
    (DOMAIN, "RotaryKVCacheUpdate"),
    (DOMAIN, "PackedRotaryKVCacheUpdate"),
    (DOMAIN, "PackedRotaryCachedAttention"),
    ("com.microsoft", "GroupQueryAttention"),
    ("", "ScatterElements"),
    ("", "ScatterND"),
    ("", "TensorScatter"),
}


class CheckCacheReadersPass(ir.passes.InPlacePass):
    """Checks what makes in-place caches right; changes nothing.

    With a cache's output bound to its input's memory, any node that reads the old cache beside its update sees new
    data or old data, as the scheduler likes.

    Conditions, for every graph input named ``k_cache.*`` or ``v_cache.*``:
        1. exactly one node reads its data, and that node is its update;
        2. it is not itself a graph output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        outputs = set(model.graph.outputs)
        for value in model.graph.inputs:
            name = value.name or ""
            if not name.startswith(("k_cache.", "v_cache.")):
                continue
            # Shape reads no data
            readers = [node for node, _ in value.uses() if (node.domain, node.op_type) != ("", "Shape")]
            kinds = [(node.domain, node.op_type) for node in readers]
            if value in outputs or len(readers) != 1 or kinds[0] not in _UPDATES:
                found = f"readers {kinds or 'none'}" + (" and a graph output" if value in outputs else "")
                raise ir.passes.InvariantError(
                    f"cache '{name}': found {found}; expected its update alone; "
                    "let the other readers take the updated cache"
                )
        return ir.passes.PassResult(model, modified=False)
