"""KV caches of the reference path: growing and fixed.

Shapes: B sequences, G key/value heads, T capacity, S tokens, D head_dim.
"""

from __future__ import annotations

import torch
from nemotron_errors import LimitError

__all__ = ["Cache", "DynamicCache", "RowCache", "StaticCache"]


class _LayerCaches:
    """Keys and values [B, G, T, D] of each layer that has been written.

    Attributes:
        fixed: attention sees the whole capacity, whatever of it is filled.
    """

    fixed = False

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def _allocate(self, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, capacity: int) -> None:
        """Makes the next layer's buffers, of zeros."""
        B, G, _, D = k_BGSD.shape
        self.keys.append(k_BGSD.new_zeros((B, G, capacity, D)))
        self.values.append(v_BGSD.new_zeros((B, G, capacity, D)))


class DynamicCache(_LayerCaches):
    """A cache that grows by concatenation, layer by layer."""

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


class StaticCache(_LayerCaches):
    """A cache of fixed length T, ``max_cache_len``, written in place."""

    fixed = True

    def __init__(self, max_cache_len: int) -> None:
        super().__init__()
        self.max_cache_len = max_cache_len
        self._lengths: list[int] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held by a layer."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def kv_length(self, new_tokens: int) -> int:
        """Key length that attention will see: the whole capacity."""
        return self.max_cache_len

    def update(self, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values after those held; gives the layer's whole buffers.

        Raises:
            LimitError: where they do not fit.
        """
        S = k_BGSD.shape[2]
        if layer_idx == len(self.keys):
            self._allocate(k_BGSD, v_BGSD, self.max_cache_len)
            self._lengths.append(0)
        start = self._lengths[layer_idx]
        if start + S > self.max_cache_len:
            found, expected = f"{start + S} tokens", f"at most {self.max_cache_len}"
            raise LimitError(found, expected, "make the StaticCache longer", where="past_key_values")
        self.keys[layer_idx][:, :, start : start + S] = k_BGSD
        self.values[layer_idx][:, :, start : start + S] = v_BGSD
        self._lengths[layer_idx] = start + S
        return self.keys[layer_idx], self.values[layer_idx]


class RowCache(_LayerCaches):
    """A cache whose sequences hold different numbers of tokens, written in place where :meth:`place` said before.

    Where all sequences hold equally many tokens, a forward sees exactly what a DynamicCache would show it.
    """

    def __init__(self, sequences: int, capacity: int) -> None:
        super().__init__()
        self.sequences = sequences
        self.capacity = capacity
        self._start = 0
        self._end = 0
        self._targets: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def place(self, starts: list[int], lengths: list[int], new_tokens: int, device: torch.device) -> bool:
        """Says where the next forward's tokens go.

        Args:
            starts: tokens that each sequence holds, where its new ones go.
            lengths: real tokens of each sequence; those after them are not written.
            new_tokens: S.

        Returns:
            Whether all sequences start at one position with S real tokens each, so that plain causality holds.
        """
        ends = [start + max(length, 1) for start, length in zip(starts, lengths, strict=True)]
        assert len(starts) == self.sequences
        assert max(ends) <= self.capacity
        self._start, self._end = starts[0], max(ends)
        if len(set(starts)) == 1 and set(lengths) == {new_tokens}:
            self._targets = None
            return True
        written = [(b, n, starts[b] + n) for b, length in enumerate(lengths) for n in range(length)]
        sequence, token, position = torch.tensor(written, dtype=torch.int64, device=device).reshape(-1, 3).unbind(1)
        self._targets = sequence, token, position
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The position where the next tokens go; means nothing where sequences differ."""
        return self._start

    def kv_length(self, new_tokens: int) -> int:
        """Key length that attention will see: up to the longest sequence's end."""
        return self._end

    def update(self, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values where :meth:`place` said; gives the filled part of the layer's buffers."""
        if layer_idx == len(self.keys):
            self._allocate(k_BGSD, v_BGSD, self.capacity)
        for buffer_BGTD, new_BGSD in ((self.keys[layer_idx], k_BGSD), (self.values[layer_idx], v_BGSD)):
            if self._targets is None:
                buffer_BGTD[:, :, self._start : self._end] = new_BGSD
            else:
                sequence, token, position = self._targets
                buffer_BGTD[sequence, :, position] = new_BGSD[sequence, :, token]
        return self.keys[layer_idx][:, :, : self._end], self.values[layer_idx][:, :, : self._end]


Cache = DynamicCache | StaticCache | RowCache
