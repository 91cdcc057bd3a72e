"""Passes of ``ort-cuda``: the graph before and after, and equal outputs by ONNX Runtime's CPU kernels."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_graphs import passes

NORM = """g (float[batch,tokens,96] x, float[batch,tokens,96] y, float[96] weight, float[96] beta)
  => (float[batch,tokens,96] normed, float[batch,tokens,96] again) {
    total = Add(x, y)
    one = Constant<value_float=1.0>()
    gamma = Add(weight, one)
    normed = LayerNormalization<axis=-1, epsilon=1e-5>(total, gamma, beta)
    again = Add(total, normed)
}"""


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>\n{text}')


def shaped(text: str = NORM) -> ir.Model:
    model = parse(text)
    for node in model.graph:
        if node.op_type in ("Add", "LayerNormalization") and node.outputs[0].name != "gamma":
            value = node.outputs[0]
            value.shape, value.type = ir.Shape(["batch", "tokens", 96]), ir.TensorType(ir.DataType.FLOAT)
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    # what is compared are the nodes as they stand
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, values)


def feed(scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 5, 96), "y": (2, 5, 96), "weight": (96,), "beta": (96,)}
    return {name: (rng.normal(size=shape) * scale + 3).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_sum_and_norm_become_one_node_within_fp32_tolerance(scale: float) -> None:
    before, after = shaped(), shaped()
    assert passes.FormSkipLayerNormalizationPass()(after).modified
    assert ops(after) == ["Constant", "Add", "SkipLayerNormalization", "Add"]
    node = after.graph[2]
    assert [value.name for value in node.outputs] == ["normed", "", "", "total"]
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5)
    for found, expected in zip(run(after, feed(scale)), run(before, feed(scale)), strict=True):
        assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)
    assert not passes.FormSkipLayerNormalizationPass()(after).modified


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(total, gamma, beta)", "(total, gamma)"),
        ("LayerNormalization<axis=-1,", "LayerNormalization<axis=1,"),
        ("    one = Const", "    early = Add(total, y)\n    one = Const"),
        ("total = Add(x, y)", "total = Sub(x, y)"),
        ("total = Add(x, y)", "total = Add(x, weight)"),
    ],
    ids=["no-beta", "axis", "read-before", "no-sum", "broadcast"],
)
def test_what_does_not_fit_stays(old: str, new: str) -> None:
    text = NORM.replace(old, new)
    assert text != NORM
    model = shaped(text)
    names = ops(model)
    assert not passes.FormSkipLayerNormalizationPass()(model).modified
    assert ops(model) == names


def test_tokens_are_the_lowest_likeliest() -> None:
    model = parse("g (float[b,k,8] x) => (float[b,k,8] logits) { logits = Identity(x) }")
    assert passes.GreedyTokensPass()(model).modified
    assert [value.name for value in model.graph.outputs] == ["logits", "tokens"]
    x = np.random.default_rng(0).integers(0, 3, (3, 4, 8)).astype(np.float32)
    logits, tokens = run(model, {"x": x})
    np.testing.assert_array_equal(logits, x)
    np.testing.assert_array_equal(tokens, x.argmax(-1))
    assert not passes.GreedyTokensPass()(model).modified


def test_hidden_states_have_no_tokens() -> None:
    model = parse("g (float[b,k,8] x) => (float[b,k,8] last_hidden_state) { last_hidden_state = Identity(x) }")
    assert not passes.GreedyTokensPass()(model).modified
    assert ops(model) == ["Identity"]


GAMMA = """g (float[96] x, DTYPE one, DTYPE[N] weight) => (float[N] y) {
    gamma = Add(one, weight)
    y = Cast<to=1>(gamma)
}"""
LOW = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float": np.float32}


def bind(model: ir.Model, name: str, array: np.ndarray) -> None:
    """Makes an input an initializer."""
    (value,) = [value for value in model.graph.inputs if value.name == name]
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(array, name=name)
    model.graph.register_initializer(value)


def optimized(model: ir.Model, folder: Path, level: onnxruntime.GraphOptimizationLevel) -> tuple[list[str], np.ndarray]:
    """Ops that ONNX Runtime leaves, and the output for x = 0."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = level
    proto = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.zeros(96, np.float32)})
    return ops(ir.load(folder / "optimized.onnx")), found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_onnxruntime_folds_gamma_and_to_the_same_bits(tmp_path: Path, dtype: str) -> None:
    low = LOW[dtype]
    every = np.arange(1 << 16, dtype=np.uint16).view(low)
    weight = every[np.abs(every.astype(np.float32)) < 100]
    model = parse(GAMMA.replace("DTYPE", dtype).replace("N]", f"{weight.size}]"))
    bind(model, "one", np.ones((), low))
    assert passes.FoldableGammaPass()(model).modified
    assert ops(model) == ["Constant", "Cast", "Add", "Cast", "Cast"]
    assert list(model.graph.initializers) == []
    assert not passes.FoldableGammaPass()(model).modified
    # weights are bound after the passes
    bind(model, "weight", weight)
    left, found = optimized(model, tmp_path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    np.testing.assert_array_equal(found, (weight + low(1)).astype(np.float32))
    assert left == []


LEVELS = [onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL]


@pytest.mark.parametrize("level", LEVELS, ids=["basic", "all"])
@pytest.mark.parametrize(
    ("stored", "dtype"), [("bfloat16", "float16"), ("float16", "bfloat16"), ("float", "float16"), ("float", "bfloat16")]
)
def test_gamma_of_a_checkpoint_in_another_dtype_folds_too(
    tmp_path: Path, stored: str, dtype: str, level: onnxruntime.GraphOptimizationLevel
) -> None:
    low = LOW[dtype]
    every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    weight = every[(np.abs(every) < 100) & (np.abs(every) > 1e-6)]
    # bits that the run dtype has not, where the stored one has them
    weight = (weight * np.float32(1.0009)).astype(LOW[stored])
    number = {"float16": 10, "bfloat16": 16}[dtype]
    model = parse(f"""g (float[96] x, {dtype} one, {stored}[{weight.size}] weight) => (float[{weight.size}] y) {{
        cast = Cast<to={number}>(weight)
        gamma = Add(cast, one)
        y = Cast<to=1>(gamma)
    }}""")
    cast = model.graph[0].outputs[0]
    cast.shape, cast.type = ir.Shape([weight.size]), ir.TensorType(ir.DataType(number))
    bind(model, "one", np.ones((), low))
    assert passes.FoldableGammaPass()(model).modified
    assert ops(model) == ["Cast", "Constant", "Cast", "Add", "Cast", "Cast"]
    assert not passes.FoldableGammaPass()(model).modified
    bind(model, "weight", weight)
    left, found = optimized(model, tmp_path, level)
    assert left == []
    # rounded to the run dtype, then added to and rounded again
    np.testing.assert_array_equal(found, (weight.astype(low) + low(1)).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_bias_of_a_checkpoint_in_another_dtype_folds(tmp_path: Path, dtype: str) -> None:
    stored = {"float16": "bfloat16", "bfloat16": "float16"}[dtype]
    number = {"float16": 10, "bfloat16": 16}[dtype]
    model = parse(f"""g (float[96] x, {stored}[96] bias) => (float[96] y) {{
        cast = Cast<to={number}>(bias)
        wide = Cast<to=1>(cast)
        y = Add(x, wide)
    }}""")
    bias = np.random.default_rng(0).normal(size=96).astype(LOW[stored])
    bind(model, "bias", bias)
    assert not passes.FoldableGammaPass()(model).modified
    left, found = optimized(model, tmp_path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    assert left == ["Add"]
    np.testing.assert_array_equal(found, bias.astype(LOW[dtype]).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "old", "new"),
    [
        ("float", "N", "8"), ("bfloat16", "DTYPE[N]", "DTYPE[8,1]"), ("bfloat16", "one, weight", "weight, weight"),
        ("bfloat16", "Add(", "Mul("),
    ],
    ids=["float32", "matrix", "no constant", "no sum"],
)  # fmt: skip
def test_other_sums_stay(dtype: str, old: str, new: str) -> None:
    text = GAMMA.replace(old, new)
    assert text != GAMMA
    model = parse(text.replace("DTYPE", dtype).replace("N]", "8]"))
    bind(model, "one", np.ones((), LOW[dtype]))
    names = ops(model)
    assert not passes.FoldableGammaPass()(model).modified
    assert ops(model) == names
