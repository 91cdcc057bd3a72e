"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).

A draw depends on its counter and key alone, so host and device samplers agree and nothing has to be carried along.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["gumbel_noise", "philox4x32"]

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter_N4: npt.ArrayLike, key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Four random words for each counter.

    Args:
        counter_N4: counters of four 32-bit words.
        key: two 32-bit words.

    Returns:
        uint32 [N, 4].
    """
    c0, c1, c2, c3 = (np.ascontiguousarray(word) for word in np.asarray(counter_N4, np.uint64).T)
    for number in range(_ROUNDS):
        k0 = np.uint64((key[0] + number * _WEYL_0) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + number * _WEYL_1) & 0xFFFFFFFF)
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> _HALF) ^ c1 ^ k0,
            product_1 & _MASK,
            (product_0 >> _HALF) ^ c3 ^ k1,
            product_0 & _MASK,
        )
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def gumbel_noise(seed: int, row: int, step: int, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each token of one row at one step.

    The counter is (token // 4, step, row, 0), the lane token % 4, the key the two halves of the 64-bit seed. Word x
    gives u = (x + 1/2) / 2^32, which lies inside (0, 1), and the noise is -log(-log u).
    """
    blocks, inverse = np.unique(token_ids // 4, return_inverse=True)
    counter_N4 = np.zeros((len(blocks), 4), np.uint64)
    counter_N4[:, 0], counter_N4[:, 1], counter_N4[:, 2] = blocks, step, row
    words_N4 = philox4x32(counter_N4, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    u = (words_N4[inverse, token_ids % 4] + 0.5) * 2.0**-32
    return -np.log(-np.log(u))
