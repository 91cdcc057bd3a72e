"""``PartialRotaryEmbedding``: rotates the first lanes of each head, passes the rest.

Shapes: B sequences, S new tokens, H heads, D head_dim, P positions in the table, R rotary_dim.
"""

from __future__ import annotations

import torch

from nemotron_graphs.ops.definition import OpDefinition, OpInput

__all__ = ["partial_rotary_embedding"]


def _eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    cos_BS1h = cos[position_ids].unsqueeze(2)
    sin_BS1h = sin[position_ids].unsqueeze(2)
    first, second, tail = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos_BS1h - second * sin_BS1h, second * cos_BS1h + first * sin_BS1h, tail), dim=-1)


_BODY = """
  heads_axis = Constant<value_ints=[2]>()
  lane_axis = Constant<value_ints=[-1]>()
  start = Constant<value_ints=[0]>()
  end = Constant<value_ints=[9223372036854775807]>()
  cos_BSh = Gather<axis=0>(cos, position_ids)
  sin_BSh = Gather<axis=0>(sin, position_ids)
  cos_BS1h = Unsqueeze(cos_BSh, heads_axis)
  sin_BS1h = Unsqueeze(sin_BSh, heads_axis)
  half = Shape<start=1, end=2>(cos)
  rotary_dim = Add(half, half)
  first = Slice(x, start, half, lane_axis)
  second = Slice(x, half, rotary_dim, lane_axis)
  tail = Slice(x, rotary_dim, end, lane_axis)
  first_cos = Mul(first, cos_BS1h)
  second_sin = Mul(second, sin_BS1h)
  second_cos = Mul(second, cos_BS1h)
  first_sin = Mul(first, sin_BS1h)
  rotated_first = Sub(first_cos, second_sin)
  rotated_second = Add(second_cos, first_sin)
  y = Concat<axis=-1>(rotated_first, rotated_second, tail)"""


partial_rotary_embedding = OpDefinition(
    name="PartialRotaryEmbedding",
    inputs=(
        OpInput("x", "T", "[B, S, H, D]"),
        OpInput("cos", "T", "[P, R/2]"),
        OpInput("sin", "T", "[P, R/2]"),
        OpInput("position_ids", "I", "[B, S]"),
    ),
    outputs=(("y", "[B, S, H, D]"),),
    eager=_eager,
    body=_BODY,
    doc="Rotates lanes i and i + R/2 of each head by the angle of the token's position; lanes from R on pass.",
)
