"""Philox4x32-10 against the known answers of Random123."""

from __future__ import annotations

import numpy as np
import pytest
from nemotron_runtime.sampling.philox import gumbel_argmax, gumbel_noise, philox4x32

# kat_vectors of Random123: counter, key, output
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert philox4x32([counter], key)[0].tolist() == expected


def test_many_counters_at_once_equal_one_at_a_time():
    counters = np.random.default_rng(0).integers(0, 2**32, (50, 4))
    together = philox4x32(counters, (7, 9))
    assert (together == np.concatenate([philox4x32([c], (7, 9)) for c in counters])).all()


def test_noise_uses_counter_lane_and_both_halves_of_the_seed():
    ids = np.array([0, 1, 5, 4, 70_001])
    seed = (3 << 32) | 11
    words = philox4x32([[token // 4, 13, 6, 0] for token in ids], (11, 3))
    u = (words[np.arange(5), ids % 4] + 0.5) / 2**32
    np.testing.assert_array_equal(gumbel_noise(seed, 6, 13, ids), -np.log(-np.log(u)))


def test_noise_is_standard_gumbel():
    noise = gumbel_noise(5, 0, 0, np.arange(200_000))
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.03


def test_a_subset_of_tokens_has_the_same_noise():
    whole = gumbel_noise(5, 2, 9, np.arange(1000))
    some = np.array([999, 3, 4, 500])
    np.testing.assert_array_equal(gumbel_noise(5, 2, 9, some), whole[some])


@pytest.mark.parametrize("ids", [np.arange(1), np.arange(1003), np.arange(1003)[::-1], np.array([7]), np.array([8, 2])])
def test_all_tokens_some_and_one_have_the_noise_of_the_definition(ids):
    words = philox4x32([[token // 4, 13, 6, 0] for token in ids], (11, 3))
    u = (words[np.arange(len(ids)), ids % 4] + 0.5) / 2**32
    np.testing.assert_array_equal(gumbel_noise((3 << 32) | 11, 6, 13, ids), -np.log(-np.log(u)))


@pytest.mark.parametrize("count", [1, 100, 2047, 2048, 50_001])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 30.0])
def test_the_largest_of_scores_and_noise(count, spread):
    rng = np.random.default_rng(count)
    ids = np.sort(rng.choice(60_000, count, replace=False)) if count % 2 else np.arange(count)
    for step in range(20):
        scores = (rng.normal(size=count) * spread).astype(np.float32)
        whole = scores + gumbel_noise(5, 2, step, ids)
        assert gumbel_argmax(scores, 5, 2, step, ids) == whole.argmax()


def test_it_is_the_largest_also_among_large_equal_and_infinite_scores():
    ids = np.arange(10_000)
    noise = gumbel_noise(1, 0, 0, ids)
    for scores in (
        np.full(10_000, 3e4),
        np.full(10_000, -3e4),
        np.where(ids % 3, -np.inf, 2.0),
        np.full(10_000, -np.inf),
    ):
        scores = scores.astype(np.float32)
        assert gumbel_argmax(scores, 1, 0, 0, ids) == (scores + noise).argmax()
    scores = np.zeros(10_000, np.float32)
    scores[[77, 5000]] = np.inf
    assert gumbel_argmax(scores, 1, 0, 0, ids) == 77


def test_what_is_left_to_do_in_full_is_little(monkeypatch):
    from nemotron_runtime.sampling import philox

    done, plain = [], philox._noise
    monkeypatch.setattr(philox, "_noise", lambda words: (done.append(len(words)), plain(words))[1])
    rng = np.random.default_rng(3)
    for step in range(50):
        gumbel_argmax(rng.normal(size=100_000).astype(np.float32), 9, 0, step, np.arange(100_000))
    assert sum(done) < 50 * 100
