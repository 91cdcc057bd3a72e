"""Greedy decoding by the executor's own choice of tokens: only where nothing else looks at the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nemotron_errors import LimitError
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.sampling.device import GREEDY
from support.toy_engine import ToyEngine, ToyExecutor

PROMPTS = [[1, 2, 3], [4, 5]]


class Choosing(ToyExecutor):
    """Counts who chose."""

    chosen = given = 0

    def step(self, tokens_B: Any, query_start_B: Any, advancing_B: Any, sampling: Any) -> Any:
        self.chosen += sampling == GREEDY
        self.given += sampling is None
        return super().step(tokens_B, query_start_B, advancing_B, sampling)


@pytest.mark.parametrize(
    ("options", "chooses"),
    [
        ({}, True),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.1}, True),
        ({"eos_token_ids": (7,), "num_return_sequences": 2}, True),
        ({"temperature": 0.5, "seed": 1}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"bad_words_ids": [[7, 8]]}, False),
        ({"min_new_tokens": 2, "eos_token_ids": (7,)}, False),
    ],
)
def test_the_executor_chooses_where_nothing_changes_the_logits(options: dict[str, Any], chooses: bool) -> None:
    session = ToyEngine(executor=Choosing)
    params = GenerationParams(max_new_tokens=8, **options)
    assert params.is_argmax == chooses
    results = generate(session, PROMPTS, params)
    assert (session.toy.chosen > 0, session.toy.given > 0) == (chooses, not chooses)
    if chooses:
        # the filters keep the likeliest token
        for result in results:
            history = list(result.prompt_token_ids)
            for token in result.token_ids:
                assert token == ToyEngine().row_logits(history).argmax()
                history.append(token)


def test_a_greedy_choice_is_the_argmax_and_frozen_sequences_stay() -> None:
    one, other = ToyEngine(), ToyEngine()
    for session in (one, other):
        session.reset(2, 10)
        session.prefill(PROMPTS)
    tokens, going = np.array([6, 7]), np.array([True, False])
    chosen = one.decode(tokens, going, sampling=GREEDY).tokens
    assert chosen.shape == (1,)
    assert chosen.tolist() == other.decode(tokens, going).logits.argmax(-1).tolist()
    assert one.lengths_B.tolist() == other.lengths_B.tolist() == [4, 2]
    one.reset(1, 1)
    one.decode([1], sampling=GREEDY)
    with pytest.raises(LimitError, match="room for another token"):
        one.decode([1], sampling=GREEDY)


def test_the_lowest_of_equal_logits_wins() -> None:
    class Flat(ToyExecutor):
        def row_logits(self, history: Any, row: int = 0) -> Any:
            logits = np.zeros(self.vocab_size, np.float32)
            logits[[5, 9]] = 1.0
            return logits

    assert generate(ToyEngine(executor=Flat), [[1]], GenerationParams(max_new_tokens=3))[0].token_ids == (5, 5, 5)


def test_a_session_without_a_gpu_knows_of_no_gpu_memory() -> None:
    assert ToyEngine().executor.device_memory_peak is None
