"""Prefill of the TensorRT executor: padded lengths, graphs, micro-batches; over a CUDA and a TensorRT of numpy.

Shapes: B rows, S tokens of a pass, K positions, T cache slots.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nemotron_errors import ResourceError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.tensorrt import prefill_graphs as tensorrt_prefill_graphs
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from nemotron_runtime.executors.tensorrt.prefill_graphs import padded_lengths, padded_to
from support.tensorrt_fakes import V, installed, make_tensorrt_bundle, toy

CHUNK, SLOTS = 200, 600
LENGTHS = (16, 32, 48, 64, 96, 128, 160, 192, 200)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA and TensorRT, whose prefill engine takes fewer rows than a request may have."""
    with installed(monkeypatch) as (cuda, trt):
        trt.profiles = [(2, CHUNK, 2)]
        yield cuda, trt


@pytest.fixture
def session(fakes: Any, tmp_path: Path) -> Any:
    with Engine(TensorRTExecutor(bundle(tmp_path, fakes[1]))) as opened:
        yield opened


def bundle(folder: Path, trt: Any) -> Bundle:
    return Bundle.open(make_tensorrt_bundle(folder, trt, max_seq_len=SLOTS, prefill_chunk=CHUNK))


def reference() -> Any:
    return toy(max_seq_len=SLOTS, prefill_chunk=CHUNK)


def ids(count: int, seed: int = 1) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, count]).integers(0, V, count)


def check(session: Any, prompts: Sequence[Any], slots: int = 250) -> None:
    """Prefill and two steps behind it give the logits of the prompts alone."""
    session.reset(len(prompts), slots)
    histories = [list(prompt) for prompt in prompts]
    logits_BV = session.prefill(prompts)
    for step in range(3):
        for history, logits_V in zip(histories, logits_BV, strict=True):
            np.testing.assert_array_equal(logits_V, toy().row_logits(history))
        if step < 2:
            tokens = ids(len(prompts), seed=step)
            logits_BV = session.decode(tokens).logits
            for history, token in zip(histories, tokens, strict=True):
                history.append(int(token))


@pytest.fixture
def passes(fakes: Any) -> Callable[[], tuple[list[tuple[int, int, int]], int]]:
    """Gives (B, S, K) of the prefill passes since it was asked last, and the graphs that were made."""
    seen = [0, 0]

    def since() -> tuple[list[tuple[int, int, int]], int]:
        cuda, trt = fakes
        found = [tuple(sizes) for kind, *sizes in trt.passes[seen[0] :] if kind == "prefill"]
        graphs = cuda.graphs - seen[1]
        seen[:] = len(trt.passes), cuda.graphs
        return found, graphs

    return since


def test_lengths_are_steps_that_end_at_the_limit() -> None:
    assert padded_lengths(CHUNK) == LENGTHS
    for most, expected in ((1, (1,)), (16, (16,)), (17, (16, 17)), (64, (16, 32, 48, 64)), (65, (16, 32, 48, 64, 65))):
        assert padded_lengths(most) == expected
    long = padded_lengths(4096)
    assert long[:8] == (16, 32, 48, 64, 96, 128, 160, 192)
    assert long[9:15] == (256, 320, 384, 448, 512, 640)
    assert {2048, 2304, 4096} <= set(long)
    for most in (700, 2048, 4096, 5000):
        lengths = padded_lengths(most)
        assert lengths[-1] == most
        assert list(lengths) == sorted(set(lengths))
        for tokens in range(128, most + 1):
            padded = padded_to(tokens, lengths, most)
            assert padded is not None
            assert tokens <= padded <= 1.25 * tokens


def test_padding_stays_inside_the_cache() -> None:
    for tokens, expected in ((1, 16), (16, 16), (17, 32), (129, 160), (192, 192), (193, 200), (200, 200)):
        assert padded_to(tokens, LENGTHS, 600) == expected
    assert padded_to(17, LENGTHS, 32) == 32
    assert padded_to(17, LENGTHS, 31) is None
    assert padded_to(200, LENGTHS, 200) == 200


def test_a_length_runs_is_recorded_and_is_replayed(session: Any, fakes: Any, passes: Any) -> None:
    cuda = fakes[0]
    session.reset(1, 250)
    for use, prompt in enumerate([ids(17), ids(32, 2), ids(20, 3), ids(31, 4)]):
        launches = cuda.launches
        session.reset(1, 250)
        found = session.prefill([prompt])[0]
        np.testing.assert_array_equal(found, toy().row_logits(prompt))
        expected = [([(1, 32, 1)], 0), ([(1, 32, 1)], 1), ([], 0), ([], 0)][use]
        assert passes() == expected
        assert cuda.launches - launches == (use > 0)


