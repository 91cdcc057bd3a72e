"""The passes that form cache updates and attention of the tensorrt target: before and after, and equal outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from nemotron_graphs import passes
from support.graph_texts import assert_same, node_of, ops, parse, random_feed

LAYER = """g (float[b,s,6] x, float[64,6] layer_q_proj_weight, float[32,6] layer_k_proj_weight, float[32,6]
  layer_v_proj_weight, float[64] layer_q_proj_bias, float[32] layer_k_proj_bias, float[32] layer_v_proj_bias,
  float[12,8] cos, float[12,8] sin, int64[b,s] position_ids, int64[b] query_start, float[b,2,12,16] k_cache,
  float[b,2,12,16] v_cache)
  => (float[b,s,4,16] q_rotated, float[b,2,12,16] k_cache_out, float[b,2,12,16] v_cache_out) {
    q_proj_Linear = nemotron.Linear(x, layer_q_proj_weight Q)
    k_flat = nemotron.Linear(x, layer_k_proj_weight K)
    v_flat = nemotron.Linear(x, layer_v_proj_weight V)
    q_heads = Constant<value_ints=[0, 0, 4, 16]>()
    kv_heads = Constant<value_ints=[0, 0, 2, 16]>()
    q = Reshape(q_proj_Linear, q_heads)
    k = Reshape(k_flat, kv_heads)
    v = Reshape(v_flat, kv_heads)
    q_rotated, k_cache_out, v_cache_out = nemotron.RotaryKVCacheUpdate
      (q, k, v, cos, sin, position_ids, k_cache, v_cache, query_start)
}"""


def layer(biases: str = "", text: str = LAYER) -> ir.Model:
    for part in "qkv":
        text = text.replace(f" {part.upper()})", f", layer_{part}_proj_bias)" if part in biases else ")")
    heads: dict[str, list[int | str]] = {"q": ["b", "s", 4, 16], "k": ["b", "s", 2, 16], "v": ["b", "s", 2, 16]}
    flat: dict[str, list[int | str]] = {
        "q_proj_Linear": ["b", "s", 64],
        "k_flat": ["b", "s", 32],
        "v_flat": ["b", "s", 32],
    }
    return parse(text, **heads, **flat)


@pytest.mark.parametrize("biases", ["", "qkv"], ids=["no bias", "biases"])
def test_projections_are_packed_into_the_cache_update(biases: str) -> None:
    before, after = layer(biases), layer(biases)
    assert passes.FormPackedRotaryKVCacheUpdatePass()(after).modified
    assert ops(after) == ["Linear", "Constant", "Constant", "PackedRotaryKVCacheUpdate"]
    linear, update = node_of(after, "Linear"), node_of(after, "PackedRotaryKVCacheUpdate")
    assert update.inputs[0] is linear.outputs[0]
    assert str(linear.outputs[0].shape) == "[b,s,128]"
    assert [value.name for value in update.outputs] == ["q_rotated", "k_cache_out", "v_cache_out"]
    assert {name: a.value for name, a in update.attributes.items()} == {"num_heads": 4, "num_kv_heads": 2}
    packed = [value for value in linear.inputs[1:] if value is not None]
    assert [value.meta["packed_from"] for value in packed] == [
        [f"layer.{part}_proj.{kind}" for part in "qkv"] for kind in ("weight", "bias")[: len(packed)]
    ]
    assert len(packed) == 1 + bool(biases)
    start = np.array([2, 5])
    feed = random_feed(before, query_start=start, position_ids=start[:, None] + np.arange(3))
    for kind in ("weight", "bias"):
        feed[f"layer.qkv_proj.{kind}"] = np.concatenate([feed[f"layer.{part}_proj.{kind}"] for part in "qkv"])
    assert_same(after, before, feed)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (layer("q"), "just some of the projections have a bias"),
        (
            layer(text=LAYER.replace("Linear(x, layer_v", "Linear(cos, layer_v")),
            "the projections do not read one value",
        ),
        (
            layer(text=LAYER.replace("k = Reshape(k_flat, kv_heads)", "k_ = Reshape(k_flat, kv_heads)\n k = Neg(k_)")),
            "'k' comes from Neg, not Reshape",
        ),
    ],
    ids=["one bias", "another x", "something between"],
)
def test_projections_that_differ_stay_apart(model: ir.Model, reason: str) -> None:
    before = ops(model), [value.name for value in model.graph.inputs]
    fusion = passes.FormPackedRotaryKVCacheUpdatePass()
    assert not fusion(model).modified
    assert (ops(model), [value.name for value in model.graph.inputs]) == before
    assert fusion.missed == [f"RotaryKVCacheUpdate 'q_rotated': {reason}"]


ATTENDED = """g (float[b,s,128] qkv, float[12,8] cos, float[12,8] sin, int64[b,s] position_ids, int64[b] query_start,
  int64[b] other, float[b,2,12,16] k_cache, float[b,2,12,16] v_cache)
  => (float[b,s,4,16] out, float[b,2,12,16] k_cache_out, float[b,2,12,16] v_cache_out) {
    q_rotated, k_cache_out, v_cache_out = nemotron.PackedRotaryKVCacheUpdate<num_heads = 4, num_kv_heads = 2>
      (qkv, cos, sin, position_ids, k_cache, v_cache, query_start)
    out = nemotron.CachedAttention(q_rotated, k_cache_out, v_cache_out, query_start)
}"""


def attended(text: str = ATTENDED) -> ir.Model:
    cache: list[int | str] = ["b", 2, 12, 16]
    return parse(text, out=["b", "s", 4, 16], k_cache_out=cache, v_cache_out=cache)


def test_attention_takes_the_packed_cache_update_in() -> None:
    # a reader of the updated cache between the two
    text = ATTENDED.replace("v_cache_out) {", "v_cache_out, float[b,2,12,16] n) {").replace(
        "    out = nemotron", "    n = Neg(v_cache_out)\n    out = nemotron"
    )
    before, after = attended(text), attended(text)
    old = [node_of(before, "CachedAttention").outputs[0], *node_of(before, "PackedRotaryKVCacheUpdate").outputs[1:]]
    assert passes.FormPackedRotaryCachedAttentionPass()(after).modified
    assert ops(after) == ["PackedRotaryCachedAttention", "Neg"]
    node = node_of(after, "PackedRotaryCachedAttention")
    assert [value.name for value in node.inputs] == [
        "qkv", "cos", "sin", "position_ids", "k_cache", "v_cache", "query_start",
    ]  # fmt: skip
    assert {name: a.value for name, a in node.attributes.items()} == {"num_heads": 4, "num_kv_heads": 2}
    assert [(value.name, value.shape, value.type) for value in node.outputs] == [
        (value.name, value.shape, value.type) for value in old
    ]
    assert list(after.graph.outputs[:3]) == list(node.outputs)
    start = np.array([2, 5])
    feed = {"query_start": start, "position_ids": start[:, None] + np.arange(3)}
    assert_same(after, before, random_feed(before, other=start + 1, **feed))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("v_cache, query_start", "v_cache, other", "query_start is not the update's write_index"),
        ("\n}", "\n    n = Neg(q_rotated)\n}", "is read by CachedAttention, Neg, not by one node alone"),
        ("v_cache_out) {", "v_cache_out, float[b,s,4,16] q_rotated) {", "the graph's output, not by one node alone"),
        ("(q_rotated, k_cache_out, v_cache_out,", "(q_rotated, v_cache_out, k_cache_out,", "not those of the update"),
        ("(q_rotated, k_cache_out, v_cache_out,", "(q_rotated, k_cache, v_cache,", "not those of the update"),
    ],
    ids=["another write_index", "q read twice", "q an output", "caches the other way round", "caches as they were"],
)
def test_attention_over_something_else_stays(old: str, new: str, reason: str) -> None:
    model = attended(ATTENDED.replace(old, new))
    before = ops(model)
    fusion = passes.FormPackedRotaryCachedAttentionPass()
    assert not fusion(model).modified
    assert ops(model) == before
    assert {"PackedRotaryKVCacheUpdate", "CachedAttention"} <= set(before)
    assert [reason in line for line in fusion.missed] == [True]
