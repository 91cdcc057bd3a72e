"""attention 'flash_attention' on the CPU beside sdpa, bit for bit where both run the same kernel, and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import ODD_CONFIGS, random_model, token_ids

import nemotron_export
from nemotron_export.model import DynamicCache, NemotronForCausalLM, StaticCache

# of the largest logit; bfloat16 keeps 8 bits
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
CHUNKS = ((0, 5), (5, 6), (6, 10), (10, 13))
# more than 256: sdpa repeats the keys of grouped heads there, which rounds otherwise
WIDE = "head-dim-320"

cases = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def _pair(name: str, dtype: torch.dtype, other: str) -> tuple[NemotronForCausalLM, NemotronForCausalLM]:
    changes = ODD_CONFIGS[name]
    return random_model(dtype, "flash_attention", **changes), random_model(dtype, other, **changes)


def _close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max())


@torch.no_grad()
def _chunks(model: NemotronForCausalLM, cache: Any) -> list[torch.Tensor]:
    ids = token_ids(3, 13)
    return [model(ids[:, start:end], past_key_values=cache).logits for start, end in CHUNKS]


@cases
@pytest.mark.parametrize("name", ODD_CONFIGS)
@torch.no_grad()
def test_without_a_cache(name: str, dtype: torch.dtype) -> None:
    flash, sdpa = _pair(name, dtype, "sdpa")
    eager = random_model(dtype, "eager", **ODD_CONFIGS[name])
    ids = token_ids(3, 13)
    left, right, packed = torch.ones_like(ids), torch.ones_like(ids), torch.arange(13).expand(3, -1) % 6
    left[1, :4] = 0
    right[2, 9:] = 0
    for inputs in ({}, {"attention_mask": left}, {"attention_mask": right}, {"position_ids": packed}):
        ours = flash(ids, use_cache=False, **inputs).logits
        assert torch.equal(ours, sdpa(ids, use_cache=False, **inputs).logits)
        seen = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        assert _close(ours[seen], eager(ids, use_cache=False, **inputs).logits[seen], dtype)


@cases
@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_behind_a_past(name: str, dtype: torch.dtype) -> None:
    flash, sdpa = _pair(name, dtype, "sdpa")
    grown = _chunks(flash, DynamicCache())
    for ours, theirs in zip(grown, _chunks(sdpa, DynamicCache()), strict=True):
        assert _close(ours, theirs, dtype) if name == WIDE else torch.equal(ours, theirs)
    # the empty slots are cut off, where sdpa hides them by a mask
    for fixed, ours, theirs in zip(_chunks(flash, StaticCache(20)), grown, _chunks(sdpa, StaticCache(20)), strict=True):
        assert torch.equal(fixed, ours)
        assert _close(fixed, theirs, dtype)


@cases
@torch.no_grad()
def test_padded_rows_behind_a_past(dtype: torch.dtype) -> None:
    flash, sdpa = _pair("grouped", dtype, "sdpa")
    ids, mask = token_ids(2, 8), torch.ones(2, 8, dtype=torch.int64)
    mask[0, :3] = 0
    make: Callable[[], Any]
    for make in (DynamicCache, lambda: StaticCache(12)):
        caches = make(), make()
        for start, end in ((0, 5), (5, 6), (6, 8)):
            ours, theirs = (
                model(ids[:, start:end], mask[:, :end], past_key_values=cache).logits
                for model, cache in zip((flash, sdpa), caches, strict=True)
            )
            assert _close(ours, theirs, dtype)


@pytest.mark.parametrize("name", ["grouped", "one-kv-head", "rotary-96", "dynamic"])
def test_generated_tokens_are_those_of_sdpa(name: str) -> None:
    flash, sdpa = _pair(name, torch.float32, "sdpa")
    ids = token_ids(3, 9)
    for mask in (torch.ones_like(ids), torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 6 + [0] * 3])):
        ours, theirs = (model.generate(ids, mask, max_new_tokens=12, eos_token_id=[]) for model in (flash, sdpa))
        assert ours.shape == (3, 21)
        assert torch.equal(ours, theirs)


def test_from_pretrained_takes_the_name() -> None:
    folder = next(iter(nemotron_export.__path__)) + "/assets/demo"
    load = nemotron_export.AutoModelForCausalLM.from_pretrained
    flash, sdpa = (load(folder, attn_implementation=name) for name in ("flash_attention", "sdpa"))
    assert flash.model.attn_implementation == "flash_attention"
    ids = token_ids(1, 40, 4096)
    assert torch.equal(flash(ids).logits, sdpa(ids).logits)
