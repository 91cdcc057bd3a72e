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
    ("old", "new"),
    [
        ("KVCacheUpdate(v_cache, v, query_start)", "KVCacheUpdate(v_cache, v, query_length)"),
        ("PartialRotaryEmbedding(k, cos, sin, position_ids)", "PartialRotaryEmbedding(k, sin, cos, position_ids)"),
        ("KVCacheUpdate(k_cache, k_rotated, query_start)", "KVCacheUpdate(k_cache, k, query_start)"),
    ],
    ids=["another write_index", "another table", "k without rotation"],
)
def test_what_does_not_belong_together_stays_apart(old: str, new: str) -> None:
    assert LAYER.count(old) == 1
    model = parse(LAYER.replace("HALF", "8").replace(old, new))
    assert not passes.FormRotaryKVCacheUpdatePass()(model).modified
    assert "RotaryKVCacheUpdate" not in ops(model)


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
