"""All layers of a model traced at once: what the stamped graph of the package must equal."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import torch
from nemotron_graphs.ops import DOMAIN, DOMAIN_VERSION

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.tracing.exporter import ExampleInput, trace_module
from nemotron_export.tracing.trace import _GRAPH_INPUTS, _caches, _inputs, _meta_model, _tied, output_name

__all__ = ["trace_whole"]


class _Whole(torch.nn.Module):
    def __init__(self, model: NemotronPreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.layers = len(model.base_model.layers)

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        input_ids, query_start, query_length, logits_index, cos, sin, *caches = args
        logits, keys, values = self.model.forward_dialect(
            input_ids, query_start, query_length, logits_index, cos, sin, caches[: self.layers], caches[self.layers :]
        )
        return (logits, *keys, *values)


def trace_whole(
    config: NemotronConfig, dtype: torch.dtype, task: str = "causal-lm", fp32_mlp_layers: Collection[int] = ()
) -> ir.Model:
    """The dialect graph of all layers traced at once."""
    model = _meta_model(config, dtype, config.num_hidden_layers, task, fp32_mlp_layers)
    described = _inputs(config, dtype)
    caches = _caches(config, dtype)
    inputs = [described[n] for n in _GRAPH_INPUTS]
    inputs += [ExampleInput(cache.input_name, described["k_cache"].dims, dtype) for cache in caches]
    outputs = [output_name(task), *(cache.output_name for cache in caches)]
    traced = trace_module(_Whole(model), inputs, outputs, wrapped="model")
    for value in traced.model.graph.inputs[len(inputs) :]:
        assert value.name
        value.name = _tied(config, value.name)
    traced.model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return traced.model
