"""The kernels that find the largest logits, under Triton's interpreter, beside numpy."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from nemotron_plugins.launches.candidates import candidates_merge_rule, candidates_rule, tournament
from nemotron_runtime.sampling.device import Candidates, find_candidates
from support.candidate_kernels import random_logits, run_candidates

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")

COUNT = 128


def check(found: Candidates, logits: np.ndarray, temperature: float, count: int) -> None:
    expected = find_candidates(logits, min(count, logits.shape[1]), temperature)
    assert (found.ids.dtype, found.logits.dtype, found.log_sum.dtype) == (np.int64, np.float32, np.float64)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_allclose(found.log_sum, expected.log_sum, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("rows", "vocab", "temperature"),
    [(1, 1, 1.0), (2, 100, 0.7), (3, 128, 1.3), (8, 129, 1.0), (1, 2048, 0.2), (2, 5003, 1.0), (1, 33000, 0.8)],
)
def test_they_are_numpy_s(interpreter: ProcessPoolExecutor, rows: int, vocab: int, temperature: float) -> None:
    logits = random_logits(rows, vocab)
    check(interpreter.submit(run_candidates, logits, temperature).result(), logits, temperature, COUNT)


@pytest.mark.parametrize("vocab", [9, 32, 33, 129, 600])
def test_any_number_of_launches(interpreter: ProcessPoolExecutor, vocab: int) -> None:
    """Of 32 keys and 8 candidates: one launch for 32 logits, four for 600."""
    logits = random_logits(3, vocab, seed=1)
    check(interpreter.submit(run_candidates, logits, 0.9, log_block=5).result(), logits, 0.9, 8)


def test_of_equal_logits_the_lowest_come_first(interpreter: ProcessPoolExecutor) -> None:
    logits = random_logits(4, 2500, seed=2)
    logits[0] = -3.25
    logits[1] = np.where(np.arange(2500) % 2, 0.0, -0.0)
    # the first and last of a part, and a part behind it
    logits[2, [0, 2047, 2048, 2499]] = 50.0
    logits[3] = np.round(logits[3])
    found = interpreter.submit(run_candidates, logits, 1.0).result()
    check(found, logits, 1.0, COUNT)
    assert found.ids[0].tolist() == found.ids[1].tolist() == list(range(COUNT))
    assert found.ids[2, :4].tolist() == [0, 2047, 2048, 2499]


def test_infinities_and_nan_are_tokens(interpreter: ProcessPoolExecutor) -> None:
    logits = random_logits(5, 2500, seed=3)
    logits[0] = -np.inf
    logits[1, 3:] = -np.inf
    logits[2, [2400, 7]] = np.nan, np.inf
    logits[3] = np.nan
    logits[4, ::2] = -np.inf
    found = interpreter.submit(run_candidates, logits, 0.5).result()
    check(found, logits, 0.5, COUNT)
    assert found.ids[0].tolist() == list(range(COUNT)), "no lane behind the vocabulary"
    assert found.ids[2, :2].tolist() == [7, 2400]
    assert not np.isnan(found.logits).any()


def test_every_float_comes_back_as_it_was(interpreter: ProcessPoolExecutor) -> None:
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    logits = np.array([[1.5, -huge, tiny, -tiny, huge, -1.5, 1e-30, np.nextafter(np.float32(1.5), 2)]], np.float32)
    found = interpreter.submit(run_candidates, logits, 1.0).result()
    assert found.logits.tolist() == [sorted(logits[0].tolist(), reverse=True)]


def test_a_low_temperature_rounds_scores_as_the_host_does(interpreter: ProcessPoolExecutor) -> None:
    # each score is a few thousand: rounded otherwise, their differences are off by more than the sum's rounding
    logits = (30 + np.random.default_rng(4).random((2, 2500)) * 0.1).astype(np.float32)
    check(interpreter.submit(run_candidates, logits, 0.013).result(), logits, 0.013, COUNT)


@pytest.mark.parametrize(
    ("vocab", "parts"), [(1, (1,)), (2048, (1,)), (2049, (2, 1)), (32768, (16, 1)), (256000, (125, 8, 1))]
)
def test_parts_of_a_tournament(vocab: int, parts: tuple[int, ...]) -> None:
    launch = candidates_rule(vocab=vocab)
    sizes = int(launch.constexprs["LOG_BLOCK"]), int(launch.constexprs["LOG_COUNT"])
    assert tournament(vocab, *sizes) == parts
    assert launch.grid_of(B=3) == (3, parts[0])
    assert candidates_merge_rule().grid_of(B=3, P=8) == (3, 8)
    assert {name: candidates_merge_rule().constexprs[name] for name in ("LOG_BLOCK", "LOG_COUNT")} == dict(
        zip(("LOG_BLOCK", "LOG_COUNT"), sizes, strict=True)
    )
