"""``LayerNormLinear``: LayerNorm1P, a projection on the checkpoint's own layout, and relu² where the MLP has it.

Shapes: B rows, S tokens, I input features, O output features.
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
    kernel: str = "",
) -> torch.Tensor:
    normed = F.layer_norm(x, x.shape[-1:], norm_weight + 1, norm_bias, epsilon)
    if output == "float32":
        normed, weight, bias = normed.float(), weight.float(), None if bias is None else bias.float()
    y = linear.eager(normed, weight, bias)
    if activation == "relu_squared":
        y = torch.relu(y)
        y = y * y
    return y


def _fake(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float,
    activation: str = "none",
    output: str = "same",
    kernel: str = "",
) -> torch.Tensor:
    dtype = torch.float32 if output == "float32" else x.dtype
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _body(present: Collection[str], epsilon: float, activation: str, output: str, kernel: str) -> str:
    names = ["normed", "weight", *(["bias"] if "bias" in present else [])]
    text = f"""
  one_f = Constant<value_float=1.0>()
  one = CastLike(one_f, norm_weight)
  gamma = Add(norm_weight, one)
  normed = LayerNormalization<axis=-1, epsilon={epsilon:.9e}, stash_type=1>(x, gamma, norm_bias)"""
    if output == "float32":
        text += "".join(f"\n  {name}_32 = Cast<to=1>({name})" for name in names)
        names = [f"{name}_32" for name in names]
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
    fake=_fake,
    body=_body,
    doc="Linear(LayerNorm(x), weight, bias), the norm's gamma being norm_weight + 1, and behind it relu² where "
    "`activation` says so. With `output` float32 the product is not rounded to the run dtype. `kernel` names the "
    "kernel of a target; it has no meaning of its own.",
    attributes=(
        OpAttribute("epsilon", 1e-5, required=True),
        OpAttribute("activation", "none", choices=("none", "relu_squared")),
        OpAttribute("output", "same", choices=("same", "float32")),
        OpAttribute("kernel", ""),
    ),
    output_type="U",
)
