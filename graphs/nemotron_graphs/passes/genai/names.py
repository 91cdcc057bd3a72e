"""Names as ONNX Runtime GenAI has them: caches by layer."""

from __future__ import annotations

import onnx_ir as ir
from nemotron_formats.cache import GENAI_CACHES, find_cache

from nemotron_graphs.passes.matching import shape_of

__all__ = ["GenaiNamesPass"]


class GenaiNamesPass(ir.passes.InPlacePass):
    """Renames the caches.

    Rules:
        1. inputs are named as GENAI_CACHES has them, their capacity ``past_tokens``;
        2. outputs likewise, their capacity ``present_tokens`` (a buffer that both share has one capacity; beam search
           shares none);
        3. both are ordered by layer, key before value.

    It comes last: other passes know the caches by their old names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for values, pattern, capacity in (
            (model.graph.inputs, GENAI_CACHES.input, "past_tokens"),
            (model.graph.outputs, GENAI_CACHES.output, "present_tokens"),
        ):
            found = [(find_cache(value.name), value) for value in values]
            caches = sorted(((place, value) for place, value in found if place is not None), key=lambda each: each[0])
            for (layer, kind), value in caches:
                value.name = pattern.format(layer=layer, kind=GENAI_CACHES.kinds[kind])
                B, G, _, D = shape_of(value)
                value.shape = ir.Shape([B, G, capacity, D])
            values[:] = [*(value for place, value in found if place is None), *(value for _, value in caches)]
        return ir.passes.PassResult(model, modified=True)
