"""``Linear``: a projection on the checkpoint's own [out, in] layout.

Shapes: B sequences, S tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F

from nemotron_graphs.ops.definition import OpDefinition, OpInput

__all__ = ["linear"]


def _eager(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _body(present: Collection[str]) -> str:
    # Gemm with transB reads the weight as it is stored; an explicit Transpose would be materialised
    bias = ", bias" if "bias" in present else ""
    return f"""
  minus_one = Constant<value_ints=[-1]>()
  features_in = Shape<start=1, end=2>(weight)
  features_out = Shape<start=0, end=1>(weight)
  shape_nI = Concat<axis=0>(minus_one, features_in)
  rows = Shape<start=0, end=-1>(x)
  shape_out = Concat<axis=0>(rows, features_out)
  x_nI = Reshape(x, shape_nI)
  y_nO = Gemm<transB=1>(x_nI, weight{bias})
  y = Reshape(y_nO, shape_out)"""


linear = OpDefinition(
    name="Linear",
    inputs=(
        OpInput("x", "T", "[B, S, I]"),
        OpInput("weight", "T", "[O, I]"),
        OpInput("bias", "T", "[O]", optional=True),
    ),
    outputs=(("y", "[B, S, O]"),),
    eager=_eager,
    fake=_eager,
    body=_body,
    doc="x times the transpose of weight, plus bias. The weight keeps the [out, in] layout of the checkpoint.",
)
