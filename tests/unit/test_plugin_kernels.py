"""The GPU kernels under Triton's interpreter, beside the eager definitions of their ops."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from support.plugin_kernels import AttentionCase, RotaryCase, run_fused_interpreted, run_interpreted

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")


ROTARY_CASES = {
    "decode, groups of 3": RotaryCase(H=24, G=8, D=128, R=64, S=1, starts=(1030,), T=1040),
    "rows of different lengths": RotaryCase(H=6, G=2, D=64, R=32, S=1, starts=(0, 7, 1500), T=1501),
    "one key/value head": RotaryCase(H=3, G=1, D=96, R=32, S=5, starts=(3, 0), T=11),
    "whole head rotated": RotaryCase(H=4, G=2, D=96, R=96, S=3, starts=(2,), T=8),
    "head_dim 192": RotaryCase(H=6, G=3, D=192, R=96, S=2, starts=(1, 1001), T=1003),
    "head_dim 80, several sequences": RotaryCase(H=6, G=1, D=80, R=40, S=4, starts=(5, 0, 2), T=9),
    "more tokens than a small launch": RotaryCase(H=3, G=3, D=64, R=32, S=40, starts=(1, 6), T=46),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ROTARY_CASES)
def test_packed_rotary_kv_cache_update_equals_its_definition_bit_for_bit(
    interpreter: ProcessPoolExecutor, name: str, dtype: torch.dtype
) -> None:
    outputs = interpreter.submit(run_interpreted, ROTARY_CASES[name], dtype).result()
    assert list(outputs) == ["q", "k_cache", "v_cache"]
    for got, expected in outputs.values():
        # the caches as a whole: slots that no token was written to are unchanged
        np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


ATTENTION_CASES = {
    "decode, one slot": AttentionCase(H=2, G=1, D=64, S=1, starts=(0,), T=5, splits=2),
    "decode, groups of 3, past 1000": AttentionCase(H=6, G=2, D=128, S=1, starts=(1037,), T=1100),
    "decode, unsplit": AttentionCase(H=6, G=1, D=64, S=1, starts=(70, 3), T=80, splits=1),
    "decode, rows of different lengths": AttentionCase(H=6, G=2, D=64, S=1, starts=(0, 31, 32, 161), T=200, splits=8),
    "decode, more splits than blocks": AttentionCase(H=3, G=1, D=96, S=1, starts=(40, 2), T=64, splits=16),
    "decode, head_dim 192, groups of 12": AttentionCase(H=12, G=1, D=192, S=1, starts=(75,), T=90, splits=4),
    "decode, head_dim 80, several sequences": AttentionCase(H=4, G=4, D=80, S=1, starts=(33, 9), T=50, splits=2),
    "decode, several tokens": AttentionCase(H=6, G=2, D=64, S=5, starts=(28, 0, 61), T=70, splits=4),
    "decode, large undefined": AttentionCase(H=6, G=2, D=64, S=1, starts=(45,), T=96, splits=2, undefined=1e4),
    "prefill, groups of 3": AttentionCase(H=6, G=2, D=64, S=67, starts=(0,), T=80),
    "prefill behind a past": AttentionCase(H=6, G=1, D=96, S=21, starts=(50, 3), T=90),
    "prefill, rows of different lengths": AttentionCase(H=2, G=2, D=80, S=45, starts=(100, 0, 1), T=150),
    "prefill, head_dim 192": AttentionCase(H=3, G=1, D=192, S=40, starts=(9,), T=49),
    "prefill past 1000": AttentionCase(H=3, G=1, D=64, S=33, starts=(1003,), T=1100),
    "prefill, large undefined": AttentionCase(H=3, G=1, D=64, S=35, starts=(5,), T=64, undefined=1e4),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_cached_attention_is_its_definition(
    interpreter: ProcessPoolExecutor, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    got, expected = interpreter.submit(run_interpreted, ATTENTION_CASES[name], dtype).result()["out"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


FUSED_CASES = {
    "groups of 3, past 1000": (RotaryCase(H=6, G=2, D=128, R=64, S=1, starts=(1037,), T=1100), None),
    "the first token": (RotaryCase(H=4, G=2, D=64, R=32, S=1, starts=(0,), T=4), 2),
    "unsplit, rows of different lengths": (RotaryCase(H=6, G=1, D=64, R=64, S=1, starts=(70, 3), T=80), 1),
    "the last slot": (RotaryCase(H=6, G=2, D=64, R=16, S=1, starts=(0, 31, 32, 199), T=200), 8),
    "head_dim 192, groups of 12": (RotaryCase(H=12, G=1, D=192, R=96, S=1, starts=(75,), T=90), 4),
    "head_dim 80, several sequences": (RotaryCase(H=4, G=4, D=80, R=40, S=1, starts=(33, 9), T=50), 2),
    "more splits than blocks, no groups": (RotaryCase(H=3, G=3, D=96, R=96, S=1, starts=(40, 2), T=64), 16),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("name", FUSED_CASES)
def test_rotation_update_and_attention_in_one_launch_are_their_definitions(
    interpreter: ProcessPoolExecutor, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    case, splits = FUSED_CASES[name]
    outputs = interpreter.submit(run_fused_interpreted, case, dtype, splits).result()
    got, expected = outputs.pop("out")
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    # bit for bit, and slots that no token was written to are unchanged
    for got, expected in outputs.values():
        np.testing.assert_array_equal(got, expected)
