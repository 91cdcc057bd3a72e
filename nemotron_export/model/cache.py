"""KV caches of the reference path: growing and fixed.

Shapes: B rows, G key/value heads, T slots, S tokens, D head_dim.
"""

from __future__ import annotations

import torch
from nemotron_errors import LimitError

__all__ = ["Cache", "DynamicCache", "StaticCache"]


class DynamicCache:
    """A cache that grows by concatenation, layer by layer."""

    fixed = False

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held by a layer."""
        return self.keys[layer_idx].shape[2] if layer_idx < len(self.keys) else 0

    def kv_length(self, new_tokens: int) -> int:
        """Key length that attention will see after ``new_tokens`` more."""
        return self.get_seq_length() + new_tokens

    def update(self, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends new keys and values; gives all of the layer's."""
        if layer_idx == len(self.keys):
            self.keys.append(k_BGSD)
            self.values.append(v_BGSD)
        else:
            self.keys[layer_idx] = torch.cat((self.keys[layer_idx], k_BGSD), dim=2)
            self.values[layer_idx] = torch.cat((self.values[layer_idx], v_BGSD), dim=2)
        return self.keys[layer_idx], self.values[layer_idx]


class StaticCache:
    """A cache of fixed length, written in place.

    Args:
        max_cache_len: slots per row, T.
    """

    fixed = True

    def __init__(self, max_cache_len: int) -> None:
        self.max_cache_len = max_cache_len
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._lengths: list[int] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held by a layer."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def kv_length(self, new_tokens: int) -> int:
        """Key length that attention will see: all slots."""
        return self.max_cache_len

    def update(self, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values behind those held; gives the layer's whole buffers.

        Raises:
            LimitError: where they do not fit.
        """
        B, G, S, D = k_BGSD.shape
        if layer_idx == len(self.keys):
            shape = (B, G, self.max_cache_len, D)
            self.keys.append(k_BGSD.new_zeros(shape))
            self.values.append(v_BGSD.new_zeros(shape))
            self._lengths.append(0)
        start = self._lengths[layer_idx]
        if start + S > self.max_cache_len:
            raise LimitError(
                f"{start + S} tokens",
                f"at most {self.max_cache_len}",
                "make the StaticCache longer",
                where="past_key_values",
            )
        self.keys[layer_idx][:, :, start : start + S] = k_BGSD
        self.values[layer_idx][:, :, start : start + S] = v_BGSD
        self._lengths[layer_idx] = start + S
        return self.keys[layer_idx], self.values[layer_idx]


Cache = DynamicCache | StaticCache
