"""Rotary position embedding: frequencies of all RoPE types, cos/sin for the reference path, tables for the dialect.

Formulas: RoPE (Su et al. 2021, arXiv 2104.09864); linear interpolation (Chen et al. 2023, 2306.15595); dynamic NTK
(its public description of 2023); YaRN (Peng et al. 2023, 2309.00071); LongRoPE (Ding et al. 2024, 2402.13753);
llama3's wavelength bands (Llama 3 report, 2407.21783).

Shapes: B sequences, S tokens, R rotary_dim, P positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from nemotron_errors import GraphError
from torch import nn

from nemotron_export.config.config import NemotronConfig

__all__ = ["RotaryEmbedding", "Rotation", "rope_frequencies", "rope_tables"]


def _exponents(dim: int) -> torch.Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def _dynamic(config: NemotronConfig, dim: int, length: int | None) -> torch.Tensor:
    rope = config.rope_parameters
    factor, trained = rope["factor"], config.max_position_embeddings
    growth: torch.Tensor | float = 1.0
    if length is not None and length > trained:
        # float32 throughout: transformers keeps a running sequence's length in a tensor
        growth = factor * torch.tensor(length) / trained - (factor - 1)
    base = rope["rope_theta"] * growth ** (dim / (dim - 2))
    return 1.0 / (base ** _exponents(dim))


def _mscale(scale: float, mscale: float = 1) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def _yarn(config: NemotronConfig, dim: int) -> tuple[torch.Tensor, float]:
    rope = config.rope_parameters
    base, factor, trained = rope["rope_theta"], rope["factor"], rope["original_max_position_embeddings"]
    attention = rope.get("attention_factor")
    if attention is None:
        mscale, mscale_all = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor)

    def lane_of(rotations: float) -> float:
        return (dim * math.log(trained / (rotations * 2 * math.pi))) / (2 * math.log(base))

    low, high = lane_of(rope.get("beta_fast") or 32), lane_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    extrapolated = 1 - torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    periods = base ** _exponents(dim)
    return 1.0 / (factor * periods) * (1 - extrapolated) + 1.0 / periods * extrapolated, float(attention)


def _longrope(config: NemotronConfig, dim: int, length: int | None) -> tuple[torch.Tensor, float]:
    rope = config.rope_parameters
    trained = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config.max_position_embeddings / trained
    attention = rope.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    lanes = torch.tensor(rope["long_factor"] if length and length > trained else rope["short_factor"])
    return 1.0 / (lanes.float() * rope["rope_theta"] ** _exponents(dim)), float(attention)


def _llama3(config: NemotronConfig, dim: int) -> torch.Tensor:
    rope = config.rope_parameters
    factor, trained = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequencies = 1.0 / (rope["rope_theta"] ** _exponents(dim))
    wavelengths = 2 * math.pi / frequencies
    slow = wavelengths > trained / low
    fast = wavelengths < trained / high
    scaled = torch.where(slow, frequencies / factor, frequencies)
    smooth = (trained / wavelengths - low) / (high - low)
    return torch.where(~slow & ~fast, (1 - smooth) * scaled / factor + smooth * scaled, scaled)


def rope_frequencies(config: NemotronConfig, length: int | None = None) -> tuple[torch.Tensor, float]:
    """Inverse frequencies fp32 [R/2] and the factor on cos and sin.

    ``length`` is the running sequence's, for the types whose frequencies depend on it (dynamic, longrope).
    """
    rope: dict[str, Any] = config.rope_parameters
    dim = config.rotary_dim
    match rope["rope_type"]:
        case "linear":
            return 1.0 / (rope["rope_theta"] ** _exponents(dim)) / rope["factor"], 1.0
        case "dynamic":
            return _dynamic(config, dim, length), 1.0
        case "yarn":
            return _yarn(config, dim)
        case "longrope":
            return _longrope(config, dim, length)
        case "llama3":
            return _llama3(config, dim), 1.0
    return 1.0 / (rope["rope_theta"] ** _exponents(dim)), 1.0


class RotaryEmbedding(nn.Module):
    """cos and sin [B, S, R] of positions, computed in fp32 and cast to the activations' dtype."""

    inv_freq: torch.Tensor

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__()
        self.config = config
        # a plain attribute, kept in fp32 on the CPU: `model.to(bfloat16)` must not round it, nor the meta device eat it
        with torch.device("cpu"):
            self.frequencies, self.attention_factor = rope_frequencies(config)
        self._longest = config.max_position_embeddings
        self._running = self.frequencies

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = self._for_length(position_ids).to(hidden.device)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (
            (angles.cos() * self.attention_factor).to(hidden.dtype),
            (angles.sin() * self.attention_factor).to(hidden.dtype),
        )

    def _for_length(self, position_ids: torch.Tensor) -> torch.Tensor:
        rope = self.config.rope_parameters
        if rope["rope_type"] == "longrope":
            length = int(position_ids.max()) + 1
            return rope_frequencies(self.config, length)[0]
        if rope["rope_type"] == "dynamic":
            # the longest length met so far rules, until a sequence fits the trained length again
            length, trained = int(position_ids.max()) + 1, self.config.max_position_embeddings
            if length > self._longest:
                self._longest, self._running = length, rope_frequencies(self.config, length)[0]
            if length < trained < self._longest:
                self._longest, self._running = trained, self.frequencies
            return self._running
        return self.frequencies


class Rotation(nn.Module):
    """Rotates the first R lanes (half-split pairs), passes the rest; a module, so that a hook sees what was rotated."""

    def forward(self, x_BHSD: torch.Tensor, cos_BSR: torch.Tensor, sin_BSR: torch.Tensor) -> torch.Tensor:
        cos, sin = cos_BSR.unsqueeze(1), sin_BSR.unsqueeze(1)
        width = cos.shape[-1]
        rotated, tail = x_BHSD[..., :width], x_BHSD[..., width:]
        half = width // 2
        quarter_turn = torch.cat((-rotated[..., half:], rotated[..., :half]), dim=-1)
        return torch.cat((rotated * cos + quarter_turn * sin, tail), dim=-1)


def rope_tables(
    config: NemotronConfig, num_positions: int, dtype: torch.dtype = torch.float32, *, max_seq_len: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin tables [P, R/2] of positions 0 to P - 1, computed in fp32 and cast.

    Args:
        num_positions: P.
        max_seq_len: the longest sequence that will run; P may be larger, for positions that hold no token.

    Raises:
        GraphError: a RoPE type whose frequencies depend on the run-time length, and a ``max_seq_len`` past the length
            up to which they are constant.
    """
    longest = num_positions if max_seq_len is None else max_seq_len
    rope = config.rope_parameters
    limits = {
        "dynamic": config.max_position_embeddings,
        "longrope": rope.get("original_max_position_embeddings", config.max_position_embeddings),
    }
    limit = limits.get(rope["rope_type"])
    if limit is not None and longest > limit:
        raise GraphError(
            f"rope_type {rope['rope_type']} with a max-seq-len of {longest}",
            f"at most {limit}, up to which its frequencies are constant (they depend on the run-time length beyond)",
            f"build with --max-seq-len {limit}",
            where="--max-seq-len",
        )
    frequencies, factor = rope_frequencies(config)
    angles = torch.arange(num_positions).float()[:, None] * frequencies
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
