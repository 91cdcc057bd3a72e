"""The passes of the genai targets: the graph before and after, equal outputs, and what each refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_graphs import passes

# G = 1 head of keys and values for H = 2 of queries, head_dim 8; the positions stand for a rotation outside the kernel
LENGTHS = """g (int64[batch,tokens] input_ids, int64[batch] query_start, int64[batch] query_length,
     float[batch,tokens,16] q, float[batch,tokens,8] k, float[batch,tokens,8] v,
     float[batch,1,slots,8] past_k, float[batch,1,slots,8] past_v)
  => (float[batch,tokens,16] y, int64[batch,tokens] position_ids, float[batch,1,slots,8] new_k,
      float[batch,1,slots,8] new_v) {
    one = Constant<value_int=1>()
    zero = Constant<value_int=0>()
    axis = Constant<value_ints=[1]>()
    total = Add(query_start, query_length)
    last = Sub(total, one)
    seqlens_k = Cast<to=6>(last)
    longest = ReduceMax<keepdims=0>(total)
    total_sequence_length = Cast<to=6>(longest)
    width = Shape<start=1, end=2>(input_ids)
    tokens = Squeeze(width)
    step = Range(zero, tokens, one)
    start = Unsqueeze(query_start, axis)
    position_ids = Add(start, step)
    y, new_k, new_v = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=1>
      (q, k, v, past_k, past_v, seqlens_k, total_sequence_length)
}"""
HEAD = """g (int64[batch,tokens] input_ids, int64[batch,positions] logits_index, float[batch,tokens,4] x, float[4,6] w)
  => (float[batch,positions,6] logits) {
    axis = Constant<value_ints=[2]>()
    width = Constant<value_ints=[1, 1, 4]>()
    hidden = Relu(x)
    column = Unsqueeze(logits_index, axis)
    index = Expand(column, width)
    chosen = GatherElements<axis=1>(hidden, index)
    logits = MatMul(chosen, w)
}"""
SLOTS = 8


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>\n{text}')


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})


def input_names(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.inputs]


@pytest.mark.parametrize(
    ("start", "length", "mask"),
    [
        ([0], [5], [[1] * 5]),
        ([0, 0, 0], [3, 5, 1], [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]),
        ([3, 5], [1, 1], [[1, 1, 1, 0, 0, 1], [1] * 6]),
        ([3], [4], [[1] * 7]),
    ],
    ids=["prompt", "padded prompts", "a step behind padded prompts", "a later chunk"],
)
def test_the_mask_says_what_start_and_length_said(start: list[int], length: list[int], mask: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    B, S = len(start), max(length)
    shapes = {"q": (B, S, 16), "k": (B, S, 8), "v": (B, S, 8), "past_k": (B, 1, SLOTS, 8), "past_v": (B, 1, SLOTS, 8)}
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    feed["input_ids"] = np.zeros((B, S), np.int64)
    model = parse(LENGTHS)
    before = run(model, {**feed, "query_start": np.array(start), "query_length": np.array(length)})

    assert passes.GenaiAttentionMaskPass()(model).modified
    assert input_names(model) == ["input_ids", "attention_mask", "q", "k", "v", "past_k", "past_v"]
    after = run(model, {**feed, "attention_mask": np.array(mask)})
    for b in range(B):
        # what padding gives is rubbish in both
        np.testing.assert_array_equal(after[0][b, : length[b]], before[0][b, : length[b]])
        np.testing.assert_array_equal(after[1][b, : length[b]], before[1][b, : length[b]])
        for cache in (2, 3):
            end = start[b] + length[b]
            np.testing.assert_array_equal(after[cache][b, :, :end], before[cache][b, :, :end])


def test_a_mask_as_wide_as_the_cache_counts_the_same() -> None:
    """GenAI feeds one where a CUDA graph is captured."""
    model = parse(LENGTHS)
    passes.GenaiAttentionMaskPass()(model)
    rng = np.random.default_rng(1)
    shapes = {"q": (1, 1, 16), "k": (1, 1, 8), "v": (1, 1, 8), "past_k": (1, 1, SLOTS, 8), "past_v": (1, 1, SLOTS, 8)}
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    feed["input_ids"] = np.zeros((1, 1), np.int64)
    narrow = run(model, {**feed, "attention_mask": np.ones((1, 4), np.int64)})
    wide = run(model, {**feed, "attention_mask": np.array([[1] * 4 + [0] * (SLOTS - 4)])})
    for one, other in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_width_is_a_shape_and_needs_no_data() -> None:
    model = parse(LENGTHS)
    passes.GenaiAttentionMaskPass()(model)
    (attention,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    chain, value = [], attention.inputs[6]
    while value is not None and value.producer() is not None:
        chain.append(value.producer().op_type)  # type: ignore[union-attr]
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    assert chain == ["Cast", "Squeeze", "Shape"]
    assert value is not None
    assert value.name == "attention_mask"


def test_lengths_without_attention_are_refused() -> None:
    model = parse("g (int64[b,s] input_ids, int64[b] query_start, int64[b] query_length) => (int64[b] y) {\n"
                  "y = Add(query_start, query_length)\n}")  # fmt: skip
    with pytest.raises(ir.passes.PreconditionError, match=r"found no GroupQueryAttention; expected .*; run Form"):
        passes.GenaiAttentionMaskPass()(model)


def test_another_reader_of_the_lengths_is_refused() -> None:
    text = LENGTHS.replace("int64[batch,tokens] position_ids,", "int64[batch,tokens] position_ids, int64[batch] z,")
    model = parse(text.replace("one = Const", "z = Neg(query_length)\n    one = Const"))
    with pytest.raises(ir.passes.PreconditionError, match="query_length: found Neg as its readers"):
        passes.GenaiAttentionMaskPass()(model)


def test_every_token_gets_logits() -> None:
    model = parse(HEAD)
    for node in model.graph:
        for value, dims in zip(node.outputs, [["batch", "positions", 4]], strict=False):
            if node.op_type in ("Expand", "GatherElements"):
                value.shape = ir.Shape(dims)
    rng = np.random.default_rng(0)
    feed = {
        "input_ids": np.zeros((2, 5), np.int64),
        "x": rng.normal(size=(2, 5, 4)).astype(np.float32),
        "w": rng.normal(size=(4, 6)).astype(np.float32),
    }
    every = np.tile(np.arange(5), (2, 1))
    (before,) = run(model, {**feed, "logits_index": every})
    assert passes.FullLogitsPass()(model).modified
    assert [node.op_type for node in model.graph] == ["Relu", "MatMul"]
    assert input_names(model) == ["input_ids", "x", "w"]
    (logits,) = model.graph.outputs
    assert str(logits.shape) == "[batch,tokens,6]"
    np.testing.assert_array_equal(run(model, feed)[0], before)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("hidden = Relu(x)", "hidden = Relu(x)\n other = Neg(logits_index)", "Unsqueeze, Neg|Neg, Unsqueeze"),
        ("Expand(column, width)", "Tile(column, width)", "found Tile; expected one Expand"),
    ],
)
def test_another_use_of_the_positions_is_refused(old: str, new: str, found: str) -> None:
    model = parse(HEAD.replace(old, new))
    with pytest.raises(ir.passes.PreconditionError, match=found):
        passes.FullLogitsPass()(model)


def test_caches_are_called_and_ordered_as_genai_has_them() -> None:
    cache = "float[batch,1,cache_len,4]"
    model = parse(f"""g (float[2] x, {cache} a, {cache} b, {cache} c, {cache} d)
      => (float[2] logits, {cache} e, {cache} f, {cache} h, {cache} i) {{
        logits = Mul(x, x)
        e = Neg(a)
        f = Abs(b)
        h = Neg(c)
        i = Abs(d)
    }}""")
    for values, suffix in ((model.graph.inputs[1:], ""), (model.graph.outputs[1:], "_out")):
        for value, name in zip(values, ("k_cache{}.2", "k_cache{}.10", "v_cache{}.2", "v_cache{}.10"), strict=True):
            value.name = name.format(suffix)
    assert passes.GenaiNamesPass()(model).modified
    assert input_names(model) == [
        "x", "past_key_values.2.key", "past_key_values.2.value", "past_key_values.10.key", "past_key_values.10.value"
    ]  # fmt: skip
    outputs = model.graph.outputs
    assert [value.name for value in outputs] == [
        "logits", "present.2.key", "present.2.value", "present.10.key", "present.10.value"
    ]  # fmt: skip
    producers = [value.producer().op_type for value in outputs[1:]]  # type: ignore[union-attr]
    assert producers == ["Neg", "Neg", "Abs", "Abs"]
    assert str(model.graph.inputs[1].shape) == "[batch,1,past_tokens,4]"
    assert str(outputs[1].shape) == "[batch,1,present_tokens,4]"
