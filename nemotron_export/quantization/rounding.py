"""Rounds rows of a weight to codes and scales, in the layout of com.microsoft MatMulNBits.

Shapes: R rows (output features), K input features, n groups of a row, g features of a group, b bytes of its codes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nemotron_export.quantization.scheme import Scheme

__all__ = ["quantize_rows"]

_F32 = npt.NDArray[np.float32]


def quantize_rows(weight_RK: _F32, scheme: Scheme) -> tuple[npt.NDArray[np.uint8], _F32]:
    """Codes uint8 [R, n, b] and scales float32 [R, n] of some rows; each row depends on itself alone.

    The group's value of largest magnitude takes the code that has no partner of the other sign, so that all codes are
    used. Where several scales are tried, each one's codes get the scale that fits them best in the least-squares
    sense, <code, w> / <code, code>, and the codes of least squared error win.

    Four bits: the even feature in the low half of a byte. Features past K hold the code of zero.
    """
    R, K = weight_RK.shape
    g = scheme.group_size
    n = scheme.groups(K)
    if n * g != K:
        padded = np.zeros((R, n * g), np.float32)
        padded[:, :K] = weight_RK
        weight_RK = padded
    w_Rng = weight_RK.reshape(R, n, g)
    low = 2 ** (scheme.bits - 1)
    high_Rn, least_Rn = w_Rng.max(-1), w_Rng.min(-1)
    step_Rn = np.where(high_Rn > -least_Rn, high_Rn, least_Rn) / np.float32(-low)
    # a scale whose inverse overflows belongs to a group that is zero for any purpose
    step_Rn[np.abs(step_Rn) < np.finfo(np.float32).tiny * 4] = 1
    code_Rng = np.empty_like(w_Rng)
    if len(scheme.candidates) == 1:
        scale_Rn = step_Rn
        _codes(w_Rng, step_Rn, low, code_Rng)
    else:
        scale_Rn, share_Rn = _search(w_Rng, step_Rn, low, scheme.candidates, code_Rng)
        _codes(w_Rng, step_Rn * share_Rn, low, code_Rng)
    code_Rng += low
    packed: npt.NDArray[np.uint8] = code_Rng.astype(np.uint8)
    if scheme.bits == 4:
        packed = packed[..., ::2] | (packed[..., 1::2] << np.uint8(4))
    return packed, scale_Rn


def _codes(w_Rng: _F32, step_Rn: _F32, low: int, out: _F32) -> None:
    np.multiply(w_Rng, (1 / step_Rn)[..., None], out=out)
    np.rint(out, out=out)
    np.clip(out, -low, low - 1, out=out)


def _search(w_Rng: _F32, step_Rn: _F32, low: int, shares: tuple[float, ...], code_Rng: _F32) -> tuple[_F32, _F32]:
    """The best scale of each group, and the share of its step whose codes it goes with."""
    scale_Rn, share_Rn = step_Rn.copy(), np.ones_like(step_Rn)
    best_Rn = np.full_like(step_Rn, -1)
    for share in shares:
        _codes(w_Rng, step_Rn * np.float32(share), low, code_Rng)
        along = np.einsum("rng,rng->rn", code_Rng, w_Rng)
        square = np.maximum(np.einsum("rng,rng->rn", code_Rng, code_Rng), 1)
        # |w - s c|^2 with the best s is |w|^2 - <c, w>^2 / <c, c>
        fitted = along / square
        gain = along * fitted
        better = gain > best_Rn
        best_Rn[better] = gain[better]
        share_Rn[better] = share
        # codes that are all zero fit any scale
        better &= fitted != 0
        scale_Rn[better] = fitted[better]
    return scale_Rn, share_Rn
