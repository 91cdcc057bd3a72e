"""What callers pass beside tokens: logits_to_keep, masks, positions, caches, autocast; bit-equal to transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import causal_pair, config_dict, token_ids
from support.oracles import assert_outputs_equal

implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])
VALUES = config_dict(head_dim=32)
IDS = token_ids(3, 8)


def _assert_equal(implementation: str, **inputs: Any) -> None:
    ours, oracle = causal_pair(VALUES, attn_implementation=implementation)
    with torch.no_grad():
        assert_outputs_equal(ours(**inputs), oracle(**inputs))


@pytest.mark.parametrize(
    "kept",
    [
        0,
        1,
        3,
        torch.tensor([0, 5, 2]),
        torch.tensor([[0, 1], [7, 7], [3, 2]]),
        torch.arange(8).remainder(3).eq(0).expand(3, -1),
    ],
    ids=["all", "last", "last-3", "positions", "positions-per-row", "mask"],
)
def test_logits_to_keep(kept: int | torch.Tensor) -> None:
    _assert_equal("sdpa", input_ids=IDS, logits_to_keep=kept)


@implementations
@pytest.mark.parametrize("use_cache", [None, True, False])
def test_right_padded_rows(implementation: str, use_cache: bool | None) -> None:
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    mask[2, 3:] = 0
    _assert_equal(implementation, input_ids=IDS, attention_mask=mask, use_cache=use_cache)


@implementations
def test_packed_sequences(implementation: str) -> None:
    """Without cache and mask, positions that start over mark sequences that do not see each other."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 1, 0, 1, 0, 1]])
    _assert_equal(implementation, input_ids=IDS, position_ids=positions, use_cache=False)


@implementations
def test_ready_made_mask(implementation: str) -> None:
    visible = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)).gt(0.5) | torch.eye(8).bool()
    mask = visible if implementation == "sdpa" else torch.zeros(visible.shape).masked_fill(~visible, -1e9)
    _assert_equal(implementation, input_ids=IDS, attention_mask=mask)


@implementations
def test_boolean_and_float_padding_masks(implementation: str) -> None:
    for dtype in (torch.bool, torch.float32):
        mask = torch.ones(IDS.shape, dtype=dtype)
        mask[1, :3] = 0
        _assert_equal(implementation, input_ids=IDS, attention_mask=mask)


@implementations
def test_autocast_on_the_cpu(implementation: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _assert_equal(implementation, input_ids=IDS, output_hidden_states=True)


def test_cache_position_gives_positions() -> None:
    ours, oracle = causal_pair(VALUES)
    positions = torch.arange(8) + 5
    with torch.no_grad():
        found = ours(IDS, cache_position=positions).logits
        expected = oracle(IDS, position_ids=positions[None].expand(3, -1)).logits
    assert torch.equal(found, expected)


def test_flags_of_the_config() -> None:
    values = {**VALUES, "output_hidden_states": True, "use_cache": False}
    ours, oracle = causal_pair(values)
    with torch.no_grad():
        found, expected = ours(IDS), oracle(IDS)
    assert_outputs_equal(found, expected)
    assert found.past_key_values is None
    assert len(found.hidden_states) == 3
