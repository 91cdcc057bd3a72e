"""Where a model's values are compared: named by module path, found in eager PyTorch and in an artefact's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nemotron_formats.cache import CACHES, GENAI_CACHES

from nemotron_export.checkpoint.expected import backbone_prefix

__all__ = ["PACKED", "Point", "head_points", "layer_outputs", "layer_points"]

# what the packed projections' value is called, after the attention's path
PACKED = "qkv_proj.Linear"


@dataclass(frozen=True)
class Point:
    """One value.

    Attributes:
        module: path of the module that it belongs to.
        op: the op of the dialect that ends there, with what it works on where a module has it twice.
        values: names that the value may have in an artefact's graph; targets fuse, so that some lack some points.
        layer: the decoder layer's number; None outside the layers.
        layout: "tokens": [B, S, …]; "cache": [B, G, T, D].
        hook: how PyTorch's value is had: "output" or "input" of a module, or a "key" or "value" cache.
        hooked: the path of that module; ``module`` where empty.
        packed: "q", "k" or "v" where an artefact may hold the value as a part of the packed projections.
    """

    module: str
    op: str
    values: tuple[str, ...]
    layer: int | None
    layout: Literal["tokens", "cache"] = "tokens"
    hook: Literal["output", "input", "key", "value"] = "output"
    hooked: str = ""
    packed: Literal["", "q", "k", "v"] = ""

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.module}: {self.op}"

    def found_in(self, names: Sequence[str] | set[str]) -> str | None:
        """The first of its names that an artefact has."""
        return next((value for value in self.values if value in names), None)


def layer_points(task: str, layer: int) -> list[Point]:
    """The points of one decoder layer, in the order of the computation."""
    path = f"{backbone_prefix(task)}layers.{layer}"
    attention, mlp = f"{path}.self_attn", f"{path}.mlp"

    def linear(module: str) -> Point:
        return Point(f"{path}.{module}", "Linear", (f"{path}.{module}.Linear",), layer)

    def norm(module: str) -> Point:
        return Point(f"{path}.{module}", "LayerNorm1P", (f"{path}.{module}.LayerNormalization",), layer)

    def projection(part: Literal["q", "k", "v"]) -> Point:
        module = f"{attention}.{part}_proj"
        return Point(module, "Linear", (f"{module}.Linear", f"{attention}.{PACKED}"), layer, packed=part)

    def rotation(side: str, value: str) -> Point:
        op = f"PartialRotaryEmbedding ({side})"
        return Point(attention, op, (f"{path}.{value}",), layer, hooked=f"{attention}.rotate_{side}")

    def cache(kind: Literal["key", "value"]) -> Point:
        side: Literal["k", "v"] = "k" if kind == "key" else "v"
        values = CACHES.output.format(layer=layer, kind=side), GENAI_CACHES.output.format(layer=layer, kind=kind)
        return Point(attention, f"KVCacheUpdate ({side})", values, layer, "cache", kind)

    def before(module: str, named: str, op: str, *values: str) -> Point:
        return Point(named, op, values, layer, hook="input", hooked=f"{path}.{module}")

    attended = (f"{path}.CachedAttention", f"{path}.CachedAttention/flat")
    return [
        norm("input_layernorm"),
        *(projection(part) for part in ("q", "k", "v")),
        rotation("q", "PartialRotaryEmbedding"),
        rotation("k", "PartialRotaryEmbedding_2"),
        cache("key"),
        cache("value"),
        before("self_attn.o_proj", attention, "CachedAttention", *attended),
        linear("self_attn.o_proj"),
        before("post_attention_layernorm", path, "Add (attention)", f"{path}.Add"),
        norm("post_attention_layernorm"),
        linear("mlp.up_proj"),
        before("mlp.down_proj", mlp, "relu²", f"{path}.mlp.Mul"),
        linear("mlp.down_proj"),
        Point(path, "Add (mlp)", (f"{path}.hidden_out",), layer),
    ]


def layer_outputs(task: str, layers: int) -> list[Point]:
    """The embedding, and what leaves each layer: the coarse walk."""
    prefix = backbone_prefix(task)
    embed = Point(f"{prefix}embed_tokens", "Gather", ("hidden_out",), None)
    return [embed, *(layer_points(task, layer)[-1] for layer in range(layers))]


def head_points(task: str, output: str) -> list[Point]:
    """The final norm and the head, at the positions that get an output."""
    norm = f"{backbone_prefix(task)}norm"
    heads = {"causal-lm": "lm_head", "question-answering": "qa_outputs"}
    final = Point(norm, "LayerNorm1P", (f"{norm}.LayerNormalization", output), None)
    if task == "feature-extraction":
        return [final]
    return [final, Point(heads.get(task, "score"), "Linear", (output,), None)]
