"""The sampler's draws follow the distribution that its filters leave."""

from __future__ import annotations

import numpy as np
import pytest
from nemotron_runtime.sampling.filters import filter_logits
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.sequence import SequenceSampler

V = 12
LOGITS = np.random.default_rng(0).normal(size=V).astype(np.float32) * 1.5


def softmax(scores):
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


# the 0.999 quantiles of chi-square with 3 and 11 degrees of freedom
@pytest.mark.parametrize(
    ("params", "quantile"),
    [({}, 31.26), ({"temperature": 0.7}, 31.26), ({"temperature": 1.7}, 31.26), ({"top_k": 4}, 16.27)],
)
@pytest.mark.parametrize("over", ["steps", "rows"])
def test_frequencies_follow_softmax(params, quantile, over):
    chosen = GenerationParams(**{"temperature": 1.0, "seed": 1234, **params})
    draws = 6_000
    if over == "steps":
        sampler = SequenceSampler(chosen, 0, np.array([0]), V)
        tokens = [sampler.choose(LOGITS, step) for step in range(draws)]
    else:
        tokens = [SequenceSampler(chosen, row, np.array([0]), V).choose(LOGITS, 0) for row in range(draws)]
    ids, scores = filter_logits(LOGITS, chosen)
    counts = np.bincount(tokens, minlength=V)
    assert counts[ids].sum() == draws, "nothing but survivors"
    assert chi_square(counts[ids], softmax(scores)) < quantile


def test_draws_of_rows_and_steps_are_uncorrelated():
    params = GenerationParams(temperature=1.0, seed=9)
    flat = np.zeros(2, np.float32)
    table = np.array(
        [[SequenceSampler(params, r, np.array([0]), 2).choose(flat, s) for s in range(300)] for r in range(20)]
    )
    signs = 2.0 * table - 1
    across_rows = (signs[:-1] * signs[1:]).mean()
    across_steps = (signs[:, :-1] * signs[:, 1:]).mean()
    # five standard deviations of a mean of about 6,000 signs
    assert abs(across_rows) < 5 / np.sqrt(signs[1:].size)
    assert abs(across_steps) < 5 / np.sqrt(signs[:, 1:].size)


def test_temperature_0_is_argmax_with_ties_to_the_lowest_id():
    sampler = SequenceSampler(GenerationParams(seed=0), 0, np.array([0]), V)
    assert sampler.choose(LOGITS, 0) == LOGITS.argmax()
    assert sampler.choose(np.ones(V, np.float32), 1) == 0


def test_the_same_row_and_step_draw_the_same_with_fewer_candidates():
    # the winner of all tokens stays the winner among any candidates that hold it
    for step in range(200):
        whole = SequenceSampler(GenerationParams(temperature=1.0, seed=5), 3, np.array([0]), V).choose(LOGITS, step)
        params = GenerationParams(temperature=1.0, seed=5, top_k=6)
        few = SequenceSampler(params, 3, np.array([0]), V).choose(LOGITS, step)
        if whole in filter_logits(LOGITS, params)[0]:
            assert few == whole


def test_repetition_penalty_counts_the_prompt_and_what_was_chosen():
    logits = np.array([3.0, 2.5, 2.0, -1.0], np.float32)
    sampler = SequenceSampler(GenerationParams(repetition_penalty=2.0, seed=0), 0, np.array([0]), 4)
    # 0 is in the prompt (1.5), 1 is chosen (then 1.25), 2 next (then 1.0), then 0 again
    assert [sampler.choose(logits, step) for step in range(4)] == [1, 2, 0, 0]


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("peak", [1.0, 12.0])
def test_top_p_by_partial_sorting_equals_sorting_everything(top_p, peak):
    logits = (np.random.default_rng(3).normal(size=20_000) * peak).astype(np.float32)
    ids, _ = filter_logits(logits, GenerationParams(temperature=1.0, top_p=top_p))
    probabilities = softmax(logits)
    order = np.argsort(-logits, kind="stable")
    count = int((np.cumsum(probabilities[order]) < top_p).sum()) + 1
    assert set(ids.tolist()) == set(order[:count].tolist())


def test_filters_never_leave_nothing():
    params = GenerationParams(temperature=1e-3, top_k=1, top_p=1e-6, min_p=1.0)
    ids, scores = filter_logits(LOGITS, params)
    assert ids.tolist() == [int(LOGITS.argmax())]
    assert np.isfinite(scores).all()
