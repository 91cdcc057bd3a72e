"""The causal mask of the reference path, made or left out by the rules that keep it bit-equal to transformers.

Shapes: B sequences, S new tokens, K keys that attention sees.
"""

from __future__ import annotations

import torch

from nemotron_export.model.cache import Cache

__all__ = ["causal_mask"]


def causal_mask(
    hidden_BSE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    position_ids: torch.Tensor | None,
    implementation: str,
) -> torch.Tensor | None:
    """The mask for one forward.

    Args:
        attention_mask: [B, past + S], 0 at padding; or a ready mask [B, 1, S, K].
        cache: the cache before it takes the new tokens.
        position_ids: [1 or B, S]; without cache and mask, positions that do not count up mark packed sequences.
        implementation: "eager" takes an additive mask, "sdpa" and "flash_attention" a boolean one or none.

    Returns:
        None where plain causality says it all (the attention then sets ``is_causal``; "flash_attention" cuts the
        keys after the tokens off and lets a chunk see its past, too), else [B, 1, S, K]: boolean (True = visible)
        or additive (0 and the dtype's lowest number).
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return attention_mask
    B, S = hidden_BSE.shape[:2]
    device = hidden_BSE.device
    offset = cache.get_seq_length() if cache is not None else 0
    padding = None if attention_mask is None else attention_mask.to(device=device, dtype=torch.bool)
    uncached = S if padding is None else padding.shape[-1]
    keys = uncached if cache is None else cache.kv_length(S)
    if padding is not None and padding.shape[-1] < keys:
        padding = torch.nn.functional.pad(padding, (0, keys - padding.shape[-1]))
    packed = None
    if attention_mask is None and cache is None and position_ids is not None:
        packed = _sequence_of(position_ids.expand(B, -1))

    if implementation != "eager" and packed is None:
        if implementation == "flash_attention":
            # no mask on CUDA: causality among the filled keys is all that its kernel can be told
            plain = padding is None or bool(padding[:, : offset + S].all())
        else:
            plain = _causality_says_it_all(padding, S, keys, offset, cache)
        if plain:
            return None
    query = torch.arange(S, device=device) + offset
    key = torch.arange(keys, device=device)
    visible = (key[None, :] <= query[:, None])[None, None]
    if packed is not None:
        visible = visible & (packed[:, None, :, None] == packed[:, None, None, :])
    if padding is not None:
        visible = visible & padding[:, None, None, :keys]
    visible = visible.expand(B, -1, S, keys)
    if implementation != "eager":
        return visible
    zero = torch.zeros((), device=device, dtype=hidden_BSE.dtype)
    return torch.where(visible, zero, torch.finfo(hidden_BSE.dtype).min)


def _causality_says_it_all(padding: torch.Tensor | None, S: int, keys: int, offset: int, cache: Cache | None) -> bool:
    if cache is not None and cache.fixed and S == 1:
        return False
    if padding is not None:
        padding = padding[:, :keys]
    if (S == 1 or keys == S) and (padding is None or bool(padding.all())):
        return True
    # an empty fixed cache: the keys after the tokens are empty, and causality hides them
    return offset == 0 and (padding is None or (bool(padding[:, :S].all()) and not bool(padding[:, S:].any())))


def _sequence_of(position_ids_BS: torch.Tensor) -> torch.Tensor | None:
    """Numbers the packed sequences [B, S] where positions jump; None where there is one per row."""
    first = position_ids_BS[:, :1] - 1
    jumps = torch.diff(position_ids_BS, prepend=first, dim=-1) != 1
    numbers = jumps.cumsum(-1)
    return numbers if bool((numbers[:, -1] != 0).any()) else None
