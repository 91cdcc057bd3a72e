"""Passes that form or fold nodes: the graph before and after, and equal outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_graphs import passes

LAYER = """g (float[batch,tokens,4,16] q, float[batch,tokens,2,16] k, float[batch,tokens,2,16] v, float[table,HALF] cos,
  float[table,HALF] sin, int64[batch,tokens] position_ids, int64[batch] query_start, int64[batch] query_length,
  float[batch,2,slots,16] k_cache, float[batch,2,slots,16] v_cache)
  => (float[batch,tokens,64] y, float[batch,2,slots,16] k_cache_out, float[batch,2,slots,16] v_cache_out) {
    q_rotated = nemotron.PartialRotaryEmbedding(q, cos, sin, position_ids)
    k_rotated = nemotron.PartialRotaryEmbedding(k, cos, sin, position_ids)
    k_cache_out = nemotron.KVCacheUpdate(k_cache, k_rotated, query_start)
    v_cache_out = nemotron.KVCacheUpdate(v_cache, v, query_start)
    attended = nemotron.CachedAttention(q_rotated, k_cache_out, v_cache_out, query_start)
    flat = Constant<value_ints=[0, 0, 64]>()
    y = Reshape(attended, flat)
}"""
SHAPES = {"q_rotated": 4, "k_rotated": 2, "attended": 4}


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21, "nemotron": 1, "com.microsoft": 1]>\n{text}')
    for node in model.graph:
        value = node.outputs[0]
        if value.name in SHAPES:
            value.shape = ir.Shape(["batch", "tokens", SHAPES[value.name], 16])
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return model


def layer(half: int = 8) -> ir.Model:
    return parse(LAYER.replace("HALF", str(half)))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def feed(half: int, rows: int = 1, tokens: int = 3, start: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    angles = np.arange(12)[:, None] * 10.0 ** (-np.arange(half) / half)
    at = np.full(rows, start)
    return {
        "q": normal(rows, tokens, 4, 16), "k": normal(rows, tokens, 2, 16), "v": normal(rows, tokens, 2, 16),
        "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32),
        "position_ids": at[:, None] + np.arange(tokens), "query_start": at, "query_length": np.full(rows, tokens),
        "k_cache": normal(rows, 2, 10, 16), "v_cache": normal(rows, 2, 10, 16),
    }  # fmt: skip


def run(model: ir.Model, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    passes.InlineDialectOpsPass()(model)
    passes.cleanup()(model)
    passes.DropUnusedInputsPass()(model)
    wanted = {value.name for value in model.graph.inputs}
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value for name, value in values.items() if name in wanted})


def test_rotation_and_cache_updates_become_one_node() -> None:
    before, after = layer(), layer()
    assert passes.FormRotaryKVCacheUpdatePass()(after).modified
    assert ops(after) == ["RotaryKVCacheUpdate", "CachedAttention", "Constant", "Reshape"]
    node = after.graph[0]
    assert [value.name for value in node.outputs] == ["q_rotated", "k_cache_out", "v_cache_out"]
    assert [value.name for value in node.inputs] == [
        "q", "k", "v", "cos", "sin", "position_ids", "k_cache", "v_cache", "query_start",
    ]  # fmt: skip
    for found, expected in zip(run(after, feed(8, rows=2)), run(before, feed(8, rows=2)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not passes.FormRotaryKVCacheUpdatePass()(after).modified


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "KVCacheUpdate(v_cache, v, query_start)",
            "KVCacheUpdate(v_cache, v, query_length)",
            "keys and values are written to other positions",
        ),
        (
            "PartialRotaryEmbedding(k, cos, sin, position_ids)",
            "PartialRotaryEmbedding(k, sin, cos, position_ids)",
            "queries and keys are rotated by other tables or positions",
        ),
        (
            "KVCacheUpdate(k_cache, k_rotated, query_start)",
            "KVCacheUpdate(k_cache, k, query_start)",
            "'k' comes from no node, not PartialRotaryEmbedding",
        ),
    ],
    ids=["another write_index", "another table", "k without rotation"],
)
def test_what_does_not_belong_together_stays_apart(old: str, new: str, reason: str) -> None:
    assert LAYER.count(old) == 1
    model = parse(LAYER.replace("HALF", "8").replace(old, new))
    fusion = passes.FormRotaryKVCacheUpdatePass()
    assert not fusion(model).modified
    assert "RotaryKVCacheUpdate" not in ops(model)
    assert (fusion.found, fusion.missed) == (0, [f"CachedAttention 'attended': {reason}"])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "KVCacheUpdate(v_cache, v, query_start)",
            "Identity(v_cache)",
            "'v_cache_out' comes from Identity, not KVCacheUpdate",
        ),
        ("Reshape(attended, flat)", "Neg(attended)", "its result is read without a Reshape to 3 axes"),
    ],
    ids=["no update", "no Reshape"],
)
def test_attention_that_the_kernel_does_not_take_stays(old: str, new: str, reason: str) -> None:
    model = parse(LAYER.replace("HALF", "8").replace(old, new))
    before = ops(model)
    fusion = passes.FormGroupQueryAttentionPass()
    assert not fusion(model).modified
    assert ops(model) == before
    assert fusion.missed == [f"CachedAttention 'attended': {reason}"]


@pytest.mark.parametrize("half", [8, 4])
def test_group_query_attention_on_a_shared_cache(half: int) -> None:
    before, after = layer(half), layer(half)
    assert passes.FormGroupQueryAttentionPass()(after).modified
    # the kernel rotates widths that are multiples of 8; others are rotated in front of it
    rotations = ["PartialRotaryEmbedding"] * 2 if half % 8 else []
    assert [op for op in ops(after) if op in ("PartialRotaryEmbedding", "GroupQueryAttention")] == [
        *rotations,
        "GroupQueryAttention",
    ]
    assert not {"KVCacheUpdate", "CachedAttention"} & set(ops(after))
    values = feed(half)
    (y, *caches), (expected, *expected_caches) = run(after, values), run(before, values)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)
    for found, right in zip(caches, expected_caches, strict=True):
        # with buffers of its own the kernel clears what lies behind the row
        np.testing.assert_allclose(found[:, :, :5], right[:, :, :5], rtol=2e-6, atol=2e-6)


def test_constants_are_folded_and_weights_are_not() -> None:
    model = parse("""g (float[3,4] w) => (float[2,6] y) {
        one = Constant<value_ints=[2]>()
        two = Constant<value_ints=[6]>()
        half = Constant<value_ints=[3]>()
        six = Add(half, half)
        shape = Concat<axis=0>(one, six)
        y = Reshape(w, shape)
    }""")
    passes.cleanup()(model)
    assert ops(model) == ["Reshape"]
    shape = model.graph[0].inputs[1]
    assert shape is not None
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == [2, 6]
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(run(model, {"w": w})[0], w.reshape(2, 6))


def test_large_results_are_not_folded() -> None:
    model = parse("""g (float[1] x) => (int64[n] y) {
        zero = Constant<value_int=0>()
        many = Constant<value_int=5000>()
        one = Constant<value_int=1>()
        y_ = Range(zero, many, one)
        y = Add(y_, one)
    }""")
    passes.cleanup()(model)
    assert "Range" in ops(model)


def test_shape_inference_leaves_no_value_without_a_rank() -> None:
    model = parse("g (float[batch,4] x) => (float[batch,4] y) { a = Relu(x) \n b = Neg(a) \n y = Abs(b) }")
    passes.InferShapesPass()(model)
    assert all(str(node.outputs[0].shape) == "[batch,4]" for node in model.graph)
    unknown = parse("g (float[2,4] x) => (float[2,4] y) { a = com.microsoft.FusedMatMul(x, x) \n y = Abs(a) }")
    unknown.graph[0].domain = "elsewhere"
    unknown.opset_imports["elsewhere"] = 1
    with pytest.raises(ir.passes.PostconditionError, match="'a' of FusedMatMul"):
        passes.InferShapesPass()(unknown)


PROJECTIONS = """g (float[batch,tokens,6] x, float[64,6] layer.q_proj.weight, float[32,6] layer.k_proj.weight,
  float[32,6] layer.v_proj.weight BIASES, float[table,8] cos, float[table,8] sin, int64[batch] query_start,
  int64[batch] query_length, float[batch,2,slots,16] k_cache, float[batch,2,slots,16] v_cache)
  => (float[batch,tokens,64] y, float[batch,2,slots,16] k_cache_out, float[batch,2,slots,16] v_cache_out) {
    q_proj.Linear = nemotron.Linear(x, layer.q_proj.weight Q)
    k = nemotron.Linear(x, layer.k_proj.weight K)
    v = nemotron.Linear(x, layer.v_proj.weight V)
    one = Constant<value_int=1>()
    total = Add(query_start, query_length)
    last = Sub(total, one)
    seqlens = Cast<to=6>(last)
    longest = ReduceMax<keepdims=0>(total)
    longest_32 = Cast<to=6>(longest)
    y, k_cache_out, v_cache_out = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>
      (q_proj.Linear, k, v, k_cache, v_cache, seqlens, longest_32, cos, sin)
}"""


def projections(biases: tuple[str, ...]) -> ir.Model:
    sizes = {"q": 64, "k": 32, "v": 32}
    text = PROJECTIONS.replace("BIASES", "".join(f", float[{sizes[b]}] layer.{b}_proj.bias" for b in biases))
    for part in "qkv":
        text = text.replace(f" {part.upper()})", f", layer.{part}_proj.bias)" if part in biases else ")")
    # ONNX's text takes no dots in names
    text = text.replace("_proj.", "_proj_").replace("layer.", "layer_")
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21, "nemotron": 1, "com.microsoft": 1]>\n{text}')
    for value in model.graph.inputs:
        assert value.name
        value.name = value.name.replace("layer_", "layer.").replace("_proj_", "_proj.")
    for node in model.graph:
        for value in node.outputs:
            if node.op_type == "Linear":
                value.shape = ir.Shape(["batch", "tokens", node.inputs[1].shape[0]])  # type: ignore[union-attr,index]
                value.type = ir.TensorType(ir.DataType.FLOAT)
    return model


@pytest.mark.parametrize("biases", [(), ("q", "k", "v")], ids=["no bias", "biases"])
def test_three_projections_become_one_over_a_packed_weight(biases: tuple[str, ...]) -> None:
    before, after = projections(biases), projections(biases)
    assert passes.PackQKVPass()(after).modified
    assert ops(after).count("Linear") == 1
    linear = next(node for node in after.graph if node.op_type == "Linear")
    names = [value.name for value in linear.inputs[1:] if value is not None]
    assert names == ["layer.qkv_proj.weight", "layer.qkv_proj.bias"][: 1 + bool(biases)]
    assert str(linear.inputs[1].shape) == "[128,6]"  # type: ignore[union-attr]
    assert linear.inputs[1].meta["packed_from"] == [f"layer.{part}_proj.weight" for part in "qkv"]  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    values = feed(8) | {"x": rng.normal(size=(1, 3, 6)).astype(np.float32)}
    for value in before.graph.inputs:
        if value.name and value.name.startswith("layer."):
            assert value.shape is not None
            values[value.name] = rng.normal(size=value.shape.numpy()).astype(np.float32)
    for kind in ("weight", "bias"):
        parts = [values[name] for part in "qkv" if (name := f"layer.{part}_proj.{kind}") in values]
        if parts:
            values[f"layer.qkv_proj.{kind}"] = np.concatenate(parts)
    for found, expected in zip(run(after, values), run(before, values), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("biases", [(), ("q", "k", "v")], ids=["no bias", "biases"])
def test_the_packed_weight_may_be_a_node_over_the_three(biases: tuple[str, ...]) -> None:
    before, after = projections(biases), projections(biases)
    assert passes.PackQKVPass(concat=True)(after).modified
    assert [value.name for value in after.graph.inputs] == [value.name for value in before.graph.inputs]
    assert (ops(after).count("Linear"), ops(after).count("Concat")) == (1, 1 + bool(biases))
    (linear,) = (node for node in after.graph if node.op_type == "Linear")
    for value, kind in zip(linear.inputs[1:], ("weight", "bias"), strict=False):
        assert value is not None
        assert value.meta.get("packed_from") is None
        assert [each.name for each in value.producer().inputs] == [f"layer.{part}_proj.{kind}" for part in "qkv"]  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    values = feed(8) | {"x": rng.normal(size=(1, 3, 6)).astype(np.float32)}
    for weight in before.graph.inputs:
        if weight.name and weight.name.startswith("layer."):
            assert weight.shape is not None
            values[weight.name] = rng.normal(size=weight.shape.numpy()).astype(np.float32)
    for found, expected in zip(run(after, values), run(before, values), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not passes.PackQKVPass(concat=True)(projections(("q",))).modified


def test_projections_that_differ_are_not_packed() -> None:
    fusion = passes.PackQKVPass()
    assert not fusion(projections(("q",))).modified
    assert fusion.missed == ["GroupQueryAttention 'y': just some of the projections have a bias"]
    model = projections(())
    k = [node for node in model.graph if node.op_type == "Linear"][1]
    k.replace_input_with(0, ir.Value(name="other"))
    assert not passes.PackQKVPass()(model).modified