def test_other_lengths_between_do_not_disturb_a_graph(session: Any, fakes: Any, passes: Any) -> None:
    for _ in range(3):
        for prompt in (ids(5), ids(49), ids(200), ids(64), ids(1)):
            check(session, [prompt])
    # once to run and once to record each, and decode's graph, once for all
    found, graphs = passes()
    assert sorted(found) == sorted(2 * [(1, 16, 1), (1, 64, 1), (1, 200, 1)])
    assert graphs == 3 + 1


def test_at_the_end_of_the_cache_passes_are_as_long_as_they_are(session: Any, fakes: Any, passes: Any) -> None:
    prompts = [ids(90, 1), ids(141, 2), ids(21, 3)]
    for _ in range(2):
        session.reset(1, 256)
        for n, prompt in enumerate(prompts, start=1):
            history = np.concatenate(prompts[:n])
            np.testing.assert_array_equal(session.prefill([prompt])[0], toy().row_logits(history))
    # 90 + 160 fit, 231 + 32 run past 256 slots
    assert passes() == (2 * [(1, 96, 1), (1, 160, 1), (1, 21, 1)], 2)
    address = session.executor._cache.addresses["k_cache.0"]
    shape = session.executor._cache.shape_BGTD
    assert shape[2] == 256
    assert (fakes[0].array(address, shape, np.float16)[0, :, 252:] == 0).all()


def test_a_row_near_the_end_bounds_the_padding_of_all(session: Any, passes: Any) -> None:
    session.reset(2, 256)
    session.prefill([ids(220), ids(10)])
    passes()
    found = session.prefill([ids(34, 2), ids(33, 3)])
    # 220 + 48 run past 256 slots
    assert passes() == ([(2, 34, 1)], 0)
    np.testing.assert_array_equal(found[0], toy().row_logits([*ids(220), *ids(34, 2)]))
    np.testing.assert_array_equal(found[1], toy().row_logits([*ids(10), *ids(33, 3)]))


def test_a_cache_that_moves_drops_the_graphs(session: Any, fakes: Any, passes: Any) -> None:
    cuda = fakes[0]
    for _ in range(3):
        check(session, [ids(30)])
    passes()
    handles = len(cuda.handles)
    session.reset(1, 300)
    # prefill's and decode's
    assert len(cuda.handles) == handles - 2
    for use in range(3):
        launches = cuda.launches
        session.reset(1, 300)
        np.testing.assert_array_equal(session.prefill([ids(30)])[0], toy().row_logits(ids(30)))
        assert cuda.launches - launches == (use > 0)
    assert passes() == ([(1, 32, 1)] * 2, 1)
    # the context stayed: one for the length, and decode's
    assert fakes[1].living == 2 + 2


