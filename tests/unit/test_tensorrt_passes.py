"""The passes of the tensorrt target: the graph before and after, and equal outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_graphs import passes

HEADER = '<ir_version: 10, opset_import: ["": 21, "nemotron": 1]>'
# ONNX's text takes no dots in names
DOTS = {"_proj_": "_proj.", "layer_": "layer.", "norm_": "norm."}


def parse(text: str, **shapes: list[int | str]) -> ir.Model:
    """A graph, names with dots, and shapes of its values (of dtype float)."""
    model = ir.from_onnx_text(f"{HEADER}\n{text}")
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        if value.name in shapes:
            value.shape, value.type = ir.Shape(shapes[value.name]), ir.TensorType(ir.DataType.FLOAT)
    for value in model.graph.inputs:
        assert value.name
        for plain, dotted in DOTS.items():
            value.name = value.name.replace(plain, dotted)
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


def random_feed(model: ir.Model, **given: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feed = dict(given)
    for value in model.graph.inputs:
        assert value.name
        assert value.shape is not None
        shape = [{"b": 2, "s": 3}.get(str(dim), dim) for dim in value.shape]
        feed.setdefault(value.name, rng.normal(size=shape).astype(np.float32))  # type: ignore[arg-type]
    return feed


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    passes.InlineDialectOpsPass()(model)
    wanted = {value.name for value in model.graph.inputs if value.uses()}
    passes.DropUnusedInputsPass()(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value for name, value in feed.items() if name in wanted})


def assert_same(after: ir.Model, before: ir.Model, feed: dict[str, np.ndarray]) -> None:
    for found, expected in zip(run(after, feed), run(before, feed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


NORMED = """g (float[b,s,6] x, float[6] norm_weight, float[6] norm_bias, float[8,6] layer_up_proj_weight, float[8] bias)
  => (float[b,s,8] y) {
    one = Constant<value_float=1.0>()
    gamma = Add(norm_weight, one)
    normed = LayerNormalization<axis=-1, epsilon=0.01, stash_type=1>(x, gamma, norm_bias)
    y = nemotron.Linear(normed, layer_up_proj_weight)
}"""
SQUARED = NORMED.replace("y = nemotron", "z = nemotron").replace("\n}", "\n    r = Relu(z)\n    y = Mul(r, r)\n}")
KERNELS = {"qkv_proj": "qkv", "up_proj": "up"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("text", "activation"), [(NORMED, "none"), (SQUARED, "relu_squared")])
def test_a_norm_goes_into_the_projection_behind_it(text: str, activation: str, bias: bool) -> None:
    text = text.replace("proj_weight)", "proj_weight, bias)") if bias else text
    before, after = parse(text), parse(text)
    assert passes.FormLayerNormLinearPass(KERNELS)(after).modified
    node = node_of(after, "LayerNormLinear")
    assert [value.name for value in node.inputs] == [
        "x", "norm.weight", "norm.bias", "layer.up_proj.weight", *(["bias"] if bias else []),
    ]  # fmt: skip
    assert node.outputs[0].name == "y"
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "epsilon": pytest.approx(0.01), "activation": activation, "output": "same", "kernel": "up",
    }  # fmt: skip
    assert not {"LayerNormalization", "Linear", "Relu", "Mul"} & set(ops(after))
    assert_same(after, before, random_feed(before))
    assert not passes.FormLayerNormLinearPass(KERNELS)(after).modified


def test_a_weight_of_another_name_is_the_head_s() -> None:
    model = parse(NORMED.replace("layer_up_proj_weight", "head"))
    passes.FormLayerNormLinearPass(KERNELS)(model)
    assert node_of(model, "LayerNormLinear").attributes["kernel"].value == "head"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (NORMED.replace("Add(norm_weight, one)", "Neg(norm_weight)"), "Linear"),
        (NORMED.replace("value_float=1.0", "value_float=2.0"), "Linear"),
        (SQUARED.replace("Mul(r, r)", "Mul(r, z)"), "Linear"),
        (SQUARED.replace("y = Mul(r, r)", "w = Cast<to=1>(r)\n y = Mul(w, w)"), "Linear"),
    ],
    ids=["no sum", "another constant", "relu times its input", "a square in another dtype"],
)
def test_what_is_no_normed_projection_stays(text: str, kept: str) -> None:
    model = parse(text)
    assert not passes.FormLayerNormLinearPass(KERNELS)(model).modified
    assert kept in ops(model)


def test_a_norm_that_others_read_stays_for_them() -> None:
    text = NORMED.replace("=> (float[b,s,8] y)", "=> (float[b,s,8] y, float[b,s,6] n)").replace(
        "\n}", "\n    n = Neg(normed)\n}"
    )
    before, after = parse(text), parse(text)
    assert passes.FormLayerNormLinearPass(KERNELS)(after).modified
    assert {"LayerNormLinear", "LayerNormalization"} <= set(ops(after))
    assert_same(after, before, random_feed(before))


ADDED = """g (float[b,s,6] x, float[8,6] layer_o_proj_weight, float[b,s,8] residual, float[8] bias)
  => (float[b,s,8] y) {
    product = nemotron.Linear(x, layer_o_proj_weight)
    y = Add(residual, product)
}"""


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_goes_into_the_projection_in_front(bias: bool, swapped: bool) -> None:
    text = ADDED.replace("proj_weight)", "proj_weight, bias)") if bias else ADDED
    text = text.replace("Add(residual, product)", "Add(product, residual)") if swapped else text
    shape: list[int | str] = ["b", "s", 8]
    before, after = parse(text, product=shape), parse(text, product=shape)
    assert passes.FormLinearResidualPass({"o_proj": "o"})(after).modified
    assert ops(after) == ["LinearResidual"]
    node = node_of(after, "LinearResidual")
    assert [value.name for value in node.inputs] == [
        "x", "layer.o_proj.weight", "residual", *(["bias"] if bias else []),
    ]  # fmt: skip
    assert node.attributes["kernel"].value == "o"
    assert_same(after, before, random_feed(before))


HEADS = ADDED.replace("float[b,s,6] x", "float[b,s,2,3] x").replace(
    "product = nemotron.Linear(x,",
    "shape = Constant<value_ints = [0, 0, 6]>()\n flat = Reshape(x, shape)\n product = nemotron.Linear(flat,",
)


@pytest.mark.parametrize(("text", "kept"), [
    (HEADS, "x"),
    (HEADS.replace("float[b,s,2,3] x", "float[s,b,2,3] x").replace("[0, 0, 6]", "[-1, 1, 6]"), "flat"),
])  # fmt: skip
def test_heads_go_into_the_projection_as_they_are(text: str, kept: str) -> None:
    shapes: dict[str, list[int | str]] = {"product": ["b", "s", 8], "flat": ["b", "s", 6]}
    before, after = parse(text, **shapes), parse(text, **shapes)
    assert passes.FormLinearResidualPass({"o_proj": "o"})(after).modified
    assert node_of(after, "LinearResidual").inputs[0].name == kept
    if kept == "x":
        assert_same(after, before, random_feed(before))


@pytest.mark.parametrize(
    ("text", "kernels"),
    [
        (ADDED, {"down_proj": "down"}),
        (
            ADDED.replace("y = Add(residual, product)", "z = Add(residual, product)\n y = Mul(z, product)"),
            {"o_proj": "o"},
        ),
        (ADDED.replace("float[b,s,8] residual", "float[8] residual"), {"o_proj": "o"}),
    ],
    ids=["another projection", "a second reader", "another shape"],
)
def test_what_is_no_residual_stays(text: str, kernels: dict[str, str]) -> None:
    model = parse(text, product=["b", "s", 8])
    assert not passes.FormLinearResidualPass(kernels)(model).modified
    assert "Linear" in ops(model)


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
    "model",
    [
        layer("q"),
        layer(text=LAYER.replace("Linear(x, layer_v", "Linear(cos, layer_v")),
        layer(text=LAYER.replace("k = Reshape(k_flat, kv_heads)", "k_ = Reshape(k_flat, kv_heads)\n k = Neg(k_)")),
    ],
    ids=["one bias", "another x", "something between"],
)
def test_projections_that_differ_stay_apart(model: ir.Model) -> None:
    assert not passes.FormPackedRotaryKVCacheUpdatePass()(model).modified
    assert "RotaryKVCacheUpdate" in ops(model)


ATTENDED = """g (float[b,s,128] qkv, float[12,8] cos, float[12,8] sin, int64[b,s] position_ids, int64[b] query_start,
  int64[b] other, int64[b] row, float[b,2,12,16] k_cache, float[b,2,12,16] v_cache)
  => (float[b,s,4,16] out, float[b,2,12,16] k_cache_out, float[b,2,12,16] v_cache_out) {
    q_rotated, k_cache_out, v_cache_out = nemotron.PackedRotaryKVCacheUpdate<num_heads = 4, num_kv_heads = 2>
      (qkv, cos, sin, position_ids, k_cache, v_cache, query_start WRITTEN)
    out = nemotron.CachedAttention(q_rotated, k_cache_out, v_cache_out, query_start READ)
}"""


def attended(text: str = ATTENDED, written: str = "", read: str = "") -> ir.Model:
    """The graph; ``written`` and ``read`` are what the update and the attention take as cache_row."""
    for part, row in (("WRITTEN", written), ("READ", read)):
        text = text.replace(f" {part})", f", {row})" if row else ")")
    cache: list[int | str] = ["b", 2, 12, 16]
    return parse(text, out=["b", "s", 4, 16], k_cache_out=cache, v_cache_out=cache)


@pytest.mark.parametrize("row", ["", "row"], ids=["rows in order", "rows by number"])
def test_attention_takes_the_packed_cache_update_in(row: str) -> None:
    # a reader of the updated cache between the two
    text = ATTENDED.replace("v_cache_out) {", "v_cache_out, float[b,2,12,16] n) {").replace(
        "    out = nemotron", "    n = Neg(v_cache_out)\n    out = nemotron"
    )
    before, after = attended(text, row, row), attended(text, row, row)
    old = [node_of(before, "CachedAttention").outputs[0], *node_of(before, "PackedRotaryKVCacheUpdate").outputs[1:]]
    assert passes.FormPackedRotaryCachedAttentionPass()(after).modified
    assert ops(after) == ["PackedRotaryCachedAttention", "Neg"]
    node = node_of(after, "PackedRotaryCachedAttention")
    assert [value.name for value in node.inputs] == [
        "qkv", "cos", "sin", "position_ids", "k_cache", "v_cache", "query_start", *([row] if row else []),
    ]  # fmt: skip
    assert {name: a.value for name, a in node.attributes.items()} == {"num_heads": 4, "num_kv_heads": 2}
    assert [(value.name, value.shape, value.type) for value in node.outputs] == [
        (value.name, value.shape, value.type) for value in old
    ]
    assert list(after.graph.outputs[:3]) == list(node.outputs)
    start = np.array([2, 5])
    feed = {"query_start": start, "position_ids": start[:, None] + np.arange(3), "row": np.array([1, 0])}
    assert_same(after, before, random_feed(before, other=start + 1, **feed))


@pytest.mark.parametrize(
    "model",
    [
        attended(ATTENDED.replace("v_cache, query_start", "v_cache, other")),
        attended(ATTENDED.replace("\n}", "\n    n = Neg(q_rotated)\n}")),
        attended(ATTENDED.replace("v_cache_out) {", "v_cache_out, float[b,s,4,16] q_rotated) {")),
        attended(written="row", read="other"),
        attended(written="row"),
        attended(read="row"),
        attended(ATTENDED.replace("(q_rotated, k_cache_out, v_cache_out,", "(q_rotated, v_cache_out, k_cache_out,")),
        attended(ATTENDED.replace("(q_rotated, k_cache_out, v_cache_out,", "(q_rotated, k_cache, v_cache,")),
    ],
    ids=["another write_index", "q read twice", "q an output", "another cache_row", "a row for the update alone",
         "a row for the attention alone", "caches the other way round", "caches as they were"],
)  # fmt: skip
def test_attention_over_something_else_stays(model: ir.Model) -> None:
    before = ops(model)
    assert not passes.FormPackedRotaryCachedAttentionPass()(model).modified
    assert ops(model) == before
    assert {"PackedRotaryKVCacheUpdate", "CachedAttention"} <= set(before)


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


def test_a_fused_head_gives_float32_itself() -> None:
    model = parse(NORMED.replace("float[", "float16["))
    constant = model.graph[0]
    constant.attributes.clear()
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array(1, np.float16)))
    passes.FormLayerNormLinearPass(KERNELS)(model)
    assert passes.WidenOutputPass()(model).modified
    node = node_of(model, "LayerNormLinear")
    assert node.attributes["output"].value == "float32"
    assert model.graph.outputs[0] is node.outputs[0]
    assert node.outputs[0].dtype == ir.DataType.FLOAT
    assert "Cast" not in ops(model)


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
