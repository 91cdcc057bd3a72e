"""The passes to TensorRT's native layers: the graph before and after, and equal outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_graphs import passes

HEADER = '<ir_version: 12, opset_import: ["": 24, "nemotron": 1]>'
RNG = np.random.default_rng(3)
# B rows of S tokens in T slots, H query heads and G key/value heads of D lanes, of which twice h are rotated
B, S, T, H, G, D, h = 2, 3, 9, 4, 2, 8, 2


def parse(text: str) -> ir.Model:
    """A graph in which outputs have the shape that is named like them."""
    return ir.from_onnx_text(f"{HEADER}\n{text}")


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    passes.InlineDialectOpsPass()(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def assert_same(after: ir.Model, before: ir.Model, feed: dict[str, np.ndarray]) -> None:
    for found, expected in zip(run(after, feed), run(before, feed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


ROTARY = f"""g (float[{B},{S},{H},{D}] x, float[20,{h}] cos, float[20,{h}] sin, int64[{B},{S}] position_ids)
  => (float[{B},{S},{H},{D}] y) {{ y = nemotron.PartialRotaryEmbedding(x, cos, sin, position_ids) }}"""
UPDATE = f"""g (float[{B},{G},{T},{D}] cache, float[{B},{S},{G},{D}] new, int64[{B}] write_index)
  => (float[{B},{G},{T},{D}] updated) {{ updated = nemotron.KVCacheUpdate(cache, new, write_index) }}"""
ATTENTION = f"""g (float[{B},{S},{H},{D}] q, float[{B},{G},{T},{D}] k, float[{B},{G},{T},{D}] v, int64[{B}] start)
  => (float[{B},{S},{H},{D}] out) {{
    first = nemotron.CachedAttention(q, k, v, start)
    out = nemotron.CachedAttention(first, k, v, start)
  }}"""


def test_a_rotation_becomes_the_layer_for_it() -> None:
    before, after = parse(ROTARY), parse(ROTARY)
    assert passes.LowerPartialRotaryEmbeddingPass()(after).modified
    assert ops(after) == ["Gather", "Gather", "Transpose", "RotaryEmbedding", "Transpose"]
    assert after.graph[3].attributes.get_int("rotary_embedding_dim", 0) == 2 * h
    assert [value.name for value in after.graph.outputs] == ["y"]
    # a row's positions need not follow each other
    feed = {"x": normal(B, S, H, D), "cos": normal(20, h), "sin": normal(20, h),
            "position_ids": np.array([[0, 7, 19], [4, 4, 1]])}  # fmt: skip
    assert_same(after, before, feed)
    assert not passes.LowerPartialRotaryEmbeddingPass()(after).modified


def test_a_cache_update_becomes_a_scatter() -> None:
    before, after = parse(UPDATE), parse(UPDATE)
    assert passes.LowerKVCacheUpdatePass()(after).modified
    assert ops(after) == ["Transpose", "TensorScatter"]
    assert_same(
        after, before, {"cache": normal(B, G, T, D), "new": normal(B, S, G, D), "write_index": np.array([6, 0])}
    )
    passes.CheckCacheReadersPass()(after)


def test_an_attention_becomes_the_layer_for_it_and_layers_share_a_mask() -> None:
    before, after = parse(ATTENTION), parse(ATTENTION)
    assert passes.LowerCachedAttentionPass()(after).modified
    assert ops(after).count("Attention") == 2
    assert ops(after).count("LessOrEqual") == 1
    # the second takes what the first gives, heads in front
    assert ops(after).count("Transpose") == 3
    feed = {"q": normal(B, S, H, D), "k": normal(B, G, T, D), "v": normal(B, G, T, D), "start": np.array([0, 6])}
    assert_same(after, before, feed)
    assert not passes.LowerCachedAttentionPass()(after).modified


def test_the_opset_is_raised_and_never_lowered() -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Abs(x) }')
    assert passes.SetOpsetPass(24)(model).modified
    assert (model.opset_imports[""], model.ir_version) == (24, 12)
    assert not passes.SetOpsetPass(24)(model).modified
    for version in (21, 25):
        with pytest.raises(ir.passes.PreconditionError, match=f"found opset {version}"):
            passes.SetOpsetPass(version)(model)
