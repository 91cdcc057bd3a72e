"""Grouped-query attention in two paths over the same weights: ``hf`` (the reference) and ``dialect`` (what is traced).

Shapes: B sequences, S new tokens, K keys, T capacity, H query heads, G key/value heads, D head_dim, E hidden_size,
R rotary_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nemotron_errors import ConfigError
from nemotron_graphs.ops import cached_attention, kv_cache_update, partial_rotary_embedding
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.cache import Cache
from nemotron_export.model.flash import flash_attention
from nemotron_export.model.rotary import Rotation

__all__ = ["ATTENTION_IMPLEMENTATIONS", "Attention"]

ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention")


def _repeat_heads(x_BGKD: torch.Tensor, times: int) -> torch.Tensor:
    # expand and reshape, not repeat_interleave: with one head it stays a view, and BLAS rounds by strides
    B, G, K, D = x_BGKD.shape
    return x_BGKD if times == 1 else x_BGKD[:, :, None].expand(B, G, times, K, D).reshape(B, G * times, K, D)


def _eager(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = q.shape[1] // k.shape[1]
    k, v = _repeat_heads(k, groups), _repeat_heads(v, groups)
    weights = torch.matmul(q, k.transpose(2, 3)) * scale
    if mask is not None:
        weights = weights + mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=dropout, training=dropout > 0)
    return torch.matmul(weights, v), weights


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, dropout: float
) -> torch.Tensor:
    B, H, S, D = q.shape
    G = k.shape[1]
    grouped = H != G
    enable_gqa = grouped and mask is None and D <= 256
    if grouped and not enable_gqa:
        if S == 1:
            # one token per sequence: the group's heads take the place of tokens, so no key is repeated
            q = q.reshape(B, G, H // G, D)
            mask = mask if mask is None or mask.shape[1] == 1 else mask.reshape(B, G, H // G, -1)
        else:
            k, v = _repeat_heads(k, H // G), _repeat_heads(v, H // G)
    causal = mask is None and S > 1
    if causal and k.shape[2] > S:
        # an empty fixed cache: only the keys just written count, and equal lengths take the fast kernel
        k, v = k[:, :, :S], v[:, :, :S]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, is_causal=causal, enable_gqa=enable_gqa
    )
    return out.reshape(B, H, S, D)


class Attention(nn.Module):
    """One layer's attention; ``attention_bias`` covers all four projections."""

    def __init__(self, config: NemotronConfig, layer_idx: int, implementation: str) -> None:
        super().__init__()
        if implementation not in ATTENTION_IMPLEMENTATIONS:
            raise ConfigError(
                f"attention '{implementation}'",
                f"one of {', '.join(ATTENTION_IMPLEMENTATIONS)}",
                "choose one of them",
                where="attn_implementation",
            )
        self.layer_idx = layer_idx
        self.implementation = implementation
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        H, G, D, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size
        self.q_proj = nn.Linear(E, H * D, bias=config.attention_bias)
        self.k_proj = nn.Linear(E, G * D, bias=config.attention_bias)
        self.v_proj = nn.Linear(E, G * D, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * D, E, bias=config.attention_bias)
        self.rotate_q, self.rotate_k = Rotation(), Rotation()

    def _project(self, x_BSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = (*x_BSE.shape[:-1], -1, self.head_dim)
        return self.q_proj(x_BSE).view(shape), self.k_proj(x_BSE).view(shape), self.v_proj(x_BSE).view(shape)

    def forward(
        self,
        x_BSE: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The reference path.

        Returns:
            [B, S, E], and the weights [B, H, S, K] where the implementation has them (eager).

        Raises:
            RequestError: inputs that PyTorch's flash kernel does not take, where the implementation is that.
        """
        q_BHSD, k_BGSD, v_BGSD = (x.transpose(1, 2) for x in self._project(x_BSE))
        q_BHSD, k_BGSD = self.rotate_q(q_BHSD, *rotary), self.rotate_k(k_BGSD, *rotary)
        if cache is not None:
            k_BGSD, v_BGSD = cache.update(k_BGSD, v_BGSD, self.layer_idx)
        dropout = self.attention_dropout if self.training else 0.0
        inputs = (q_BHSD, k_BGSD, v_BGSD, mask, self.scale, dropout)
        weights = None
        if self.implementation == "flash_attention":
            filled = cache.get_seq_length(self.layer_idx) if cache is not None and cache.fixed else k_BGSD.shape[2]
            out_BHSD = flash_attention(*inputs, filled)
        elif self.implementation == "eager":
            out_BHSD, weights = _eager(*inputs)
        else:
            out_BHSD = _sdpa(*inputs)
        out_BSE = out_BHSD.transpose(1, 2).contiguous().reshape(*x_BSE.shape[:-1], -1)
        return self.o_proj(out_BSE), weights

    def forward_dialect(
        self,
        x_BSE: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        position_ids: torch.Tensor,
        query_start: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The traced path, on the dialect's ops; activations stay [B, S, heads, D].

        Returns:
            [B, S, E] and the updated caches [B, G, T, D].
        """
        q_BSHD, k_BSGD, v_BSGD = self._project(x_BSE)
        q_BSHD = partial_rotary_embedding(q_BSHD, cos, sin, position_ids)
        k_BSGD = partial_rotary_embedding(k_BSGD, cos, sin, position_ids)
        k_cache = kv_cache_update(k_cache, k_BSGD, query_start)
        v_cache = kv_cache_update(v_cache, v_BSGD, query_start)
        out_BSHD = cached_attention(q_BSHD, k_cache, v_cache, query_start)
        return self.o_proj(out_BSHD.reshape(*x_BSE.shape[:-1], -1)), k_cache, v_cache
