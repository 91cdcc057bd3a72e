"""``CachedAttention``: causal grouped-query attention of the new tokens over the filled part of the cache.

Shapes: B sequences, S new tokens, T capacity of a cache, H query heads, G key/value heads, g = H/G, D head_dim.
"""

from __future__ import annotations

import torch

from nemotron_graphs.ops.definition import OpDefinition, OpInput

__all__ = ["cached_attention"]


def _eager(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, query_start: torch.Tensor) -> torch.Tensor:
    B, S, H, D = q.shape
    G, T = k_cache.shape[1:3]
    q_BGgSD = q.reshape(B, S, G, H // G, D).permute(0, 2, 3, 1, 4)
    scores_BGgST = torch.matmul(q_BGgSD, k_cache.unsqueeze(2).transpose(-1, -2)) * D**-0.5
    position_BS = query_start[:, None] + torch.arange(S, device=q.device)
    visible_BST = torch.arange(T, device=q.device) <= position_BS[..., None]
    scores_BGgST = scores_BGgST.float().masked_fill(~visible_BST[:, None, None], torch.finfo(torch.float32).min)
    weights_BGgST = torch.softmax(scores_BGgST, dim=-1).to(q.dtype)
    out_BGgSD = torch.matmul(weights_BGgST, v_cache.unsqueeze(2))
    return out_BGgSD.permute(0, 3, 1, 2, 4).reshape(B, S, H, D).contiguous()


_BODY = """
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  minus_one = Constant<value_ints=[-1]>()
  group_axis = Constant<value_ints=[2]>()
  shape_BSHD = Shape(q)
  sequences_tokens = Shape<start=0, end=2>(q)
  kv_heads = Shape<start=1, end=2>(k_cache)
  head_dim = Shape<start=3, end=4>(q)
  shape_BSGgD = Concat<axis=0>(sequences_tokens, kv_heads, minus_one, head_dim)
  q_BSGgD = Reshape(q, shape_BSGgD)
  q_BGgSD = Transpose<perm=[0, 2, 3, 1, 4]>(q_BSGgD)
  k_BG1TD = Unsqueeze(k_cache, group_axis)
  v_BG1TD = Unsqueeze(v_cache, group_axis)
  k_BG1DT = Transpose<perm=[0, 1, 2, 4, 3]>(k_BG1TD)
  raw_BGgST = MatMul(q_BGgSD, k_BG1DT)
  head_dim_f = Cast<to=1>(head_dim)
  root = Sqrt(head_dim_f)
  scale_f = Reciprocal(root)
  scale = CastLike(scale_f, q)
  scaled_BGgST = Mul(raw_BGgST, scale)
  scores_BGgST = Cast<to=1>(scaled_BGgST)
  tokens_1 = Shape<start=1, end=2>(q)
  tokens = Squeeze(tokens_1)
  capacity_1 = Shape<start=2, end=3>(k_cache)
  capacity = Squeeze(capacity_1)
  token_S = Range(zero, tokens, one)
  cached_T = Range(zero, capacity, one)
  token_axis = Constant<value_ints=[1]>()
  token_S1 = Unsqueeze(token_S, token_axis)
  sequence_axes = Constant<value_ints=[1, 2, 3, 4]>()
  start_B1111 = Unsqueeze(query_start, sequence_axes)
  position_B11S1 = Add(start_B1111, token_S1)
  visible_B11ST = LessOrEqual(cached_T, position_B11S1)
  lowest = Constant<value_float=-3.4028234663852886e38>()
  masked_BGgST = Where(visible_B11ST, scores_BGgST, lowest)
  softmax_BGgST = Softmax<axis=-1>(masked_BGgST)
  weights_BGgST = CastLike(softmax_BGgST, q)
  out_BGgSD = MatMul(weights_BGgST, v_BG1TD)
  out_BSGgD = Transpose<perm=[0, 3, 1, 2, 4]>(out_BGgSD)
  out = Reshape(out_BSGgD, shape_BSHD)"""


cached_attention = OpDefinition(
    name="CachedAttention",
    inputs=(
        OpInput("q", "T", "[B, S, H, D]"),
        OpInput("k_cache", "T", "[B, G, T, D]"),
        OpInput("v_cache", "T", "[B, G, T, D]"),
        OpInput("query_start", "I", "[B]"),
    ),
    outputs=(("out", "[B, S, H, D]"),),
    eager=_eager,
    body=_BODY,
    doc="Token s of sequence b attends to positions 0 to query_start[b] + s of its cache. Scores are scaled by D^-0.5 "
    "in the run dtype, softmax is computed in fp32 and cast back. Query head h reads key/value head h // (H/G).",
)
