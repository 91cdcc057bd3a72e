"""Greedy ``generate`` and the eager session against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from nemotron_runtime.engine.engine import Engine
from support.models import ODD_CONFIGS, causal_pair, config_dict, oracle_config, token_ids

from nemotron_export.model.executor import EagerExecutor

configs = pytest.mark.parametrize("changes", ODD_CONFIGS.values(), ids=ODD_CONFIGS.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def _oracle_generate(oracle: Any, ids: torch.Tensor, mask: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return oracle.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **arguments)


@configs
@dtypes
@implementations
def test_greedy_tokens(changes: dict[str, Any], dtype: torch.dtype, implementation: str) -> None:
    ours, oracle = causal_pair(config_dict(**changes), dtype, implementation)
    ids = token_ids(2, 16)
    expected = _oracle_generate(oracle, ids, torch.ones_like(ids), max_new_tokens=16, eos_token_id=3)
    found = ours.generate(ids, max_new_tokens=16, eos_token_id=3, pad_token_id=0)
    assert found.shape[1] > ids.shape[1]
    assert torch.equal(found, expected)


@implementations
def test_greedy_tokens_behind_a_prompt_past_1000(implementation: str) -> None:
    ours, oracle = causal_pair(config_dict(head_dim=32), torch.float32, implementation)
    ids = token_ids(1, 1200)
    expected = _oracle_generate(oracle, ids, torch.ones_like(ids), max_new_tokens=64, eos_token_id=None)
    assert torch.equal(ours.generate(ids, max_new_tokens=64, eos_token_id=[]), expected)


@implementations
def test_greedy_tokens_of_left_padded_rows(implementation: str) -> None:
    ours, oracle = causal_pair(config_dict(head_dim=32), torch.float32, implementation)
    ids = token_ids(3, 12) % 90 + 5
    ids[0, :4] = 0
    ids[2, :9] = 0
    mask = (ids != 0).long()
    expected = _oracle_generate(oracle, ids, mask, max_new_tokens=24, eos_token_id=[7, 11])
    assert torch.equal(ours.generate(ids, mask, max_new_tokens=24, eos_token_id=[7, 11], pad_token_id=0), expected)
    # the mask follows from the pad token
    assert torch.equal(ours.generate(ids, max_new_tokens=24, eos_token_id=[7, 11], pad_token_id=0), expected)


@pytest.mark.parametrize("arguments", [{"max_length": 20}, {"max_new_tokens": 9, "min_new_tokens": 9}, {}], ids=str)
@pytest.mark.parametrize("eos", [None, list(range(0, 97, 3))], ids=["no-eos", "many-eos"])
def test_lengths(arguments: dict[str, Any], eos: list[int] | None) -> None:
    ours, oracle = causal_pair(config_dict(eos_token_id=None))
    ids = token_ids(2, 7)
    expected = _oracle_generate(oracle, ids, torch.ones_like(ids), eos_token_id=eos, **arguments)
    assert torch.equal(ours.generate(ids, eos_token_id=eos, pad_token_id=0, **arguments), expected)


def test_repetition_penalty() -> None:
    ours, oracle = causal_pair(config_dict())
    ids = token_ids(2, 7)
    arguments: dict[str, Any] = {"max_new_tokens": 24, "repetition_penalty": 1.3}
    expected = _oracle_generate(oracle, ids, torch.ones_like(ids), eos_token_id=None, **arguments)
    assert torch.equal(ours.generate(ids, eos_token_id=[], **arguments), expected)


@dtypes
@implementations
def test_session_equals_a_dynamic_cache(dtype: torch.dtype, implementation: str) -> None:
    """Rows of one length give transformers' own logits, bit for bit, prefill in chunks included."""
    values = config_dict(head_dim=32)
    ours, oracle = causal_pair(values, dtype, implementation)
    ids = token_ids(2, 12)
    cache = transformers.DynamicCache(config=oracle_config(values))
    session = Engine(EagerExecutor(ours, max_batch=2, max_seq_len=32, prefill_chunk=5))
    session.reset(2, 14)
    found = session.prefill_at(list(ids[:, :10].numpy()), [np.arange(10)] * 2)
    with torch.no_grad():
        expected = torch.cat(
            [oracle(ids[:, at : at + 5], past_key_values=cache).logits for at in range(0, 10, 5)], dim=1
        )
        assert np.array_equal(np.stack(found), expected.float().numpy())
        for step in (10, 11):
            token = ids[:, step : step + 1]
            expected = oracle(token, past_key_values=cache).logits[:, -1]
            assert np.array_equal(session.decode(token[:, 0].numpy()).logits, expected.float().numpy())
