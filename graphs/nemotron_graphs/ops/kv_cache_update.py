"""``KVCacheUpdate``: writes the new keys or values of each sequence into its cache.

Shapes: B sequences, G key/value heads, T capacity of a cache, S new tokens, D head_dim.
"""

from __future__ import annotations

import torch

from nemotron_graphs.ops.definition import OpDefinition, OpInput

__all__ = ["kv_cache_update"]


def _eager(cache: torch.Tensor, new: torch.Tensor, write_index: torch.Tensor) -> torch.Tensor:
    B, S, _, _ = new.shape
    position_BS = write_index[:, None] + torch.arange(S, device=new.device)
    if B and S and not (0 <= int(position_BS.min()) <= int(position_BS.max()) < cache.shape[2]):
        found = f"positions {int(position_BS.min())}..{int(position_BS.max())}"
        raise IndexError(f"{found} of a cache with capacity {cache.shape[2]}")
    updated_BGTD = cache.clone(memory_format=torch.contiguous_format)
    # indices on axes 0 and 2 put the indexed axes first: [B, S, G, D], which is new's own layout
    updated_BGTD[torch.arange(B, device=new.device)[:, None], :, position_BS] = new
    return updated_BGTD


_BODY = """
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  new_BGSD = Transpose<perm=[0, 2, 1, 3]>(new)
  tokens_1 = Shape<start=1, end=2>(new)
  tokens = Squeeze(tokens_1)
  token_S = Range(zero, tokens, one)
  token_axis = Constant<value_ints=[1]>()
  token_S1 = Unsqueeze(token_S, token_axis)
  sequence_axes = Constant<value_ints=[1, 2, 3]>()
  write_B111 = Unsqueeze(write_index, sequence_axes)
  position_B1S1 = Add(write_B111, token_S1)
  shape_BGSD = Shape(new_BGSD)
  position_BGSD = Expand(position_B1S1, shape_BGSD)
  updated = ScatterElements<axis=2>(cache, position_BGSD, new_BGSD)"""


kv_cache_update = OpDefinition(
    name="KVCacheUpdate",
    inputs=(
        OpInput("cache", "T", "[B, G, T, D]"),
        OpInput("new", "T", "[B, S, G, D]"),
        OpInput("write_index", "I", "[B]"),
    ),
    outputs=(("updated", "[B, G, T, D]"),),
    eager=_eager,
    body=_BODY,
    doc="Writes token s of sequence b to position write_index[b] + s of its cache, which must exist. A "
    "target may write in place where nothing else reads the old cache.",
)
