"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).

A draw depends on its counter and key alone, so host and device samplers agree and nothing has to be carried along.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["gumbel_noise", "philox4x32"]

# words 0 and 2 of the counter run in one array, words 1 and 3 in another
_MULTIPLIERS_21 = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL_21 = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
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
    counter_4N = np.asarray(counter_N4, np.uint64).T
    even_2N, odd_2N = counter_4N[0::2], counter_4N[1::2]
    key_21 = np.array([[key[0]], [key[1]]], np.uint64)
    for _ in range(_ROUNDS):
        product_2N = even_2N * _MULTIPLIERS_21
        even_2N = (product_2N >> _HALF)[::-1] ^ odd_2N ^ key_21
        odd_2N = (product_2N & _MASK)[::-1]
        key_21 = (key_21 + _WEYL_21) & _MASK
    return np.stack((even_2N, odd_2N), axis=1).reshape(4, -1).T.astype(np.uint32)


def gumbel_noise(seed: int, row: int, step: int, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each token of one row at one step.

    The counter is (token // 4, step, row, 0), the lane token % 4, the key the two halves of the 64-bit seed. Word x
    gives u = (x + 1/2) / 2^32, which lies inside (0, 1), and the noise is -log(-log u).
    """
    # many tokens share counters: make all there are once; few are made one by one
    shared = len(token_ids) > token_ids.max() // 4
    blocks = np.arange(token_ids.max() // 4 + 1) if shared else token_ids // 4
    counter_N4 = np.zeros((len(blocks), 4), np.uint64)
    counter_N4[:, 0], counter_N4[:, 1], counter_N4[:, 2] = blocks, step, row
    words_N4 = philox4x32(counter_N4, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    place = token_ids // 4 if shared else np.arange(len(token_ids))
    u = (words_N4[place, token_ids % 4] + 0.5) * 2.0**-32
    return -np.log(-np.log(u))
