"""The reference model of any task → its dialect graph.

Dims: batch (sequences), tokens (new ones of each), positions (that get logits), cache_len (capacity), table (RoPE's
positions).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx_ir as ir
import torch
from nemotron_formats.cache import CacheSpec, cache_specs

from nemotron_export.checkpoint.expected import backbone_prefix
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.fp32_mlp import set_fp32_mlp
from nemotron_export.model.load import MODEL_CLASSES
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.tracing.exporter import ExampleInput, TracedPart, trace_module
from nemotron_export.tracing.stamp import GraphBuilder

__all__ = ["output_name", "trace"]


class _Part(torch.nn.Module):
    """A method of a module as the forward that a trace takes."""

    def __init__(self, module: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: torch.Tensor) -> Any:
        return getattr(self.module, self.method)(*args)


def _meta_model(
    config: NemotronConfig, dtype: torch.dtype, layers: int, task: str, fp32_mlp_layers: Collection[int] = ()
) -> NemotronPreTrainedModel:
    with torch.device("meta"):
        made = MODEL_CLASSES[task](config.replace(num_hidden_layers=layers)).to(dtype).eval()
    set_fp32_mlp(made, fp32_mlp_layers)
    return made


def output_name(task: str) -> str:
    """What a task's graph calls its output [batch, positions, C]."""
    return "last_hidden_state" if task == "feature-extraction" else "logits"


def _inputs(config: NemotronConfig, dtype: torch.dtype) -> dict[str, ExampleInput]:
    half = config.rotary_dim // 2
    cache = ("batch", config.num_key_value_heads, "cache_len", config.head_dim)
    described = (
        ExampleInput("input_ids", ("batch", "tokens")),
        ExampleInput("query_start", ("batch",)),
        ExampleInput("query_length", ("batch",)),
        ExampleInput("logits_index", ("batch", "positions")),
        ExampleInput("cos", ("table", half), dtype),
        ExampleInput("sin", ("table", half), dtype),
        ExampleInput("position_ids", ("batch", "tokens")),
        ExampleInput("hidden", ("batch", "tokens", config.hidden_size), dtype),
        ExampleInput("k_cache", cache, dtype),
        ExampleInput("v_cache", cache, dtype),
    )
    return {i.name: i for i in described}


_GRAPH_INPUTS = ("input_ids", "query_start", "query_length", "logits_index", "cos", "sin")
_LAYER_INPUTS = ("hidden", "cos", "sin", "position_ids", "query_start", "k_cache", "v_cache")


def _caches(config: NemotronConfig, dtype: torch.dtype) -> tuple[CacheSpec, ...]:
    """The keys of all layers, then the values, as the graph has them."""
    name = str(dtype).removeprefix("torch.")
    found = cache_specs(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, name)
    return (*found[::2], *found[1::2])


def trace(
    config: NemotronConfig, dtype: torch.dtype, task: str = "causal-lm", fp32_mlp_layers: Collection[int] = ()
) -> ir.Model:
    """Traces embedding, one decoder layer and head, and stamps the layer ``num_hidden_layers`` times.

    Nothing is loaded: the modules live on the meta device.

    Args:
        dtype: what the graph computes in.
        task: a key of ``MODEL_CLASSES``.
        fp32_mlp_layers: layers whose MLP computes in fp32 after its first projection; see :class:`MLP`.

    Returns:
        The dialect graph. Inputs: ``input_ids`` int64 [batch, tokens], ``query_start`` and ``query_length`` int64
        [batch], ``logits_index`` int64 [batch, positions], ``cos`` and ``sin`` [table, R/2], ``k_cache.{l}`` and
        ``v_cache.{l}`` [batch, G, cache_len, D], then every weight under its name in the checkpoint. Outputs:
        ``logits`` [batch, positions, vocab or classes] (``last_hidden_state`` for feature-extraction),
        ``k_cache_out.{l}``, ``v_cache_out.{l}``.
    """
    model = _meta_model(config, dtype, 1, task)
    described = _inputs(config, dtype)

    def part(module: torch.nn.Module, method: str, inputs: tuple[str, ...], *outputs: str) -> TracedPart:
        return trace_module(_Part(module, method), [described[n] for n in inputs], outputs, wrapped="module")

    embed = part(model, "dialect_embed", ("input_ids", "query_start"), "hidden_out", "position_ids_out")
    layers = {}
    # one trace for each kind of layer that there is
    for fp32_mlp in {index in fp32_mlp_layers for index in range(config.num_hidden_layers)}:
        set_fp32_mlp(model, [0] if fp32_mlp else [])
        layer = model.base_model.layers[0]
        layers[fp32_mlp] = part(layer, "forward_dialect", _LAYER_INPUTS, "hidden_out", "k_cache_out", "v_cache_out")
    head = part(model, "dialect_head", ("hidden", "logits_index"), "logits")

    builder = GraphBuilder()
    ir_dtype = embed.model.graph.outputs[0].dtype
    assert ir_dtype is not None
    given = {
        n: builder.input(n, ir_dtype if n in ("cos", "sin") else ir.DataType.INT64, described[n].dims)
        for n in _GRAPH_INPUTS
    }
    caches = _caches(config, dtype)
    given |= {c.input_name: builder.input(c.input_name, ir_dtype, described["k_cache"].dims) for c in caches}
    embedded = {name: _tied(config, name) for name in embed.weights}
    hidden, position_ids = builder.stamp(embed.model.graph, [given["input_ids"], given["query_start"]], embedded, "")
    updated: dict[int, list[ir.Value]] = {}
    for index in range(config.num_hidden_layers):
        traced, path = layers[index in fp32_mlp_layers], f"{backbone_prefix(task)}layers.{index}."
        own = [given[c.input_name] for c in caches if c.layer == index]
        inputs = [hidden, given["cos"], given["sin"], position_ids, given["query_start"], *own]
        named = {name: f"{path}{name}" for name in traced.weights}
        hidden, *updated[index] = builder.stamp(traced.model.graph, inputs, named, path)
    head_weights = {name: _tied(config, name) for name in head.weights}
    (logits,) = builder.stamp(head.model.graph, [hidden, given["logits_index"]], head_weights, "")
    outputs = {c.output_name: updated[c.layer].pop(0) for c in caches}
    return builder.finish({output_name(task): logits, **outputs})


def _tied(config: NemotronConfig, name: str) -> str:
    """The one name of a tied pair, of which torch may have kept either."""
    return "model.embed_tokens.weight" if config.tie_word_embeddings and name == "lm_head.weight" else name
