"""Which prompts a bundle is judged by."""

from __future__ import annotations

import numpy as np

from nemotron_export.parity.prompts import plan_prompts


def test_prompts_are_short_ones_and_one_past_1000_positions() -> None:
    plan = plan_prompts(1000, 4096)
    assert [len(ids) for ids in plan.prompts] == [5, 16, 33, 1200]
    assert plan.steps == 64
    assert plan.notes == ()
    assert all(ids.dtype == np.int64 and 0 <= ids.min() <= ids.max() < 1000 for ids in plan.prompts)


def test_prompts_are_the_same_each_time() -> None:
    for first, second in zip(plan_prompts(1000, 4096).prompts, plan_prompts(1000, 4096).prompts, strict=True):
        assert np.array_equal(first, second)


def test_short_limits_are_used_to_the_full_and_noted() -> None:
    for max_seq_len in (2, 3, 10, 70, 128, 500, 1263, 1264):
        plan = plan_prompts(50, max_seq_len)
        lengths = [len(ids) for ids in plan.prompts]
        assert lengths == sorted(set(lengths))
        assert max(lengths) + plan.steps <= max_seq_len
        assert min(lengths) >= 1
        assert plan.steps >= 1
        assert bool(plan.notes) == (max_seq_len < 1264)
    assert max(len(ids) for ids in plan_prompts(50, 500).prompts) == 436


def test_text_goes_through_the_tokenizer() -> None:
    calls: list[str] = []

    def encode(text: str) -> list[int]:
        calls.append(text)
        return [2, *(ord(c) % 97 for c in text)]

    plan = plan_prompts(97, 4096, encode)
    assert [len(ids) for ids in plan.prompts] == [5, 16, 33, 1200]
    assert all(ids[0] == 2 for ids in plan.prompts)
    for index, ids in enumerate(plan.prompts):
        for longer in plan.prompts[index + 1 :]:
            assert not np.array_equal(ids, longer[: len(ids)]), "the start of another prompt proves little more"
    assert "tokenizer" in plan.source
