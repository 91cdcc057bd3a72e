"""Mistakes that exporters of this architecture make, planted one at a time into a bundle's graph.

Each changes the dialect graph, an op's body, the RoPE tables or which weight is bound, before the target's own passes.
"""
# ruff: noqa: E501 (texts of function bodies)

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from nemotron_graphs.ops import OPS
from nemotron_graphs.targets import LoweringContext, get_target
from nemotron_graphs.targets.lowering import lower
from nemotron_runtime.bundle.folder import file_record

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model import rope_tables

__all__ = ["BODY_MISTAKES", "GRAPH_MISTAKES", "Mistake", "plant"]


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        op: what the bisection must name first.
        module: the end of the module's path that it must name.
        stage: where it shows.
        graph: changes the dialect graph.
        body: op of the dialect, and (old, new) texts of its function body.
        context: changes tables or weights.
    """

    op: str
    module: str
    stage: str = "prefill"
    graph: Callable[[ir.Graph], None] | None = None
    body: tuple[str, tuple[tuple[str, str], ...]] | None = None
    context: Callable[[LoweringContext, Checkpoint], LoweringContext] | None = None


def _nodes(graph: ir.Graph, op_type: str, part: str = "") -> list[ir.Node]:
    found = [node for node in graph if node.op_type == op_type and part in (node.outputs[0].name or "")]
    assert found, f"no {op_type} {part}"
    return found


def _insert(graph: ir.Graph, before: ir.Node, op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
    made = [ir.Attr(name, kind, value) for name, (kind, value) in attributes.items()]
    node = ir.Node("", op, inputs, made, num_outputs=1)
    graph.insert_before(before, node)
    return node.outputs[0]


def _constant(graph: ir.Graph, before: ir.Node, value: Any) -> ir.Value:
    return _insert(graph, before, "Constant", [], value=(ir.AttributeType.TENSOR, ir.tensor(np.asarray(value))))


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Lets ``value`` take the place, and the name, of a node's output."""
    old = node.outputs[0]
    name = old.name
    value.shape, value.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, value)
    graph.remove(node, safe=True)
    value.name = name


def _unchanged(graph: ir.Graph, before: ir.Node, value: ir.Value | None) -> ir.Value:
    # not Identity, which the clean-up removes together with the name
    return _insert(graph, before, "Mul", [value, _constant(graph, before, np.float32(1))])


def _rms_norm(graph: ir.Graph) -> None:
    for node in _nodes(graph, "LayerNormalization"):
        x, gamma, _ = node.inputs
        square = _insert(graph, node, "Mul", [x, x])
        mean = _insert(
            graph, node, "ReduceMean", [square, _constant(graph, node, np.array([-1]))],
            keepdims=(ir.AttributeType.INT, 1),
        )  # fmt: skip
        root = _insert(
            graph, node, "Sqrt", [_insert(graph, node, "Add", [mean, _constant(graph, node, np.float32(1e-5))])]
        )
        normed = _insert(graph, node, "Div", [x, root])
        _replace(graph, node, _insert(graph, node, "Mul", [normed, gamma]))


def _wrong_epsilon(graph: ir.Graph) -> None:
    for node in _nodes(graph, "LayerNormalization"):
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-6)


def _gamma_without_one(graph: ir.Graph) -> None:
    for node in _nodes(graph, "LayerNormalization"):
        add = node.inputs[1].producer()  # type: ignore[union-attr]
        assert add is not None
        assert add.op_type == "Add"
        node.replace_input_with(1, add.inputs[0])


def _gamma_rounded(graph: ir.Graph) -> None:
    for node in _nodes(graph, "LayerNormalization"):
        to = {"to": (ir.AttributeType.INT, int(ir.DataType.BFLOAT16))}
        low = _insert(graph, node, "Cast", [node.inputs[1]], **to)
        back = _insert(graph, node, "Cast", [low], to=(ir.AttributeType.INT, int(ir.DataType.FLOAT)))
        node.replace_input_with(1, back)


