"""Filters and their order against the logits processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nemotron_runtime.sampling.filters import filter_logits
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.processors import make_processors
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

EOS = (7, 11)

CASES = [
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 1.4},
    {"min_new_tokens": 4},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.1, "min_new_tokens": 4},
    {"temperature": 2.0, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 0.2, "top_k": 5, "top_p": 0.3},
]


def processors(params, prompt_length):
    made = LogitsProcessorList()
    if params.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_new_tokens:
        made.append(MinNewTokensLengthLogitsProcessor(prompt_length, params.min_new_tokens, list(EOS)))
    if params.temperature != 1:
        made.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        made.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        made.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        made.append(MinPLogitsWarper(params.min_p))
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("vocab", "scale"), [(50, 1.0), (5000, 3.0), (5000, 12.0)])
def test_same_survivors_with_the_same_scores(case, vocab, scale):
    params = GenerationParams(**{"temperature": 1.0, "eos_token_ids": EOS, **case})
    rng = np.random.default_rng(vocab)
    for new in (0, 6):
        logits_V = (rng.normal(size=vocab) * scale).astype(np.float32)
        history = rng.integers(0, vocab, 20 + new)
        scores_V = logits_V
        for process in make_processors(params):
            scores_V = process(scores_V, history.tolist(), new)
        ids, scores = filter_logits(scores_V, params, processed=True)
        expected_V = processors(params, 20)(torch.from_numpy(history)[None], torch.from_numpy(logits_V)[None])[
            0
        ].numpy()
        assert set(ids.tolist()) == set(np.flatnonzero(np.isfinite(expected_V)).tolist())
        np.testing.assert_allclose(scores, expected_V[ids], rtol=1e-6)


def test_ties_at_the_edge_of_top_k_survive_in_both():
    logits_V = np.array([1, 5, 3, 3, 3, 0], np.float32)
    ids, _ = filter_logits(logits_V, GenerationParams(temperature=1.0, top_k=2))
    expected_V = TopKLogitsWarper(2)(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits_V)[None])[0].numpy()
    assert sorted(ids.tolist()) == np.flatnonzero(np.isfinite(expected_V)).tolist() == [1, 2, 3, 4]
