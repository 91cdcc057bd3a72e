"""The reference path against transformers on the CPU: bit-equal, each kind of cache compared with its like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from support.models import ODD_CONFIGS, causal_pair, config_dict, oracle_config, token_ids

from nemotron_export.model import DynamicCache, StaticCache

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOTS = 24
# prefill, then cached steps: single tokens and one chunk; dynamic and longrope configs pass their trained length of 10
CHUNKS = (6, 1, 1, 3, 1, 2)

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])
caches = pytest.mark.parametrize("cache_kind", ["none", "dynamic", "static"])
configs = pytest.mark.parametrize("changes", ODD_CONFIGS.values(), ids=ODD_CONFIGS.keys())


def _caches(kind: str, values: dict[str, Any], slots: int = SLOTS) -> tuple[Any, Any]:
    if kind == "dynamic":
        return DynamicCache(), transformers.DynamicCache(config=oracle_config(values))
    return StaticCache(slots), transformers.StaticCache(config=oracle_config(values), max_cache_len=slots)


@torch.no_grad()
def _assert_steps_equal(
    values: dict[str, Any],
    dtype: torch.dtype,
    implementation: str,
    cache_kind: str,
    *,
    padding: tuple[int, ...] = (0, 0),
    start: int | None = None,
    chunks: tuple[int, ...] = CHUNKS,
    slots: int = SLOTS,
) -> None:
    """Feeds the same tokens to both models, chunk by chunk, and compares logits, hidden states and attentions.

    Args:
        padding: tokens of padding at the left of each row.
        start: the first position; None leaves position_ids to the models.
    """
    ours, oracle = causal_pair(values, dtype, implementation)
    ids = token_ids(len(padding), sum(chunks))
    mask = torch.ones_like(ids)
    for row, amount in enumerate(padding):
        mask[row, :amount] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0) + (start or 0)
    wants_positions = start is not None or any(padding)
    our_cache, oracle_cache = (None, None) if cache_kind == "none" else _caches(cache_kind, values, slots)
    begin = 0
    for size in chunks:
        end = begin + size
        inputs: dict[str, Any] = {"input_ids": ids[:, begin:end], "output_hidden_states": True}
        if cache_kind == "none":
            inputs = {"input_ids": ids[:, :end], "output_hidden_states": True, "use_cache": False}
        if implementation == "eager":
            inputs["output_attentions"] = True
        if any(padding):
            inputs["attention_mask"] = mask[:, :end]
        if wants_positions:
            inputs["position_ids"] = positions[:, :end] if cache_kind == "none" else positions[:, begin:end]
        found = ours(**inputs, past_key_values=our_cache)
        expected = oracle(**inputs, past_key_values=oracle_cache)
        assert torch.isfinite(expected.logits).all()
        assert found.logits.dtype == expected.logits.dtype
        assert torch.equal(found.logits, expected.logits), f"logits of tokens {begin} to {end}"
        assert len(found.hidden_states) == len(expected.hidden_states)
        assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
        if implementation == "eager":
            assert len(found.attentions) == len(expected.attentions) == len(ours.model.layers)
            assert all(map(torch.equal, found.attentions, expected.attentions))
        begin = end


@configs
@dtypes
@implementations
@caches
def test_prefill_and_cached_steps(
    changes: dict[str, Any], dtype: torch.dtype, implementation: str, cache_kind: str
) -> None:
    _assert_steps_equal(config_dict(**changes), dtype, implementation, cache_kind)


@configs
@dtypes
@implementations
@caches
def test_left_padded_rows(changes: dict[str, Any], dtype: torch.dtype, implementation: str, cache_kind: str) -> None:
    _assert_steps_equal(config_dict(**changes), dtype, implementation, cache_kind, padding=(3, 0, 5))


@configs
@dtypes
@implementations
@pytest.mark.parametrize("cache_kind", ["dynamic", "static"])
def test_positions_past_1000(changes: dict[str, Any], dtype: torch.dtype, implementation: str, cache_kind: str) -> None:
    _assert_steps_equal(config_dict(**changes), dtype, implementation, cache_kind, start=1500)


@pytest.mark.parametrize("changes", [{"head_dim": 32}, ODD_CONFIGS["rotary-96"]], ids=["wide-heads", "rotary-96"])
@dtypes
@implementations
@pytest.mark.parametrize("cache_kind", ["dynamic", "static"])
def test_a_prompt_longer_than_1000(
    changes: dict[str, Any], dtype: torch.dtype, implementation: str, cache_kind: str
) -> None:
    _assert_steps_equal(
        config_dict(**changes, num_hidden_layers=1),
        dtype,
        implementation,
        cache_kind,
        padding=(0,),
        chunks=(1100, 1, 1),
        slots=1200,
    )
