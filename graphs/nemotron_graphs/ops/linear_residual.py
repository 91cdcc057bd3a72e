"""``LinearResidual``: a projection and the residual sum that follows it.

Shapes: B sequences, S tokens, I input features, O output features. Input features may be split in heads, as attention
leaves them: [B, S, H, D] with H · D = I.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from nemotron_graphs.ops.definition import OpDefinition, OpInput
from nemotron_graphs.ops.linear import linear

__all__ = ["linear_residual"]


def _eager(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return residual + linear.eager(x.flatten(2), weight, bias)


def _body(present: Collection[str]) -> str:
    bias = ", bias" if "bias" in present else ""
    return f"""
  flat_shape = Constant <value_ints = [0, 0, -1]> ()
  flat = Reshape(x, flat_shape)
  product = nemotron.Linear(flat, weight{bias})
  y = Add(residual, product)"""


linear_residual = OpDefinition(
    name="LinearResidual",
    inputs=(
        OpInput("x", "T", "[B, S, I]"),
        OpInput("weight", "T", "[O, I]"),
        OpInput("residual", "T", "[B, S, O]"),
        OpInput("bias", "T", "[O]", optional=True),
    ),
    outputs=(("y", "[B, S, O]"),),
    eager=_eager,
    body=_body,
    doc="residual + Linear(x, weight, bias); x may be heads [B, S, H, D].",
)
