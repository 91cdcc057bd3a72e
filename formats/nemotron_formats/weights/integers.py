"""Integer codes in groups of input features that share a scale: what int8 and int4 have in common.

Shapes: R rows (output features), I input features, n groups of a row, g features of a group, b bytes of its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nemotron_formats.weights.weight_format import Arrays, Operand, WeightFormat

__all__ = ["GroupedIntegers"]

_F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GroupedIntegers(WeightFormat):
    """Symmetric integers: a weight is (code - 2^(bits - 1)) x scale, the scale of its group in float32.

    Operands ``codes`` uint8 [O, n, b] and ``scales`` float32 [O, n], in the layout of com.microsoft MatMulNBits.
    Subclasses fix the bits, and say which scales are tried.

    Zero points were measured and left out: in groups of 32 the perplexity is the same within 0.3 %, in groups of 128
    they would gain 0.7 %, less than smaller groups do, and they lengthen the kernels' inner loop.

    Attributes:
        group_size: input features that share a scale.
    """

    group_size: int

    bits: ClassVar[int]
    # scales tried for a group, as shares of the one that its largest value asks for
    shares: ClassVar[tuple[float, ...]]

    @property
    def method(self) -> str:
        return "scale search" if len(self.shares) > 1 else "round to nearest"

    def groups(self, features: int) -> int:
        """Groups of a row; the last one is padded with zeros."""
        return -(-features // self.group_size)

    def operands(self, O: int, I: int) -> tuple[Operand, ...]:  # noqa: E741
        n = self.groups(I)
        return (
            Operand("codes", "uint8", (O, n, self.group_size * self.bits // 8)),
            Operand("scales", "float32", (O, n)),
        )

    def encode(self, weight_RI: _F32) -> dict[str, npt.NDArray[Any]]:
        """See :meth:`WeightFormat.encode`.

        The group's value of largest magnitude takes the code that has no partner of the other sign, so that all codes
        are used. Where several scales are tried, each one's codes get the scale that fits them best in the
        least-squares sense, <code, w> / <code, code>, and the codes of least squared error win.

        Four bits: the even feature in the low half of a byte. Features past I hold the code of zero.
        """
        R, I = weight_RI.shape  # noqa: E741
        g, n = self.group_size, self.groups(I)
        if n * g != I:
            padded = np.zeros((R, n * g), np.float32)
            padded[:, :I] = weight_RI
            weight_RI = padded
        w_Rng = weight_RI.reshape(R, n, g)
        low = 2 ** (self.bits - 1)
        high_Rn, least_Rn = w_Rng.max(-1), w_Rng.min(-1)
        step_Rn = np.where(high_Rn > -least_Rn, high_Rn, least_Rn) / np.float32(-low)
        # a scale whose inverse overflows belongs to a group that is zero for any purpose
        step_Rn[np.abs(step_Rn) < np.finfo(np.float32).tiny * 4] = 1
        code_Rng = np.empty_like(w_Rng)
        if len(self.shares) == 1:
            scale_Rn = step_Rn
            _round(w_Rng, step_Rn, low, code_Rng)
        else:
            scale_Rn, share_Rn = _search(w_Rng, step_Rn, low, self.shares, code_Rng)
            _round(w_Rng, step_Rn * share_Rn, low, code_Rng)
        code_Rng += low
        codes: npt.NDArray[np.uint8] = code_Rng.astype(np.uint8)
        if self.bits == 4:
            codes = codes[..., ::2] | (codes[..., 1::2] << np.uint8(4))
        return {"codes": codes, "scales": scale_Rn}

    def decode(self, arrays: Arrays, I: int) -> _F32:  # noqa: E741
        codes, scale_Rn = arrays["codes"], arrays["scales"]
        if self.bits == 4:
            codes = np.stack((codes & np.uint8(15), codes >> np.uint8(4)), axis=-1).reshape(*codes.shape[:-1], -1)
        w_Rng = (codes.astype(np.float32) - 2 ** (self.bits - 1)) * scale_Rn[..., None]
        weight_RI: _F32 = w_Rng.reshape(len(w_Rng), -1)[:, :I]
        return weight_RI


def _round(w_Rng: _F32, step_Rn: _F32, low: int, out: _F32) -> None:
    np.multiply(w_Rng, (1 / step_Rn)[..., None], out=out)
    np.rint(out, out=out)
    np.clip(out, -low, low - 1, out=out)


def _search(w_Rng: _F32, step_Rn: _F32, low: int, shares: tuple[float, ...], code_Rng: _F32) -> tuple[_F32, _F32]:
    """The best scale of each group, and the share of its step whose codes it goes with."""
    scale_Rn, share_Rn = step_Rn.copy(), np.ones_like(step_Rn)
    best_Rn = np.full_like(step_Rn, -1)
    for share in shares:
        _round(w_Rng, step_Rn * np.float32(share), low, code_Rng)
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