def test_of_too_many_lengths_the_one_not_used_for_longest_goes(
    fakes: Any, tmp_path: Path, passes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = bundle(tmp_path, fakes[1])
    monkeypatch.setattr(tensorrt_prefill_graphs, "_MOST_PASSES", 2)
    with Engine(TensorRTExecutor(opened)) as session, caplog.at_level(logging.DEBUG):

        def prefill(*lengths: int) -> tuple[Any, int]:
            for length in lengths:
                session.reset(1, 250)
                np.testing.assert_array_equal(session.prefill([ids(length)])[0], toy().row_logits(ids(length)))
            return passes()

        assert prefill(10, 10, 20, 20) == ([(1, 16, 1)] * 2 + [(1, 32, 1)] * 2, 2)
        assert prefill(10, 20, 10) == ([], 0)
        # 32 goes, which 16 was used after
        assert prefill(60, 10) == ([(1, 64, 1)], 0)
        assert "drops sequences from 0 on, 1 of 32 tokens" in caplog.text
        # two engines and two contexts
        assert fakes[1].living == 4
        assert prefill(20, 20) == ([(1, 32, 1)] * 2, 1)
        assert prefill(10) == ([], 0)


def test_more_rows_than_a_pass_takes_go_in_micro_batches(session: Any, passes: Any) -> None:
    rows = [ids(150, 1), ids(3, 2), ids(49, 3)]
    for use in range(3):
        check(session, rows)
        # the third row alone is shorter
        expected = [(2, 160, 1), (1, 64, 1)] if use < 2 else []
        assert passes()[0] == expected
    check(session, [rows[0]])
    # the first row alone is no pass of two
    assert passes()[0] == [(1, 160, 1)]
    whole = reference()
    whole.reset(3, 250)
    session.reset(3, 250)
    np.testing.assert_array_equal(session.prefill(rows), whole.prefill(rows))


def test_rows_behind_others_are_fed_where_they_ended(session: Any) -> None:
    first, second = [ids(20, 8), ids(9, 9), ids(1, 7), ids(77, 6)], [ids(3, 1), ids(90, 2), ids(70, 3), ids(1, 4)]
    session.reset(4, 250)
    session.prefill(first)
    found = session.prefill(second)
    for logits_V, before, behind in zip(found, first, second, strict=True):
        np.testing.assert_array_equal(logits_V, toy().row_logits([*before, *behind]))


@pytest.mark.parametrize(
    ("most", "row_bytes", "rows", "expected"),
    [
        (4, 4096, 8, [(0, 4), (4, 8)]),
        (4, 4096, 6, [(0, 4), (4, 6)]),
        (4, 4096, 4, [(0, 4)]),
        (3, 128, 7, [(0, 2), (2, 4), (4, 6), (6, 7)]),
        (3, 128, 3, [(0, 3)]),
        # nothing is aligned there
        (2, 16, 5, [(0, 2), (2, 4), (4, 5)]),
    ],
)
def test_micro_batches_begin_where_an_allocation_might(
    session: Any, most: int, row_bytes: int, rows: int, expected: list[tuple[int, int]]
) -> None:
    prefiller = session.executor._prefiller
    prefiller.limits = replace(prefiller.limits, sequences=most)
    prefiller._sequence_bytes = row_bytes
    assert list(prefiller.micro_batches(rows)) == expected


def test_several_rows_with_logits_of_many_positions(session: Any, passes: Any) -> None:
    rows = [ids(150, 1), ids(3, 2), ids(99, 3)]
    wanted = [np.array([0, 1, 2, 60, 149]), np.array([2, 0, 2]), np.array([98, 97, 96, 95])]
    whole = reference()
    for each in (session, whole):
        each.reset(3, 250)
        each.prefill([ids(20, 8), ids(9, 9), ids(1, 7)])
    passes()
    for found, expected in zip(session.prefill_at(rows, wanted), whole.prefill_at(rows, wanted), strict=True):
        np.testing.assert_array_equal(found, expected)
    sizes = passes()[0]
    assert {B for B, _, _ in sizes} == {1, 2}
    assert {K for _, _, K in sizes} == {1, 2}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=4), min_size=1, max_size=3),
            st.integers(1, 90), st.integers(0, 3), st.integers(0, 2**32 - 1),
        ),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_any_requests_one_after_another_give_the_reference_s_logits(session: Any, requests: Any) -> None:
    whole = reference()
    for turns, chunk, steps, seed in requests:
        rng, rows = np.random.default_rng(seed), len(turns[0])
        for each in (session, whole):
            each.reset(rows, 400)
        for turn in turns:
            prompts = [rng.integers(0, V, turn[row % len(turn)]) for row in range(rows)]
            wanted = [np.sort(rng.integers(0, len(prompt), rng.integers(1, 6))) for prompt in prompts]
            pairs = (each.prefill_at(prompts, wanted, chunk=chunk) for each in (session, whole))
            for found, expected in zip(*pairs, strict=True):
                np.testing.assert_array_equal(found, expected)
            for _ in range(steps):
                tokens = rng.integers(0, V, rows)
                np.testing.assert_array_equal(session.decode(tokens).logits, whole.decode(tokens).logits)


def test_generation_over_and_over_takes_the_same_tokens(session: Any, fakes: Any) -> None:
    params = GenerationParams(max_new_tokens=20)
    for prompts in ([ids(100), ids(7)], [ids(16)], [ids(170)]) * 3:
        found, expected = generate(session, prompts, params), generate(reference(), prompts, params)
        assert [each.token_ids for each in found] == [each.token_ids for each in expected]


def test_a_pass_or_recording_that_fails_is_made_again(session: Any, fakes: Any, passes: Any) -> None:
    def prefill(fails: str | None) -> tuple[Any, int]:
        session.reset(1, 250)
        fakes[1].fails = fails
        if fails:
            with pytest.raises(ResourceError, match=fails):
                session.prefill([ids(20)])
        else:
            np.testing.assert_array_equal(session.prefill([ids(20)])[0], toy().row_logits(ids(20)))
        return passes()

    assert prefill("no such tactic") == ([], 0)
    assert prefill(None) == ([(1, 32, 1)], 0)
    assert prefill("no such stream") == ([], 0)
    assert prefill(None) == ([(1, 32, 1)], 1)
    assert prefill(None) == ([], 0)


def test_memory_for_the_buffers_is_given_back_where_it_ends(fakes: Any, tmp_path: Path) -> None:
    opened, cuda = bundle(tmp_path, fakes[1]), fakes[0]
    with TensorRTExecutor(opened):
        most = cuda.used
    refused = 0
    for total in range(most - 6000, most, 200):
        cuda.total = total
        with pytest.raises(ResourceError):
            TensorRTExecutor(opened)
        gc.collect()
        assert cuda.leaks() == (0, 0, 0, 0)
        refused += 1
    assert refused == 30
