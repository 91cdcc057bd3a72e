"""Greedy decoding by the session's own choice of tokens: only where nothing else looks at the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nemotron_errors import LimitError
from nemotron_runtime.engine.generation import GenerationParams, generate
from support.sessions import ToySession

PROMPTS = [[1, 2, 3], [4, 5]]


class Choosing(ToySession):
    """Counts who chose."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.chosen, self.given = 0, 0

    def greedy_step(self, tokens_B: Any, query_start_B: Any, advance_B: Any = None) -> Any:
        self.chosen += 1
        return super().greedy_step(tokens_B, query_start_B, advance_B)

    def decode(self, tokens_B: Any, advance_B: Any = None) -> Any:
        self.given += 1
        return super().decode(tokens_B, advance_B)


@pytest.mark.parametrize(
    ("options", "chooses"),
    [
        ({}, True),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.1}, True),
        ({"eos_token_ids": (7,), "num_return_sequences": 2}, True),
        ({"temperature": 0.5, "seed": 1}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"min_new_tokens": 2, "eos_token_ids": (7,)}, False),
    ],
)
def test_the_session_chooses_where_nothing_changes_the_logits(options: dict[str, Any], chooses: bool) -> None:
    session = Choosing()
    params = GenerationParams(max_new_tokens=8, **options)
    assert params.is_argmax == chooses
    results = generate(session, PROMPTS, params)
    assert (session.chosen > 0, session.given > 0) == (chooses, not chooses)
    if chooses:
        # the filters keep the likeliest token
        for result in results:
            history = list(result.prompt_token_ids)
            for token in result.token_ids:
                assert token == ToySession().row_logits(history).argmax()
                history.append(token)


def test_greedy_decode_is_the_argmax_of_decode_and_freezes_rows() -> None:
    one, other = ToySession(), ToySession()
    for session in (one, other):
        session.reset(2, 10)
        session.prefill(PROMPTS)
    tokens, going = np.array([6, 7]), np.array([True, False])
    chosen = one.greedy_decode(tokens, going)
    assert chosen.tolist() == other.decode(tokens, going).argmax(-1).tolist()
    assert one.lengths_B.tolist() == other.lengths_B.tolist() == [4, 2]
    one.reset(1, 1)
    one.greedy_decode([1])
    with pytest.raises(LimitError, match="a free slot"):
        one.greedy_decode([1])


def test_the_lowest_of_equal_logits_wins() -> None:
    class Flat(ToySession):
        def row_logits(self, history: Any, row: int = 0) -> Any:
            logits = np.zeros(self.vocab_size, np.float32)
            logits[[5, 9]] = 1.0
            return logits

    assert generate(Flat(), [[1]], GenerationParams(max_new_tokens=3))[0].token_ids == (5, 5, 5)


def test_a_session_without_a_gpu_knows_of_no_gpu_memory() -> None:
    assert ToySession().device_memory_peak is None
