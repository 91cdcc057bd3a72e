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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("text", "activation"), [(NORMED, "none"), (SQUARED, "relu_squared")])
def test_a_norm_goes_into_the_projection_that_reads_it(text: str, activation: str, bias: bool) -> None:
    text = text.replace("proj_weight)", "proj_weight, bias)") if bias else text
    before, after = parse(text), parse(text)
    assert passes.FormLayerNormLinearPass()(after).modified
    node = node_of(after, "LayerNormLinear")
    assert [value.name for value in node.inputs] == [
        "x", "norm.weight", "norm.bias", "layer.up_proj.weight", *(["bias"] if bias else []),
    ]  # fmt: skip
    assert node.outputs[0].name == "y"
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "epsilon": pytest.approx(0.01), "activation": activation, "output": "same",
    }  # fmt: skip
    assert not {"LayerNormalization", "Linear", "Relu", "Mul"} & set(ops(after))
    assert_same(after, before, random_feed(before))
    assert not passes.FormLayerNormLinearPass()(after).modified


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NORMED.replace("Add(norm_weight, one)", "Neg(norm_weight)"), "'gamma' comes from Neg, not Add"),
        (NORMED.replace("value_float=1.0", "value_float=2.0"), "gamma is not a weight plus one"),
        (SQUARED.replace("Mul(r, r)", "Mul(r, z)"), "'z' is read by Relu, Mul, not by one node alone"),
        (
            SQUARED.replace("y = Mul(r, r)", "w = Cast<to=1>(r)\n y = Mul(w, w)"),
            "its Relu is read by Cast, not by one Mul",
        ),
    ],
    ids=["no sum", "another constant", "relu times its input", "a square in another dtype"],
)
def test_what_is_no_normed_projection_stays(text: str, reason: str) -> None:
    model = parse(text)
    fusion = passes.FormLayerNormLinearPass()
    assert not fusion(model).modified
    assert "Linear" in ops(model)
    (line,) = fusion.missed
    assert line.startswith("Linear '")
    assert line.endswith(f": {reason}")


def test_a_projection_that_reads_no_norm_is_no_candidate() -> None:
    model = parse(NORMED.replace("Linear(normed,", "Linear(x,"))
    fusion = passes.FormLayerNormLinearPass()
    assert not fusion(model).modified
    assert (fusion.found, fusion.missed) == (0, [])


def test_a_norm_that_others_read_stays_for_them() -> None:
    text = NORMED.replace("=> (float[b,s,8] y)", "=> (float[b,s,8] y, float[b,s,6] n)").replace(
        "\n}", "\n    n = Neg(normed)\n}"
    )
    before, after = parse(text), parse(text)
    assert passes.FormLayerNormLinearPass()(after).modified
    assert {"LayerNormLinear", "LayerNormalization"} <= set(ops(after))
    assert_same(after, before, random_feed(before))


ADDED = """g (float[b,s,6] x, float[8,6] layer_o_proj_weight, float[b,s,8] residual, float[8] bias)
  => (float[b,s,8] y) {
    product = nemotron.Linear(x, layer_o_proj_weight)
    y = Add(residual, product)
}"""


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_goes_into_the_projection_before_it(bias: bool, swapped: bool) -> None:
    text = ADDED.replace("proj_weight)", "proj_weight, bias)") if bias else ADDED
    text = text.replace("Add(residual, product)", "Add(product, residual)") if swapped else text
    shape: list[int | str] = ["b", "s", 8]
    before, after = parse(text, product=shape), parse(text, product=shape)
    assert passes.FormLinearResidualPass()(after).modified
    assert ops(after) == ["LinearResidual"]
    node = node_of(after, "LinearResidual")
    assert [value.name for value in node.inputs] == [
        "x", "layer.o_proj.weight", "residual", *(["bias"] if bias else []),
    ]  # fmt: skip
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
    assert passes.FormLinearResidualPass()(after).modified
    assert node_of(after, "LinearResidual").inputs[0].name == kept
    if kept == "x":
        assert_same(after, before, random_feed(before))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ADDED.replace("y = Add(residual, product)", "y = Mul(residual, product)"), "read by Mul, not by Add"),
        (
            ADDED.replace("y = Add(residual, product)", "z = Add(residual, product)\n y = Mul(z, product)"),
            "'product' is read by Add, Mul, not by one node alone",
        ),
        (
            ADDED.replace("=> (float[b,s,8] y)", "=> (float[b,s,8] y, float[b,s,8] product)"),
            "'product' is read by Add, the graph's output, not by one node alone",
        ),
        (ADDED.replace("float[b,s,8] residual", "float[8] residual"), "[b,s,8] is added to [8]"),
    ],
    ids=["no sum", "a second reader", "an output", "another shape"],
)
def test_what_is_no_residual_stays(text: str, reason: str) -> None:
    model = parse(text, product=["b", "s", 8])
    fusion = passes.FormLinearResidualPass()
    assert not fusion(model).modified
    assert "Linear" in ops(model)
    assert [line.endswith(reason) for line in fusion.missed] == [True]


def test_only_one_of_two_projections_of_a_sum_is_fused() -> None:
    text = ADDED.replace("y = Add(residual, product)", "other = nemotron.Linear(x, second)\n y = Add(other, product)")
    text = text.replace("float[8] bias)", "float[8] bias, float[8,6] second)")
    before, after = (parse(text, product=["b", "s", 8], other=["b", "s", 8]) for _ in range(2))
    fusion = passes.FormLinearResidualPass()
    assert fusion(after).modified
    assert (fusion.found, len(fusion.missed)) == (1, 1)
    assert sorted(ops(after)) == ["Linear", "LinearResidual"]
    assert_same(after, before, random_feed(before))


def test_a_fused_head_gives_float32_itself() -> None:
    model = parse(NORMED.replace("float[", "float16["))
    constant = model.graph[0]
    constant.attributes.clear()
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array(1, np.float16)))
    passes.FormLayerNormLinearPass()(model)
    assert passes.WidenOutputPass()(model).modified
    node = node_of(model, "LayerNormLinear")
    assert node.attributes["output"].value == "float32"
    assert model.graph.outputs[0] is node.outputs[0]
    assert node.outputs[0].dtype == ir.DataType.FLOAT
    assert "Cast" not in ops(model)
