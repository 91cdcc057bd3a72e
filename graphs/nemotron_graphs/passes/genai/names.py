"""Names as ONNX Runtime GenAI has them: caches by layer."""

from __future__ import annotations

import re

import onnx_ir as ir

__all__ = ["GenaiNamesPass"]

_KINDS = {"k": "key", "v": "value"}
_CACHE = re.compile(r"([kv])_cache(_out)?\.(\d+)")


class GenaiNamesPass(ir.passes.InPlacePass):
    """Renames the caches.

    Rules:
        1. input ``k_cache.{l}`` → ``past_key_values.{l}.key``, with ``past_tokens`` slots; ``v_cache`` → ``….value``;
        2. output ``k_cache_out.{l}`` → ``present.{l}.key``, with ``present_tokens`` slots (a buffer that both share
           has as many of the one as of the other; beam search shares none); ``v_cache_out`` → ``….value``;
        3. both are ordered by layer, key before value.

    It comes last: other passes know the caches by their old names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for values, name, slots in (
            (graph.inputs, "past_key_values", "past_tokens"),
            (graph.outputs, "present", "present_tokens"),
        ):
            caches = sorted((v for v in values if _CACHE.fullmatch(v.name or "")), key=_by_layer)
            others = [v for v in values if v not in caches]
            for value in caches:
                kind, _, layer = _matched(value).groups()
                assert value.shape is not None
                value.name = f"{name}.{layer}.{_KINDS[kind]}"
                value.shape = ir.Shape([*value.shape[:2], slots, value.shape[3]])
            values[:] = [*others, *caches]
        return ir.passes.PassResult(model, modified=True)


def _matched(value: ir.Value) -> re.Match[str]:
    match = _CACHE.fullmatch(value.name or "")
    assert match is not None
    return match


def _by_layer(value: ir.Value) -> tuple[int, str]:
    kind, _, layer = _matched(value).groups()
    return int(layer), kind