def _swiglu(graph: ir.Graph) -> None:
    for node in _nodes(graph, "Mul", ".mlp."):
        up = node.inputs[0].producer().inputs[0]  # type: ignore[union-attr]
        assert up is not None
        # an uninitialised gate: whatever lay in memory, here small numbers
        gate = _insert(graph, node, "Mul", [up, _constant(graph, node, np.float32(0.02))])
        silu = _insert(graph, node, "Mul", [gate, _insert(graph, node, "Sigmoid", [gate])])
        _replace(graph, node, _insert(graph, node, "Mul", [silu, up]))


def _relu_without_square(graph: ir.Graph) -> None:
    for node in _nodes(graph, "Mul", ".mlp."):
        _replace(graph, node, _unchanged(graph, node, node.inputs[0]))


def _k_cached_before_rotation(graph: ir.Graph) -> None:
    for node in _nodes(graph, "KVCacheUpdate", "k_cache_out"):
        rotary = node.inputs[1].producer()  # type: ignore[union-attr]
        assert rotary is not None
        assert rotary.op_type == "PartialRotaryEmbedding"
        node.replace_input_with(1, rotary.inputs[0])


def _no_last_norm(graph: ir.Graph) -> None:
    (node,) = _nodes(graph, "LayerNormalization", "model.norm")
    _replace(graph, node, _unchanged(graph, node, node.inputs[0]))


def _positions_start_over(graph: ir.Graph) -> None:
    (node,) = _nodes(graph, "Add", "position_ids")
    zero = _insert(graph, node, "Sub", [node.inputs[0], node.inputs[0]])
    node.replace_input_with(0, zero)


def _residual_from_the_norm(graph: ir.Graph) -> None:
    for index in range(3):
        (node,) = [n for n in graph if n.outputs[0].name == f"model.layers.{index}.Add"]
        (norm,) = _nodes(graph, "LayerNormalization", f"layers.{index}.input_layernorm")
        node.replace_input_with(0, norm.outputs[0])


def _tables(**changes: Any) -> Callable[[LoweringContext, Checkpoint], LoweringContext]:
    def change(context: LoweringContext, checkpoint: Checkpoint) -> LoweringContext:
        config = checkpoint.config
        rope = {**config.rope_parameters, **changes.get("rope", {})}
        cos, sin = rope_tables(config.replace(rope_parameters=rope), len(context.cos), torch.float32)
        return dataclasses.replace(context, cos=cos.numpy(), sin=sin.numpy())

    return change


def _frequencies_in_bf16(context: LoweringContext, checkpoint: Checkpoint) -> LoweringContext:
    width = checkpoint.config.rotary_dim
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.arange(len(context.cos))[:, None] * frequency.bfloat16().float()
    return dataclasses.replace(context, cos=angle.cos().numpy(), sin=angle.sin().numpy())


def _bind(name: str, other: str) -> Callable[[LoweringContext, Checkpoint], LoweringContext]:
    def change(context: LoweringContext, checkpoint: Checkpoint) -> LoweringContext:
        return dataclasses.replace(context, weights={**context.weights, name: context.weights[other]})

    return change


_NORM, _Q = "LayerNorm1P", "PartialRotaryEmbedding (q)"

