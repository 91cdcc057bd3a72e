"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).

A draw depends on its counter and key alone, so host and device samplers agree and nothing has to be carried along.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["gumbel_argmax", "gumbel_noise", "philox4x32"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10
_LANES = 4
_ONES = np.uint64(2**32 - 1)
# so few numbers are done before a bound of them pays
_FEW = 2048


def philox4x32(counter_N4: npt.ArrayLike, key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Four random words for each counter.

    Args:
        counter_N4: counters of four 32-bit words.
        key: two 32-bit words.

    Returns:
        uint32 [N, 4].
    """
    words = _rounds([np.array(word, np.uint64) for word in np.asarray(counter_N4, np.uint64).T], key)
    return np.stack(words, axis=1).astype(np.uint32)


def _rounds(counter: list[npt.NDArray[np.uint64]], key: tuple[int, int]) -> list[npt.NDArray[np.uint64]]:
    """The words of each counter, given word by word, in its place: whole arrays, and none made anew in a round."""
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = np.uint64(key[0]), np.uint64(key[1])
    product_0, product_2 = np.empty_like(word_0), np.empty_like(word_0)
    for _ in range(_ROUNDS):
        np.multiply(word_0, _MULTIPLIERS[0], out=product_0)
        np.multiply(word_2, _MULTIPLIERS[1], out=product_2)
        np.right_shift(product_2, _HALF, out=word_0)
        word_0 ^= word_1
        word_0 ^= key_0
        np.right_shift(product_0, _HALF, out=word_2)
        word_2 ^= word_3
        word_2 ^= key_1
        np.bitwise_and(product_2, _MASK, out=word_1)
        np.bitwise_and(product_0, _MASK, out=word_3)
        key_0, key_1 = (key_0 + _WEYL[0]) & _MASK, (key_1 + _WEYL[1]) & _MASK
    return [word_0, word_1, word_2, word_3]


def gumbel_noise(seed: int, number: int, step: int, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each token of one answer at one step.

    The counter is (token // 4, step, number, 0), with the answer's number in its request, the lane token % 4, the key
    the two halves of the 64-bit seed. Word x gives u = (x + 1/2) / 2^32, which lies inside (0, 1), and the noise is
    -log(-log u).
    """
    return _noise(_words(seed, number, step, token_ids))


def gumbel_argmax(
    scores: npt.NDArray[np.float32], seed: int, number: int, step: int, token_ids: npt.NDArray[np.int64]
) -> int:
    """``(scores + gumbel_noise(…)).argmax()``, of many tokens without the noise of most.

    -log u is at least 1 - u, so that the noise is at most -log(1 - u), one logarithm in float32. It is close where
    noise is large: few tokens other than the one that it makes largest can be the choice.

    Args:
        scores: of each token; a draw from their softmax is the result.
        seed: see :func:`gumbel_noise`, as for the others.
        number: see there.
        step: see there.
        token_ids: see there.

    Returns:
        An index of ``token_ids``.
    """
    words = _words(seed, number, step, token_ids)
    left = np.arange(len(words)) if len(words) < _FEW else _contenders(scores, words)
    return int(left[(scores[left] + _noise(words[left])).argmax()])


def _contenders(scores: npt.NDArray[np.float32], words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of those whose score and bound of the noise reach the sum of the likeliest of them."""
    bound = ((_ONES - words).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    np.log(bound, out=bound)
    np.subtract(scores, bound, out=bound)
    likely = int(bound.argmax())
    least = scores[likely] + _noise(words[likely : likely + 1])[0]
    if not np.isfinite(least):
        return np.arange(len(words))
    # float32 rounds less than this away
    return np.flatnonzero(bound >= least - (1e-4 + 1e-5 * abs(least)))


def _words(seed: int, number: int, step: int, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The random word of each token."""
    # many tokens share counters: make all there are once; few are made one by one
    shared = len(token_ids) > token_ids.max() // _LANES
    blocks = np.arange(token_ids.max() // _LANES + 1) if shared else token_ids // _LANES
    first = blocks.astype(np.uint64)
    counter = [first, *(np.full_like(first, word) for word in (step, number, 0))]
    lanes = _rounds(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    if not shared:
        return np.choose(token_ids % _LANES, lanes)
    words = np.stack(lanes, axis=1).reshape(-1)
    # without a filter these are all tokens, in order
    return words[: len(token_ids)] if _counts_up(token_ids) else words[token_ids]


def _noise(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    noise = words.astype(np.float64)
    noise += 0.5
    noise *= 2.0**-32
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise


def _counts_up(token_ids: npt.NDArray[np.int64]) -> bool:
    return bool((token_ids == np.arange(len(token_ids))).all())
