"""The GPU kernels on a GPU: no further from fp32 than the eager definitions in the same dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.plugin_kernels import (
    AttentionCase,
    RotaryCase,
    attention_inputs,
    reference_attention,
    run_attention,
    run_fused,
    run_update,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="the kernels need an NVIDIA GPU of compute capability 8.0 or more",
)

DTYPES = (torch.bfloat16, torch.float16)
# of the definition's own RMSE against fp32
RATIO = 1.05
# query heads, key/value heads, head_dim, rotary_dim of the Nemotron models
MODELS = {
    "minitron-4b": (24, 8, 128, 64),
    "nemotron-3-8b": (32, 32, 128, 64),
    "nemotron-4-340b": (96, 8, 192, 96),
    "narrow": (12, 4, 64, 32),
}


def _rmse(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 37])
@pytest.mark.parametrize("model", MODELS)
def test_packed_rotary_kv_cache_update_equals_its_definition_bit_for_bit(
    model: str, tokens: int, dtype: torch.dtype
) -> None:
    H, G, D, R = MODELS[model]
    case = RotaryCase(H=H, G=G, D=D, R=R, S=tokens, starts=(1030, 0, 77), T=1100)
    for got, expected in run_update(case, dtype, "cuda").values():
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("tokens", "starts"),
    [(1, (0, 511, 1500)), (1, (2047,)), (2, (600, 3)), (130, (0, 1001)), (513, (300,))],
    ids=["decode", "decode-one-row", "decode-two-tokens", "prefill", "prefill-long"],
)
def test_cached_attention_is_as_near_to_fp32_as_its_definition(
    model: str, tokens: int, starts: tuple[int, ...], dtype: torch.dtype
) -> None:
    H, G, D, _ = MODELS[model]
    case = AttentionCase(H=H, G=G, D=D, S=tokens, starts=starts, T=2100)
    inputs: Any = attention_inputs(case, dtype, "cuda")
    exact = reference_attention(inputs, torch.float32)
    got = run_attention(inputs)
    assert not got.isnan().any()
    assert _rmse(got, exact) <= RATIO * _rmse(reference_attention(inputs, dtype), exact)


@pytest.mark.parametrize("tokens", [1, 70])
def test_cached_attention_in_fp32_is_not_tf32(tokens: int) -> None:
    case = AttentionCase(H=6, G=2, D=96, S=tokens, starts=(1000, 5), T=1100)
    inputs: Any = attention_inputs(case, torch.float32, "cuda")
    exact = reference_attention(inputs, torch.float64)
    assert _rmse(run_attention(inputs), exact) <= 1e-6


@pytest.mark.parametrize("splits", [1, 2, 16, 64])
def test_any_number_of_splits_gives_the_same_attention(splits: int) -> None:
    case = AttentionCase(H=24, G=8, D=128, S=1, starts=(900, 0, 40), T=1024)
    inputs: Any = attention_inputs(case, torch.bfloat16, "cuda")
    exact = reference_attention(inputs, torch.float32)
    assert _rmse(run_attention(inputs, splits), exact) <= RATIO * _rmse(
        reference_attention(inputs, torch.bfloat16), exact
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("starts", [(0,), (511,), (1030, 0, 77), (2047, 1024, 1025, 3)], ids=str)
def test_rotation_update_and_attention_in_one_launch(model: str, starts: tuple[int, ...], dtype: torch.dtype) -> None:
    H, G, D, R = MODELS[model]
    for splits in (None, 1, 64):
        case = RotaryCase(H=H, G=G, D=D, R=R, S=1, starts=starts, T=2100)
        outputs = run_fused(case, dtype, "cuda", splits)
        got, same, exact = outputs.pop("out")
        assert not got.isnan().any()
        assert _rmse(got, exact) <= RATIO * _rmse(same, exact)
        for got, expected, _ in outputs.values():
            assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
