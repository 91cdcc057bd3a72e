"""LayerNorm1P: LayerNorm whose stored weight is gamma - 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["LayerNorm1P"]


class LayerNorm1P(nn.LayerNorm):
    """True LayerNorm (mean and bias) with gamma = weight + 1, computed in the dtype that the model runs in.

    Under autocast on a GPU, input, gamma and bias are cast to the autocast dtype.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        gamma: torch.Tensor = self.weight + 1.0
        bias: torch.Tensor = self.bias
        device = input.device.type
        # the meta device, which a trace runs on, has no autocast to ask about
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return F.layer_norm(input, self.normalized_shape, gamma, bias, self.eps)
        if device != "cpu":  # where transformers casts nothing either
            dtype = torch.get_autocast_dtype(device)
            input, gamma, bias = input.to(dtype), gamma.to(dtype), bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return F.layer_norm(input, self.normalized_shape, gamma, bias, self.eps)
