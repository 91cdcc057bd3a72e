"""What the likeliest tokens alone decide is what all logits decide; where they do not decide, they say so.

Shapes: B rows, C candidates, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.sampling.candidates import Candidates, filter_candidates, find_candidates
from nemotron_runtime.sampling.device import HostSampler
from nemotron_runtime.sampling.filters import filter_logits
from nemotron_runtime.sampling.sequence import SequenceSampler
from support.toy_engine import ToyEngine, ToyExecutor

V, C = 500, 32


def test_the_largest_and_the_sum_of_all() -> None:
    logits_BV = np.array([[1, 4, np.nan, 4, -np.inf], [0, 2, 2, -1, 2]], np.float32)
    found = find_candidates(logits_BV, 3, 0.5)
    assert found.ids.tolist() == [[2, 1, 3], [1, 2, 4]]
    np.testing.assert_array_equal(found.logits, [[np.inf, 4, 4], [2, 2, 2]])
    assert found.log_sum[0] == np.inf
    assert found.log_sum[1] == pytest.approx(np.log(np.exp(np.array([0, 4, 4, -2, 4.0])).sum()))


FILTERS = [
    {"top_k": 1}, {"top_k": 5}, {"top_k": C - 1}, {"top_p": 0.3}, {"top_p": 0.9}, {"min_p": 0.2}, {"min_p": 0.05},
    {"top_k": 20, "top_p": 0.8}, {"top_p": 0.9, "min_p": 0.1}, {"top_k": 9, "min_p": 0.3},
    {"top_k": 25, "top_p": 0.7, "min_p": 0.02},
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.3])
@pytest.mark.parametrize("steps", [None, 0.25], ids=["distinct", "with ties"])
def test_they_leave_what_all_logits_leave(filters: dict[str, float], temperature: float, steps: float | None) -> None:
    params = GenerationParams(temperature=temperature, seed=3, **filters)  # type: ignore[arg-type]
    rng, decided = np.random.default_rng(5), 0
    for step in range(60):
        logits_V = (rng.normal(size=V) * 6).astype(np.float32)
        if steps is not None:
            logits_V = np.round(logits_V / steps) * np.float32(steps)
        few = find_candidates(logits_V[None], C, temperature)
        kept = filter_candidates(few.ids[0], few.logits[0], float(few.log_sum[0]), params, V)
        if kept is None:
            continue
        decided += 1
        ids, scores = filter_logits(logits_V, params)
        assert dict(zip(*map(np.ndarray.tolist, kept), strict=True)) == dict(
            zip(ids.tolist(), scores.tolist(), strict=True)
        )
        sampler = SequenceSampler(params, 1, np.array([0]), V)
        chosen = sampler.choose_among(few.ids[0], few.logits[0], float(few.log_sum[0]), step)
        assert chosen == sampler.choose(logits_V, step)
    # a filter that ends on a tie is the host's; the others decide
    assert decided > (45 if steps is None else 20)


@pytest.mark.parametrize(
    ("filters", "spread"),
    [
        ({"top_k": C + 1}, 3.0),  # fewer candidates than wanted
        ({"top_p": 0.99}, 0.1),  # hardly any token is likelier than another
        ({"min_p": 0.01}, 0.1),
        ({"top_k": C}, 3.0),  # a token that equals the last candidate could be missing
    ],
    ids=str,
)
def test_where_a_survivor_may_be_missing_they_do_not_decide(filters: dict[str, float], spread: float) -> None:
    params = GenerationParams(temperature=1.0, seed=3, **filters)  # type: ignore[arg-type]
    logits_V = (np.random.default_rng(5).normal(size=V) * spread).astype(np.float32)
    few = find_candidates(logits_V[None], C, 1.0)
    assert filter_candidates(few.ids[0], few.logits[0], float(few.log_sum[0]), params, V) is None


def test_a_tie_with_a_token_that_is_missing_is_not_decided() -> None:
    logits_V = np.zeros(V, np.float32)
    logits_V[:10] = np.arange(10, 0, -1)
    few = find_candidates(logits_V[None], C, 1.0)
    for top_k, decides in ((10, True), (11, False)):
        params = GenerationParams(temperature=1.0, seed=3, top_k=top_k)
        kept = filter_candidates(few.ids[0], few.logits[0], float(few.log_sum[0]), params, V)
        assert (kept is not None) == decides


def test_all_of_a_small_vocabulary_always_decide() -> None:
    logits_V = np.zeros(8, np.float32)
    few = find_candidates(logits_V[None], 8, 1.0)
    params = GenerationParams(temperature=1.0, seed=3, top_k=3, min_p=0.5)
    kept = filter_candidates(few.ids[0], few.logits[0], float(few.log_sum[0]), params, 8)
    assert kept is not None
    # ties with the third survive
    assert len(kept[0]) == 8


@pytest.mark.parametrize(
    ("filters", "few"),
    [({"top_k": 3}, True), ({"top_p": 0.5}, True), ({"min_p": 0.1}, True), ({}, False),
     ({"top_k": 3, "repetition_penalty": 1.1}, False)],
    ids=str,
)  # fmt: skip
def test_which_requests_need_only_the_likeliest(filters: dict[str, float], few: bool) -> None:
    assert GenerationParams(temperature=1.0, **filters).draws_from_candidates == few  # type: ignore[arg-type]
    assert not GenerationParams(temperature=0.0, **filters).draws_from_candidates  # type: ignore[arg-type]


class CountingSampler(HostSampler):
    """Counts who asks for what."""

    asked = fallen_back = 0

    def candidates(self, temperature: float) -> Candidates:
        CountingSampler.asked += 1
        return super().candidates(temperature)

    def logits(self) -> np.ndarray:
        CountingSampler.fallen_back += self._candidate_count > 0
        return super().logits()


class FewExecutor(ToyExecutor):
    """Gives top-k candidates."""

    candidate_count = 6

    def step(self, tokens_B: Any, query_start_B: Any, advancing_B: Any, sampling: Any) -> CountingSampler:
        logits_BV = super().step(tokens_B, query_start_B, advancing_B, sampling).logits()
        return CountingSampler(logits_BV, self.candidate_count if sampling is not None else 0)


@pytest.mark.parametrize(
    ("filters", "asks", "falls_back"),
    [
        ({"top_k": 3}, True, False),
        ({"top_k": 9}, True, True),
        ({"top_p": 0.6}, True, None),
        ({}, False, False),
        ({"top_k": 3, "min_new_tokens": 12, "eos_token_ids": (1,)}, True, False),
        ({"top_k": 3, "repetition_penalty": 1.5}, False, False),
    ],
    ids=str,
)
def test_an_executor_that_gives_them_writes_the_same_tokens(
    filters: dict[str, float], asks: bool, falls_back: bool | None
) -> None:
    params = GenerationParams(max_new_tokens=20, temperature=0.9, seed=11, **filters)  # type: ignore[arg-type]
    prompts = [[1, 2, 3], [4], [5, 6]]
    plain, few = ToyEngine(), ToyEngine(executor=FewExecutor)
    CountingSampler.asked = CountingSampler.fallen_back = 0
    expected, found = (generate(session, prompts, params) for session in (plain, few))
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert len({each.token_ids for each in found}) == 3
    assert (CountingSampler.asked > 0) == asks
    if falls_back is not None:
        assert (CountingSampler.fallen_back > 0) == falls_back
