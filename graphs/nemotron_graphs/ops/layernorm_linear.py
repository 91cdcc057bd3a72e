"""``LayerNormLinear``: LayerNorm1P, a projection on the checkpoint's own layout, and relu² where the MLP has it.

Shapes: B sequences, S tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F

from nemotron_graphs.ops.definition import OpAttribute, OpDefinition, OpInput
from nemotron_graphs.ops.linear import linear

__all__ = ["layernorm_linear"]


def _eager(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float,
    activation: str = "none",
    output: str = "same",
) -> torch.Tensor:
    normed = F.layer_norm(x, x.shape[-1:], norm_weight + 1, norm_bias, epsilon)
    if output == "float32":
        normed, weight, bias = normed.float(), weight.float(), None if bias is None else bias.float()
    y = linear.eager(normed, weight, bias)
    if activation == "relu_squared":
        y = torch.relu(y)
        y = y * y
    return y


def _body(present: Collection[str], epsilon: float, activation: str, output: str) -> str:
    names = ["normed", "weight", *(["bias"] if "bias" in present else [])]
    # in fp32 and rounded once, as PyTorch has it; what LayerNormalization does in 16 bits differs among runtimes
    text = f"""
  one_f = Constant<value_float=1.0>()
  one = CastLike(one_f, norm_weight)
  gamma = Add(norm_weight, one)
  gamma_32 = Cast<to=1>(gamma)
  beta_32 = Cast<to=1>(norm_bias)
  x_32 = Cast<to=1>(x)
  last = Constant<value_ints=[-1]>()
  mean = ReduceMean(x_32, last)
  centred = Sub(x_32, mean)
  squares = Mul(centred, centred)
  variance = ReduceMean(squares, last)
  epsilon = Constant<value_float={epsilon:.9e}>()
  shifted = Add(variance, epsilon)
  deviation = Sqrt(shifted)
  scaled = Div(centred, deviation)
  weighted = Mul(scaled, gamma_32)
  normed_32 = Add(weighted, beta_32)
  normed = CastLike(normed_32, x)"""
    if output == "float32":
        text += "".join(f"\n  {name}_wide = Cast<to=1>({name})" for name in names)
        names = [f"{name}_wide" for name in names]
    result = "product" if activation == "relu_squared" else "y"
    text += f"\n  {result} = nemotron.Linear({', '.join(names)})"
    if activation == "relu_squared":
        text += """
  rectified = Relu(product)
  y = Mul(rectified, rectified)"""
    return text


layernorm_linear = OpDefinition(
    name="LayerNormLinear",
    inputs=(
        OpInput("x", "T", "[B, S, I]"),
        OpInput("norm_weight", "T", "[I]"),
        OpInput("norm_bias", "T", "[I]"),
        OpInput("weight", "T", "[O, I]"),
        OpInput("bias", "T", "[O]", optional=True),
    ),
    outputs=(("y", "[B, S, O]"),),
    eager=_eager,
    fake=_eager,
    body=_body,
    doc="Linear(LayerNorm(x), weight, bias), the norm's gamma being norm_weight + 1, and then relu² where "
    "`activation` says so. With `output` float32 the product is not rounded to the run dtype.",
    attributes=(
        OpAttribute("epsilon", 1e-5, required=True),
        OpAttribute("activation", "none", choices=("none", "relu_squared")),
        OpAttribute("output", "same", choices=("same", "float32")),
    ),
    output_type="U",
)
