"""The passes of the tensorrt target on shapes and numbers: the graph before and after, and equal outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from nemotron_graphs import passes
from support.graph_texts import assert_same, ops, parse, random_feed, run


def test_a_dim_is_fixed_wherever_it_stands() -> None:
    model = parse("g (float[b,s,4] x) => (float[b,s,4] y) { y = Relu(x) }")
    assert passes.FixDimPass("s", 1)(model).modified
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == ["[b,1,4]"] * 2
    assert not passes.FixDimPass("s", 1)(model).modified


def test_the_answer_is_float32() -> None:
    text = "g (float16[b,4] x) => (float16[b,4] y, float16[b,4] z) { y = Relu(x) \n z = Neg(y) }"
    model = parse(text)
    assert passes.WidenOutputPass()(model).modified
    y, z = model.graph.outputs
    assert (y.name, y.dtype, z.name, z.dtype) == ("y", ir.DataType.FLOAT, "z", ir.DataType.FLOAT16)
    got = run(model, {"x": np.array([[1, -2, 3, 0.1]], np.float16)})
    assert got[0].dtype == np.float32
    assert got[0].tolist() == [[1, 0, 3, float(np.float16(0.1))]]
    assert not passes.WidenOutputPass()(model).modified
    other = parse(text)
    assert not passes.WidenOutputPass(ir.DataType.BFLOAT16)(other).modified
    assert other.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert passes.WidenOutputPass(ir.DataType.FLOAT16)(other).modified
    assert other.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_shapes_of_several_dims_are_read_from_inputs() -> None:
    text = """g (float[b,s,4] x) => (int64[2] both, int64[2] fixed) {
        r = Relu(x)
        both = Shape<start=0, end=-1>(r)
        c = Concat<axis=-1>(r, r)
        t = Transpose<perm=[2, 0, 1]>(r)
        fixed_ = Shape<start=0, end=1>(t)
        fixed = Concat<axis=0>(fixed_, fixed_)
    }"""
    model = parse(text, r=["b", "s", 4], t=[4, "b", "s"])
    assert passes.CanonicalizeShapesPass()(model).modified
    passes.cleanup()(model)
    assert "Relu" not in ops(model)
    assert [o.tolist() for o in run(model, {"x": np.zeros((2, 7, 4), np.float32)})] == [[2, 7], [4, 4]]


def test_sums_with_zero_vanish() -> None:
    text = """g (int64[b,1] x, float[b,1] f) => (int64[b,1] y, float[b,1] g_, int64[b,3] w) {
        none = Constant<value_ints=[0]>()
        three = Constant<value_ints=[0, 0, 0]>()
        one = Constant<value_ints=[1]>()
        zero = Constant<value_floats=[0.0]>()
        a = Add(x, none)
        b = Add(none, a)
        wide = Add(x, three)
        more = Add(b, one)
        y = Neg(more)
        h = Add(f, zero)
        g_ = Neg(h)
        w = Neg(wide)
    }"""
    before, after = parse(text), parse(text)
    for model in (before, after):
        passes.cleanup()(model)
        passes.InferShapesPass()(model)
    assert passes.EliminateZeroSumsPass()(after).modified
    # what broadcasts, what adds something, and a float's zero stay
    assert ops(after).count("Add") == 3
    feed = random_feed(before, x=np.array([[3], [5]]))
    assert_same(after, before, feed)
    assert not passes.EliminateZeroSumsPass()(after).modified


INSIDE = {"Gemm": (ir.DataType.FLOAT16,), "LayerNormalization": (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)}


@pytest.mark.parametrize("bias", [False, True])
def test_sums_of_float16_products_are_float32(bias: bool) -> None:
    third = ", bias" if bias else ""
    text = f"""g (float16[b,64] x, float16[1,64] w, float16[1] bias) => (float16[b,1] y) {{
        y = Gemm<transB=1>(x, w{third})
    }}"""
    model = parse(text)
    assert passes.ComputeInFloat32Pass(INSIDE)(model).modified
    assert ops(model) == ["Cast"] * (3 if bias else 2) + ["Gemm", "Cast"]
    (output,) = model.graph.outputs
    assert (output.name, output.dtype, str(output.shape)) == ("y", ir.DataType.FLOAT16, "[b,1]")
    # 2,048 + 63: float16 counts in twos there, and a sum in it would stay at 2,048
    feed = {"x": np.ones((1, 64), np.float16), "w": np.ones((1, 64), np.float16), "bias": np.zeros(1, np.float16)}
    feed["x"][0, 0] = 2048
    assert run(model, feed)[0].item() == float(np.float16(2111))
    assert not passes.ComputeInFloat32Pass(INSIDE)(model).modified


def test_a_norm_rounds_once() -> None:
    text = """g (float16[b,8] x, float16[8] gamma, float16[8] beta) => (float16[b,8] y) {
        y = LayerNormalization<axis=-1, epsilon=0.00001>(x, gamma, beta)
    }"""
    model = parse(text)
    assert passes.ComputeInFloat32Pass(INSIDE)(model).modified
    assert ops(model) == ["Cast"] * 3 + ["LayerNormalization", "Cast"]
    rng = np.random.default_rng(0)
    feed = {"x": rng.normal(size=(64, 8)), "gamma": rng.normal(size=8), "beta": 8 * rng.normal(size=8)}
    feed = {name: value.astype(np.float16) for name, value in feed.items()}
    x, gamma, beta = (value.astype(np.float64) for value in feed.values())
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    exact = normed * gamma + beta
    # half a unit in the last place, and a little for float32's own error
    assert (np.abs(run(model, feed)[0] - exact) <= 0.501 * np.spacing(np.abs(exact).astype(np.float16))).all()


@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_products_that_sum_in_float32_anyway_stay(dtype: str) -> None:
    model = parse(f"g ({dtype}[b,4] x, {dtype}[2,4] w) => ({dtype}[b,2] y) {{ y = Gemm<transB=1>(x, w) }}")
    assert not passes.ComputeInFloat32Pass(INSIDE)(model).modified
    assert ops(model) == ["Gemm"]
