"""The TensorRT session over a CUDA and a TensorRT of numpy: bytes, slots, graphs, tokens chosen ahead, errors.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nemotron_errors import LimitError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.executors.tensorrt import weights as tensorrt_weights
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from nemotron_runtime.executors.tensorrt.passes import sub_chunks
from nemotron_runtime.sampling.device import GREEDY
from support.tensorrt_fakes import V, installed, make_tensorrt_bundle, toy

RNG = np.random.default_rng(5)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA and TensorRT."""
    with installed(monkeypatch) as both:
        yield both


@pytest.fixture
def session(fakes: Any, tmp_path: Path) -> Any:
    opened = Engine(open_executor(Bundle.open(make_tensorrt_bundle(tmp_path, fakes[1]))))
    assert isinstance(opened.executor, TensorRTExecutor)
    yield opened
    opened.close()


def ids(count: int) -> np.ndarray:
    return RNG.integers(0, V, count)


def test_every_weight_arrives_whatever_the_staging_buffers_hold(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda, trt = fakes
    bundle = Bundle.open(make_tensorrt_bundle(tmp_path, trt))
    for staging in (26, 1 << 20):
        monkeypatch.setattr(tensorrt_weights, "_STAGING_BYTES", staging)
        with caplog.at_level(logging.INFO), Engine(TensorRTExecutor(bundle)) as session:
            weights = session.executor.weights
            for name, expected in trt.expected.items():
                address = weights.addresses[name]
                assert address % 256 == 0
                found = cuda.array(address, expected.shape, np.float16)
                np.testing.assert_array_equal(found, expected, err_msg=name)
            assert weights.addresses["lm_head.weight"] == weights.addresses["model.embed_tokens.weight"]
            # the tied one counts once
            assert weights.uploaded == sum(e.nbytes for n, e in trt.expected.items() if n != "lm_head.weight")
            assert weights.bytes_per_second == weights.uploaded / weights.seconds
        assert "GB/s" in caplog.text


def test_logits_of_a_whole_prompt_in_passes_of_few_positions(session: Any, fakes: Any) -> None:
    prompt = ids(41)
    expected = toy().logits(prompt)
    np.testing.assert_array_equal(session.logits(prompt), expected)
    passes = fakes[1].passes
    assert max(S for _, _, S, K in passes if K > 1) == 4, "16 tokens with all their logits, 4 at a time"
    assert all(K <= 4 for *_, K in passes)


def test_rows_of_different_lengths_and_a_second_request(session: Any) -> None:
    for lengths in ((1, 18, 40), (33, 2)):
        prompts = [ids(n) for n in lengths]
        reference = toy()
        for each in (session, reference):
            each.reset(len(lengths), 60)
        wanted = [np.unique(ids(9) % n) for n in lengths]
        for found, expected in zip(
            session.prefill_at(prompts, wanted, chunk=7), reference.prefill_at(prompts, wanted, chunk=7), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        for step in range(6):
            tokens, going = ids(len(lengths)), np.arange(len(lengths)) != step % 3
            found, expected = session.decode(tokens, going).logits, reference.decode(tokens, going).logits
            np.testing.assert_array_equal(found, expected)
        assert session.lengths_B.tolist() == reference.lengths_B.tolist()


@pytest.mark.parametrize(
    ("index", "tokens", "most", "expected"),
    [
        ([[0, 1, 2, 3, 4]], 5, 2, [(0, 2), (2, 4), (4, 5)]),
        ([[4, 4, 4, 4]], 8, 2, [(0, 8)]),
        ([[0, 3, 7], [0, 1, 2]], 9, 2, [(0, 2), (2, 9)]),
        ([[8, 0, 5]], 9, 1, [(0, 5), (5, 8), (8, 9)]),
    ],
)
def test_a_pass_is_cut_where_a_row_wants_too_many_logits(index: Any, tokens: int, most: int, expected: Any) -> None:
    assert list(sub_chunks(np.array(index), tokens, most)) == expected


def test_logits_in_any_order_and_more_than_once(session: Any) -> None:
    prompt = ids(9)
    all_SV = toy().logits(prompt)
    session.reset(2, 20)
    index = np.array([[8, 0, 8, 3, 5, 1, 2], [0, 0, 0, 0, 0, 0, 0]])
    padded = np.stack([prompt, np.concatenate([prompt[:1], np.zeros(8, np.int64)])])
    found = session.executor.forward(padded, np.zeros(2, np.int64), np.array([9, 1]), index)
    np.testing.assert_array_equal(found[0], all_SV[index[0]])
    np.testing.assert_array_equal(found[1], np.repeat(all_SV[:1], 7, axis=0))


def test_one_graph_per_number_of_rows_and_new_ones_for_new_addresses(session: Any, fakes: Any) -> None:
    cuda, trt = fakes
    made: list[int] = []

    def request(rows: int, slots: int) -> int:
        session.reset(rows, slots)
        session.prefill([ids(3)] * rows)
        before = cuda.graphs
        for _ in range(3):
            session.decode(ids(rows))
        made.append(cuda.graphs - before)
        return made[-1]

    assert request(3, 200) == 1
    assert request(2, 256) == 1, "other rows"
    assert request(3, 10) == request(2, 255) == 0, "what fits keeps its cache and graphs"
    address = session.executor._cache.addresses["k_cache.0"]
    assert session.executor._cache.addresses["k_cache_out.0"] == address
    assert request(3, 257) == 1, "a larger cache has other addresses"
    assert request(2, 300) == 1
    assert session.executor._cache.shape_BGTD[2] == 512
    assert request(1, 600) == 1
    assert session.executor._cache.shape_BGTD[2] == 600, "never past max_seq_len"
    # once to warm up and once to record; every step of a request replays
    decodes = [found for found in trt.passes if found[0] == "decode"]
    assert len(decodes) == 2 * sum(made)
    assert {B for _, B, _, _ in decodes} == {1, 2, 3}


def test_a_new_request_finds_an_empty_cache(session: Any, fakes: Any) -> None:
    session.reset(2, 40)
    session.prefill([ids(30), ids(20)])
    session.reset(2, 40)
    session.executor.device.driver("StreamSynchronize", session.executor._decoder._stream.handle)
    shape = session.executor._cache.shape_BGTD
    for layer in range(2):
        assert not fakes[0].array(session.executor._cache.addresses[f"v_cache.{layer}"], shape, np.float16).any()


def test_tokens_chosen_on_the_device_are_the_argmax_of_the_logits(session: Any) -> None:
    prompts = [ids(4), ids(11), ids(7)]
    reference = toy()
    for each in (session, reference):
        each.reset(3, 60)
        each.prefill(prompts)
    tokens, going = ids(3), np.array([True, True, True])
    for step in range(30):
        if step in (5, 12):
            going[[1, 0][step > 5]] = False
        found, expected = (
            session.decode(tokens, going, sampling=GREEDY).tokens,
            reference.decode(tokens, going, sampling=GREEDY).tokens,
        )
        assert found.tolist() == expected.tolist()
        assert session.lengths_B.tolist() == reference.lengths_B.tolist()
        tokens[going] = expected
        if step == 8:
            # logits between tokens drop the step that runs ahead
            np.testing.assert_array_equal(session.decode(tokens, going).logits, reference.decode(tokens, going).logits)
        if step % 7 == 6:
            # now and then not what was chosen: the step ahead was wrong
            tokens = ids(3)


def test_generation_takes_the_same_tokens_and_runs_ahead(session: Any, fakes: Any) -> None:
    cuda = fakes[0]
    prompts = [ids(5), ids(9), ids(2)]
    free = generate(toy(), prompts, GenerationParams(max_new_tokens=40))
    ends = free[0].token_ids[17], free[2].token_ids[29]
    for params in (
        GenerationParams(max_new_tokens=40),
        GenerationParams(max_new_tokens=40, eos_token_ids=ends),
        GenerationParams(max_new_tokens=12, min_new_tokens=3, eos_token_ids=ends),
        GenerationParams(max_new_tokens=12, repetition_penalty=1.3),
        GenerationParams(max_new_tokens=12, temperature=0.8, seed=3),
    ):
        before = cuda.launches, cuda.host_copies
        found, expected = generate(session, prompts, params), generate(toy(), prompts, params)
        assert [f.token_ids for f in found] == [e.token_ids for e in expected]
        assert [f.finish_reason for f in found] == [e.finish_reason for e in expected]
        if params == GenerationParams(max_new_tokens=40):
            steps = 39
            # a step that runs ahead takes its tokens from the device: only positions are copied
            assert cuda.launches - before[0] == steps
            assert cuda.host_copies - before[1] < 1.5 * steps


def test_a_step_that_ran_ahead_is_no_answer_to_another_request(session: Any) -> None:
    first, reference = ids(5), toy()
    reference.reset(1, 20)
    token = int(reference.prefill([first])[0].argmax())
    ahead = int(reference.decode([token], sampling=GREEDY).tokens[0])
    for prompt in (ids(6), ids(1)):
        session.reset(1, 20)
        session.prefill([first])
        # what runs ahead now feeds the token `ahead` at position 6
        assert session.decode([token], sampling=GREEDY).tokens.tolist() == [ahead]
        session.reset(1, 20)
        session.prefill([prompt])
        for token_again in [0] * (6 - len(prompt)):
            session.decode([token_again])
        history = [*prompt, *([0] * (6 - len(prompt))), ahead]
        assert session.decode([ahead], sampling=GREEDY).tokens[0] == toy().row_logits(history).argmax()


def test_a_full_row_stays_where_it_is_beside_one_that_goes_on(session: Any, fakes: Any) -> None:
    launches = []
    reference = toy(max_seq_len=600)
    for each in (session, reference):
        each.reset(2, 600)
        each.prefill([[1] * 590, [2] * 20])
    tokens, going = np.array([4, 5]), np.array([True, True])
    for step in range(20):
        going[0] = step < 10
        before = fakes[0].launches
        found = session.decode(tokens, going, sampling=GREEDY).tokens
        tokens[going] = reference.decode(tokens, going, sampling=GREEDY).tokens
        launches.append(fakes[0].launches - before)
        assert found.tolist() == tokens[going].tolist()
    assert session.lengths_B.tolist() == [600, 40]
    assert launches[12:] == [1] * 8, "the row that goes on still runs ahead"


def test_nothing_runs_ahead_into_the_last_slot(session: Any, fakes: Any) -> None:
    cuda = fakes[0]
    session.reset(1, 6)
    tokens = session.prefill([ids(3)]).argmax(-1)
    expected = toy()
    expected.reset(1, 6)
    before = cuda.launches
    for _ in range(3):
        tokens = session.decode(tokens, sampling=GREEDY).tokens
    assert cuda.launches - before == 3
    with pytest.raises(LimitError, match="room for another token"):
        session.decode(tokens, sampling=GREEDY)


def test_engines_for_one_row_may_say_so(fakes: Any, tmp_path: Path) -> None:
    fakes[1].batch = 1
    with Engine(TensorRTExecutor(Bundle.open(make_tensorrt_bundle(tmp_path, fakes[1], max_batch=1)))) as session:
        assert fakes[1].registered
        np.testing.assert_array_equal(session.logits([1, 2, 3]), toy().logits([1, 2, 3]))


def test_any_thread_may_call(session: Any, fakes: Any) -> None:
    session.reset(1, 8)
    fakes[0].current = 0
    session.prefill([ids(3)])
    assert fakes[0].current


def test_memory_is_counted_and_twenty_loads_leave_nothing(fakes: Any, tmp_path: Path) -> None:
    cuda, trt = fakes
    bundle = Bundle.open(make_tensorrt_bundle(tmp_path, trt))
    for _ in range(20):
        with Engine(open_executor(bundle)) as session:
            session.reset(2, 30)
            session.prefill([ids(5), ids(6)])
            session.decode(ids(2), sampling=GREEDY)
            assert session.executor.device_memory_peak == cuda.used
        session.close()
        gc.collect()
        assert cuda.leaks() == (0, 0, 0, 0)
        assert trt.living == 0


def test_another_task_needs_no_kernel_that_chooses_tokens(fakes: Any, tmp_path: Path) -> None:
    bundle = make_tensorrt_bundle(tmp_path, fakes[1], task="token-classification")
    opened = Bundle.open(bundle)
    for path in (bundle / "kernels" / "sm_90").iterdir():
        path.unlink()
    with Engine(TensorRTExecutor(opened)) as session:
        for prompt in (ids(9), ids(1)):
            np.testing.assert_array_equal(session.logits(prompt), toy().logits(prompt))
