"""The kernels of projections and of the greedy choice under Triton's interpreter, beside definitions."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from support.linear_kernels import LinearCase, definition, linear_inputs, run_argmax, run_linear_interpreted

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")

CASES = {
    "residual, one row": LinearCase(B=1, inputs=2048, outputs=24),
    "residual, one row, odd sizes, bias": LinearCase(B=1, inputs=1100, outputs=13, bias=True),
    "residual, two rows": LinearCase(B=2, inputs=384, outputs=32),
    "residual, three rows, odd sizes, bias": LinearCase(B=3, inputs=300, outputs=21, bias=True),
    "residual, five tokens": LinearCase(B=1, S=5, inputs=64, outputs=16),
    "residual, more rows than a block": LinearCase(B=11, inputs=140, outputs=17),
    "norm, one row": LinearCase(B=1, inputs=1024, outputs=24, normed=True),
    "norm, one row past the statistics' tile": LinearCase(B=1, inputs=4900, outputs=9, normed=True, bias=True),
    "norm, one row, relu\u00b2": LinearCase(
        B=1, inputs=96, outputs=40, normed=True, activation="relu_squared", epsilon=1e-3
    ),
    "norm, one row, float32": LinearCase(B=1, inputs=130, outputs=50, normed=True, output="float32"),
    "norm, few features": LinearCase(B=2, inputs=5, outputs=3, normed=True, epsilon=0.1),
    "norm, two rows, relu\u00b2, bias": LinearCase(
        B=2, inputs=256, outputs=48, normed=True, activation="relu_squared", bias=True
    ),
    "norm, seven rows past the statistics' tile": LinearCase(B=7, inputs=4900, outputs=20, normed=True),
    "norm, eight rows, float32": LinearCase(B=8, inputs=128, outputs=33, normed=True, output="float32", bias=True),
    "norm, rows and tokens": LinearCase(B=3, S=4, inputs=200, outputs=18, normed=True),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("name", CASES)
def test_projections_are_their_definitions(
    interpreter: ProcessPoolExecutor, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    got, expected = interpreter.submit(run_linear_interpreted, CASES[name], dtype).result()
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("rows", [1, 3])
def test_the_blocks_of_many_features_give_the_same(interpreter: ProcessPoolExecutor, rows: int) -> None:
    case = LinearCase(B=rows, inputs=1100, outputs=131, normed=True, output="float32")
    got, expected = interpreter.submit(run_linear_interpreted, case, torch.float16, wide=True).result()
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_the_norm_is_the_one_of_stored_weights() -> None:
    """Not vacuous: another gamma, or no mean, is far outside the tolerance."""
    case = LinearCase(B=1, inputs=1024, outputs=24, normed=True)
    x, norm_weight, norm_bias, weight = linear_inputs(case, torch.float32)
    right = definition(case, (x, norm_weight, norm_bias, weight))
    for wrong in (
        definition(case, (x, norm_weight - 1, norm_bias, weight)),
        torch.nn.functional.rms_norm(x, (1024,), norm_weight + 1, 1e-5) @ weight.T,
    ):
        assert (wrong - right).abs().max() > 0.1 * right.abs().max()


def _logits(rows: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(vocab).normal(size=(rows, vocab)).astype(np.float32)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 7), (2, 1024), (2, 5003), (1, 20000)])
def test_argmax_is_numpy_s(interpreter: ProcessPoolExecutor, rows: int, vocab: int) -> None:
    logits = _logits(rows, vocab)
    got = interpreter.submit(run_argmax, logits).result()
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, logits.argmax(-1))


def test_argmax_of_equal_logits_is_the_lowest(interpreter: ProcessPoolExecutor) -> None:
    logits = _logits(6, 9000)
    logits[0] = 0.0
    # in one lane of a block, in two lanes, and in two parts
    logits[1, [1500, 2524]] = logits[2, [3, 4]] = logits[3, [8999, 17]] = 9.0
    logits[4] = -np.inf
    logits[5, [70, 5000]] = np.inf
    got = interpreter.submit(run_argmax, logits).result()
    assert got.tolist() == [0, 1500, 3, 17, 0, 70]


def test_argmax_of_nan_is_a_token(interpreter: ProcessPoolExecutor) -> None:
    logits = _logits(2, 3000)
    logits[0, 2500] = np.nan
    logits[1] = np.nan
    assert interpreter.submit(run_argmax, logits).result().tolist() == [2500, 0]
