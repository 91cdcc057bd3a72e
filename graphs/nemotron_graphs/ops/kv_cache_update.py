"""``KVCacheUpdate``: writes the new keys or values of each row into its cache slots.

Shapes: B rows, N cache rows, G key/value heads, T cache slots, S new tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from nemotron_graphs.ops.definition import OpDefinition, OpInput

__all__ = ["kv_cache_update"]


def _eager(
    cache: torch.Tensor, new: torch.Tensor, write_index: torch.Tensor, cache_row: torch.Tensor | None = None
) -> torch.Tensor:
    B, S, _, _ = new.shape
    slots_BS = write_index[:, None] + torch.arange(S, device=new.device)
    if B and S and not (0 <= int(slots_BS.min()) <= int(slots_BS.max()) < cache.shape[2]):
        raise IndexError(f"slots {int(slots_BS.min())}..{int(slots_BS.max())} of a cache with {cache.shape[2]} slots")
    rows_B = torch.arange(B, device=new.device) if cache_row is None else cache_row
    updated_NGTD = cache.clone(memory_format=torch.contiguous_format)
    # indices on axes 0 and 2 put the indexed axes in front: [B, S, G, D], which is new's own layout
    updated_NGTD[rows_B[:, None], :, slots_BS] = new
    return updated_NGTD


def _fake(
    cache: torch.Tensor, new: torch.Tensor, write_index: torch.Tensor, cache_row: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.empty_like(cache, memory_format=torch.contiguous_format)


def _body(present: Collection[str]) -> str:
    # ScatterElements needs no cache_row; ScatterND takes it as one more index column.
    common = """
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  new_BGSD = Transpose<perm=[0, 2, 1, 3]>(new)
  tokens_1 = Shape<start=1, end=2>(new)
  tokens = Squeeze(tokens_1)
  token_S = Range(zero, tokens, one)
  token_axis = Constant<value_ints=[1]>()
  token_S1 = Unsqueeze(token_S, token_axis)
  row_axes = Constant<value_ints=[1, 2, 3]>()
  write_B111 = Unsqueeze(write_index, row_axes)
  slot_B1S1 = Add(write_B111, token_S1)"""
    if "cache_row" not in present:
        return (
            common
            + """
  shape_BGSD = Shape(new_BGSD)
  slot_BGSD = Expand(slot_B1S1, shape_BGSD)
  updated = ScatterElements<axis=2>(cache, slot_BGSD, new_BGSD)"""
        )
    return (
        common
        + """
  heads_1 = Shape<start=2, end=3>(new)
  heads = Squeeze(heads_1)
  head_G = Range(zero, heads, one)
  head_axes = Constant<value_ints=[1, 2]>()
  head_G11 = Unsqueeze(head_G, head_axes)
  row_B111 = Unsqueeze(cache_row, row_axes)
  shape_BGS = Shape<start=0, end=3>(new_BGSD)
  one_1 = Constant<value_ints=[1]>()
  shape_BGS1 = Concat<axis=0>(shape_BGS, one_1)
  row_BGS1 = Expand(row_B111, shape_BGS1)
  head_BGS1 = Expand(head_G11, shape_BGS1)
  slot_BGS1 = Expand(slot_B1S1, shape_BGS1)
  index_BGS3 = Concat<axis=-1>(row_BGS1, head_BGS1, slot_BGS1)
  updated = ScatterND(cache, index_BGS3, new_BGSD)"""
    )


kv_cache_update = OpDefinition(
    name="KVCacheUpdate",
    inputs=(
        OpInput("cache", "T", "[N, G, T, D]"),
        OpInput("new", "T", "[B, S, G, D]"),
        OpInput("write_index", "I", "[B]"),
        OpInput("cache_row", "I", "[B]", optional=True),
    ),
    outputs=(("updated", "[N, G, T, D]"),),
    eager=_eager,
    fake=_fake,
    body=_body,
    doc="Writes token s of row b to slot write_index[b] + s of cache row cache_row[b] (row b, and N = B, without it). "
    "Every slot must exist. A target may write in place where nothing else reads the old cache.",
)
