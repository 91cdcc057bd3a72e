"""Ragged batches on an executor of rectangles, and the processors that look at a sequence's history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nemotron_errors import RequestError
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.batch import Batch
from nemotron_runtime.sampling.device import GREEDY, TopCandidates
from nemotron_runtime.sampling.processors import make_processors
from support.toy_engine import ToyEngine, ToyExecutor


def batch(parts: list[list[int]], lengths: list[int], wanted: list[int], sampling: Any = None) -> Batch:
    offsets = np.cumsum([0, *map(len, parts)])
    tokens = np.array([token for part in parts for token in part], np.int64)
    return Batch(tokens, offsets, np.array(lengths), np.array(wanted, np.int64), None, sampling)


def test_wanted_positions_of_any_sequence_in_any_order_of_its_own() -> None:
    executor = ToyExecutor()
    executor.allocate(3, 20)
    first = executor.run(batch([[1, 2, 3], [], [4, 5]], [0, 0, 0], [2, 0, 2, 4]))
    for found, history in zip(first.logits, ([1, 2, 3], [1], [1, 2, 3], [4, 5]), strict=True):
        np.testing.assert_array_equal(found, executor.row_logits(history))
    later = executor.run(batch([[6, 7], [8], []], [3, 0, 2], [1, 2]))
    for found, history in zip(later.logits, ([1, 2, 3, 6, 7], [8]), strict=True):
        np.testing.assert_array_equal(found, executor.row_logits(history))
    assert executor.run(batch([[1], [], [2, 3]], [5, 1, 2], [])).logits.shape == (0, executor.output_size)


@pytest.mark.parametrize("parts", [[[9], [8], [7]], [[9], [], [7]], [[], [8], []]], ids=str)
def test_a_step_gives_what_was_asked_for_of_the_sequences_that_it_has(parts: list[list[int]]) -> None:
    executor = ToyExecutor()
    executor.candidate_count = 4
    executor.allocate(3, 4)
    executor.run(batch([[1, 2], [3], [4, 5, 6]], [0, 0, 0], []))
    histories = [past + part for past, part in zip(([1, 2], [3], [4, 5, 6]), parts, strict=True) if part]
    expected = np.array([executor.row_logits(history) for history in histories])
    given = parts, [2, 1, 3], list(range(len(histories)))
    np.testing.assert_array_equal(executor.run(batch(*given)).logits, expected)
    chosen = executor.run(batch(*given, GREEDY)).tokens
    assert chosen is not None
    assert chosen.tolist() == expected.argmax(-1).tolist()
    top = executor.run(batch(*given, TopCandidates(0.5))).candidates
    assert top is not None
    np.testing.assert_array_equal(top.ids, np.argsort(-expected, axis=-1, kind="stable")[:, :4])


def test_bad_words_are_blocked_first_and_the_prompt_counts_as_their_beginning() -> None:
    free = generate(ToyEngine(), [[1, 2]], GenerationParams(max_new_tokens=4))[0].token_ids
    words = [[2, free[0]], [31, 31, 31]]
    params = GenerationParams(max_new_tokens=4, bad_words_ids=words, repetition_penalty=0.5)
    assert not params.is_argmax
    assert generate(ToyEngine(), [[1, 2]], params)[0].token_ids[0] != free[0]
    scores = np.arange(4, dtype=np.float32)
    for process in make_processors(GenerationParams(bad_words_ids=[[3], [1, 2]], repetition_penalty=2.0)):
        scores = process(scores, [0, 1], 1)
    assert scores.tolist() == [0.0, 0.5, -np.inf, -np.inf]


@pytest.mark.parametrize("words", [[], [[]], [[True]], [[-1]], "3", [[1], 2]], ids=str)
def test_bad_words_that_are_none_are_refused(words: Any) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationParams(bad_words_ids=words)
    assert caught.value.where == "bad_words_ids"


def test_bad_words_outside_the_vocabulary_are_refused_by_the_engine() -> None:
    with pytest.raises(RequestError, match="ids from 0 to 31"):
        generate(ToyEngine(), [[1]], GenerationParams(bad_words_ids=[[32]]))
