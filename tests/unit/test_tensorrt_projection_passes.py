"""The passes that form the projections of a decode step: the graph before and after, and equal outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from nemotron_graphs import passes
from support.graph_texts import assert_same, node_of, ops, parse, random_feed

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