# Planted in the graph, the tables or the weights: every target must catch them.
GRAPH_MISTAKES: dict[str, Mistake] = {
    "RMSNorm for LayerNorm1P": Mistake(_NORM, "layers.0.input_layernorm", graph=_rms_norm),
    "epsilon 1e-6 for 1e-5": Mistake(_NORM, "layers.0.input_layernorm", graph=_wrong_epsilon),
    "gamma without + 1": Mistake(_NORM, "layers.0.input_layernorm", graph=_gamma_without_one),
    "gamma rounded to bf16": Mistake(_NORM, "layers.0.input_layernorm", graph=_gamma_rounded),
    "SwiGLU with an uninitialised gate for relu²": Mistake("relu²", "layers.0.mlp", graph=_swiglu),
    "relu without the square": Mistake("relu²", "layers.0.mlp", graph=_relu_without_square),
    "residual taken after the norm": Mistake("Add (attention)", "layers.0", graph=_residual_from_the_norm),
    "last layer norm skipped": Mistake(_NORM, "model.norm", graph=_no_last_norm),
    "rotary width from hidden_size / heads": Mistake(
        _Q, "layers.0.self_attn", context=_tables(rope={"partial_rotary_factor": 0.375})
    ),
    "all lanes rotated": Mistake(_Q, "layers.0.self_attn", context=_tables(rope={"partial_rotary_factor": 1.0})),
    "rope_theta of another model": Mistake(_Q, "layers.0.self_attn", context=_tables(rope={"rope_theta": 11000.0})),
    "RoPE frequencies rounded to bf16": Mistake(_Q, "layers.0.self_attn", context=_frequencies_in_bf16),
    "lm_head found by matching out_features": Mistake(
        "Linear", "lm_head", context=_bind("lm_head.weight", "model.layers.2.mlp.up_proj.weight")
    ),
    "lm_head tied to an untied embedding": Mistake(
        "Linear", "lm_head", context=_bind("lm_head.weight", "model.embed_tokens.weight")
    ),
    "embedding taken from lm_head": Mistake(
        "Gather", "embed_tokens", context=_bind("model.embed_tokens.weight", "lm_head.weight")
    ),
    "k_proj and v_proj swapped": Mistake(
        "Linear", "layers.0.self_attn.k_proj",
        context=_bind("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"),
    ),
    "a layer's weights used twice": Mistake(
        "Linear", "layers.1.mlp.down_proj",
        context=_bind("model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
    ),
}  # fmt: skip

_ROTATED = (
    ("first = Slice(x, start, half, lane_axis)", "even = Constant<value_ints=[2]>()\n  first = Slice(x, start, rotary_dim, lane_axis, even)"),
    ("second = Slice(x, half, rotary_dim, lane_axis)", "odd = Constant<value_ints=[1]>()\n  second = Slice(x, odd, rotary_dim, lane_axis, even)"),
)  # fmt: skip

# Planted in an op's portable body: only targets that inline it have it.
BODY_MISTAKES: dict[str, Mistake] = {
    "rotation of the last lanes": Mistake(
        _Q, "layers.0.self_attn",
        body=("PartialRotaryEmbedding", (
            ("first = Slice(x, start, half, lane_axis)", "minus = Neg(rotary_dim)\n  minus_half = Neg(half)\n  first = Slice(x, minus, minus_half, lane_axis)"),
            ("second = Slice(x, half, rotary_dim, lane_axis)", "second = Slice(x, minus_half, end, lane_axis)"),
            ("tail = Slice(x, rotary_dim, end, lane_axis)", "tail = Slice(x, start, minus, lane_axis)"),
            ("Concat<axis=-1>(rotated_first, rotated_second, tail)", "Concat<axis=-1>(tail, rotated_first, rotated_second)"),
        )),
    ),
    "interleaved pairs": Mistake(_Q, "layers.0.self_attn", body=("PartialRotaryEmbedding", _ROTATED)),
    "rotation the other way round": Mistake(
        _Q, "layers.0.self_attn",
        body=("PartialRotaryEmbedding", (
            ("Sub(first_cos, second_sin)", "Add(first_cos, second_sin)"),
            ("Add(second_cos, first_sin)", "Sub(second_cos, first_sin)"),
        )),
    ),
    "positions that start over behind the cache": Mistake(_Q, "layers.0.self_attn", "decode", graph=_positions_start_over),
    "K cached before rotation": Mistake("KVCacheUpdate (k)", "layers.0.self_attn", graph=_k_cached_before_rotation),
    "cache written one slot late": Mistake(
        "KVCacheUpdate (k)", "layers.0.self_attn",
        body=("KVCacheUpdate", ((
            "position_B1S1 = Add(write_B111, token_S1)",
            "late = Add(write_B111, one)\n  capacity_1 = Shape<start=2, end=3>(cache)\n  last = Sub(capacity_1, one)\n"
            "  position_late = Add(late, token_S1)\n  position_B1S1 = Min(position_late, last)",
        ),)),
    ),
    "mask off by one": Mistake(
        "CachedAttention", "layers.0.self_attn",
        body=("CachedAttention", (("LessOrEqual(cached_T, position_B11S1)", "Less(cached_T, position_B11S1)"),)),
    ),
    "no causal mask": Mistake(
        "CachedAttention", "layers.0.self_attn",
        body=("CachedAttention", (("LessOrEqual(cached_T, position_B11S1)", "GreaterOrEqual(cached_T, zero)"),)),
    ),
    "softmax in bf16": Mistake(
        "CachedAttention", "layers.0.self_attn",
        body=("CachedAttention", (
            ("softmax_BGgST = Softmax<axis=-1>(masked_BGgST)",
             "low_in = Cast<to=16>(masked_BGgST)\n  rounded = Cast<to=1>(low_in)\n  exact = Softmax<axis=-1>(rounded)\n"
             "  low_out = Cast<to=16>(exact)\n  softmax_BGgST = Cast<to=1>(low_out)"),
        )),
    ),
    "scale by hidden_size / heads": Mistake(
        "CachedAttention", "layers.0.self_attn",
        body=("CachedAttention", (("root = Sqrt(head_dim_f)", "wrong = Constant<value_floats=[24.0]>()\n  root = Sqrt(wrong)"),)),
    ),
    "query heads grouped the other way round": Mistake(
        "CachedAttention", "layers.0.self_attn",
        body=("CachedAttention", (
            ("Concat<axis=0>(sequences_tokens, kv_heads, minus_one, head_dim)", "Concat<axis=0>(sequences_tokens, minus_one, kv_heads, head_dim)"),
            ("Transpose<perm=[0, 2, 3, 1, 4]>(q_BSGgD)", "Transpose<perm=[0, 3, 2, 1, 4]>(q_BSGgD)"),
            ("Transpose<perm=[0, 3, 1, 2, 4]>(out_BGgSD)", "Transpose<perm=[0, 3, 2, 1, 4]>(out_BGgSD)"),
        )),
    ),
}  # fmt: skip


def plant(
    mistake: Mistake | None, dialect: ir.Model, checkpoint: Checkpoint, bundle: Path, target: str, monkeypatch: Any
) -> None:
    """Lowers a dialect graph with a mistake in it (or none), and puts it into a bundle."""
    cos, sin = rope_tables(checkpoint.config, 2048, torch.float32)
    context = LoweringContext(weights=checkpoint.tensors, cos=cos.numpy(), sin=sin.numpy())
    if mistake is not None:
        if mistake.graph is not None:
            mistake.graph(dialect.graph)
        if mistake.context is not None:
            context = mistake.context(context, checkpoint)
        if mistake.body is not None:
            name, changes = mistake.body
            text = OPS[name].body
            assert isinstance(text, str), "it depends on no optional input"
            for old, new in changes:
                assert text.count(old) == 1, old
                text = text.replace(old, new)
            monkeypatch.setitem(OPS, name, dataclasses.replace(OPS[name], body=text))
    for value in dialect.graph.inputs:
        if value.name in ("cos", "sin"):
            value.shape = ir.Shape(["table", context.cos.shape[1]])
    lowered = lower(get_target(target), dialect, context)
    lowered.save(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["session"]["packed"] = lowered.session["packed"]
    manifest["files"]["model.onnx"] = dataclasses.asdict(file_record(bundle / "model.onnx"))
    (bundle / "manifest.json").write_text(json.dumps(manifest))
