"""The decoder layer: pre-norm, sequential; the MLP is down(relu(up(x))²), without a gate. Shapes as in attention.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.attention import Attention
from nemotron_export.model.layernorm import LayerNorm1P

__all__ = ["MLP", "NemotronDecoderLayer"]


class MLP(nn.Module):
    """down(relu(up(x))²); ``mlp_bias`` covers both projections.

    Attributes:
        fp32: compute the square and ``down_proj`` in fp32, whatever the dtype: in fp16 the square overflows where the
            rectified value exceeds 255.9.
    """

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__()
        self.fp32 = False
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BSE: torch.Tensor) -> torch.Tensor:
        rectified = F.relu(self.up_proj(x_BSE))
        if self.fp32:
            rectified = rectified.float()
            bias = None if self.down_proj.bias is None else self.down_proj.bias.float()
            return F.linear(rectified * rectified, self.down_proj.weight.float(), bias).to(x_BSE.dtype)
        return self.down_proj(rectified * rectified)


class NemotronDecoderLayer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: NemotronConfig, layer_idx: int, implementation: str) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx, implementation)
        self.mlp = MLP(config)
        self.input_layernorm = LayerNorm1P(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = LayerNorm1P(config.hidden_size, eps=config.norm_eps)

    def _layer(self, attend: Callable[..., tuple[Any, ...]], x_BSE: torch.Tensor, *inputs: Any) -> tuple[Any, ...]:
        attended, *others = attend(self.input_layernorm(x_BSE), *inputs)
        x_BSE = x_BSE + attended
        return x_BSE + self.mlp(self.post_attention_layernorm(x_BSE)), *others

    def forward(self, x_BSE: torch.Tensor, *inputs: Any) -> tuple[Any, ...]:
        """The reference path, with the inputs and results of :meth:`Attention.forward`."""
        return self._layer(self.self_attn, x_BSE, *inputs)

    def forward_dialect(self, x_BSE: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The traced path, with the inputs and results of :meth:`Attention.forward_dialect`."""
        return self._layer(self.self_attn.forward_dialect, x_BSE, *inputs)
