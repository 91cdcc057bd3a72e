"""Sampling on the TensorRT session from the largest logits, which kernels of numpy find on its device.

Shapes: B rows, C candidates, V vocabulary.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from nemotron_runtime.sampling.candidates import find_candidates
from nemotron_runtime.sampling.device import GREEDY, TopCandidates
from support.tensorrt_fakes import LOG_COUNT, V, installed, make_tensorrt_bundle, toy

RNG = np.random.default_rng(5)
COUNT = 1 << LOG_COUNT
KERNELS = ("candidates", "candidates_merge")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA and TensorRT."""
    with installed(monkeypatch) as both:
        yield both


@pytest.fixture
def bundle(fakes: Any, tmp_path: Path) -> Path:
    path: Path = make_tensorrt_bundle(tmp_path, fakes[1])
    return path


@pytest.fixture
def session(bundle: Path) -> Any:
    with Engine(TensorRTExecutor(Bundle.open(bundle))) as opened:
        yield opened


def ids(count: int) -> np.ndarray:
    return RNG.integers(0, V, count)


def check(found: Any, logits_BV: np.ndarray, temperature: float) -> None:
    expected = find_candidates(logits_BV, COUNT, temperature)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_allclose(found.log_sum, expected.log_sum, rtol=0, atol=1e-6)


def test_they_are_those_of_the_logits_whatever_ran_before(session: Any, fakes: Any) -> None:
    cuda, reference = fakes[0], toy()
    assert session.executor.candidate_count == COUNT
    for rows in (3, 1):
        prompts = [ids(n) for n in (4, 11, 7)[:rows]]
        for each in (session, reference):
            each.reset(rows, 60)
            each.prefill(prompts)
        graphs = cuda.graphs
        going = np.ones(rows, np.bool_)
        for step in range(12):
            going[0] = step < 9 or rows == 1
            tokens, temperature = ids(rows), 0.5 + step / 10
            logits_BV = reference.decode(tokens, going).logits
            launches = cuda.launches
            outputs = session.decode(tokens, going, sampling=TopCandidates(temperature))
            found = outputs.candidates
            assert cuda.launches - launches == 2, "the step, and what finds them"
            check(found, logits_BV, temperature)
            if step % 3 == 1:
                # all logits of the same step
                np.testing.assert_array_equal(outputs.logits, logits_BV)
                assert cuda.launches - launches == 2
            if step % 4 == 2:
                # a step that runs ahead of the host, and is dropped
                chosen = reference.decode(tokens, going, sampling=GREEDY).tokens
                np.testing.assert_array_equal(session.decode(tokens, going, sampling=GREEDY).tokens, chosen)
            assert session.lengths_B.tolist() == reference.lengths_B.tolist()
        assert cuda.graphs - graphs == 2, "of the step, and of what finds them"


def test_what_it_gave_stays_after_later_steps(session: Any) -> None:
    reference = toy()
    for each in (session, reference):
        each.reset(2, 30)
        each.prefill([[1, 2], [3]])
    first = session.decode([4, 5], sampling=TopCandidates(1.0)).candidates
    session.decode([6, 7], sampling=TopCandidates(2.0))
    check(first, reference.decode([4, 5]).logits, 1.0)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 2},
        {"top_k": COUNT + 3},
        {"top_p": 0.6},
        {"min_p": 0.4},
        {"top_k": 3, "min_new_tokens": 5, "eos_token_ids": (3, 4)},
        {"top_k": 3, "repetition_penalty": 1.5},
        {},
    ],
    ids=str,
)
def test_generation_takes_the_tokens_of_the_filters_on_the_host(session: Any, fakes: Any, filters: Any) -> None:
    params = GenerationParams(max_new_tokens=30, temperature=0.8, seed=11, **filters)
    prompts = [ids(5), ids(9), ids(2)]
    before = fakes[0].launches
    found, expected = generate(session, prompts, params), generate(toy(), prompts, params)
    assert [f.token_ids for f in found] == [e.token_ids for e in expected]
    steps = max(len(e.token_ids) for e in expected) - 1
    # the first token comes from the prompt, and a token that may not end the answer from all logits
    few = max(0, steps + 1 - max(1, params.min_new_tokens)) if params.draws_from_candidates else 0
    assert fakes[0].launches - before == steps + few


def rewritten(bundle: Path, key: str, **changes: Any) -> None:
    (path,) = (bundle / "kernels" / "sm_90").glob(f"*.{key}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(bundle: Path, *keys: str) -> None:
    for key in keys:
        for path in (bundle / "kernels" / "sm_90").glob(f"*.{key}.*"):
            path.unlink()


def test_a_bundle_built_before_copies_all_logits_and_says_so(
    fakes: Any, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Bundle.open(bundle)
    without(bundle, *KERNELS)
    params, prompts = GenerationParams(max_new_tokens=9, temperature=0.8, top_k=2, seed=1), [ids(5)]
    with Engine(TensorRTExecutor(opened)) as session:
        assert session.executor.candidate_count == 0
        before = fakes[0].launches
        assert generate(session, prompts, params)[0].token_ids == generate(toy(), prompts, params)[0].token_ids
        assert fakes[0].launches - before == 8
    assert "build the bundle again for faster sampling" in caplog.text


def test_another_task_loads_none(fakes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = make_tensorrt_bundle(tmp_path, fakes[1], task="token-classification")
    with caplog.at_level(logging.WARNING), Engine(TensorRTExecutor(Bundle.open(bundle))) as session:
        assert session.executor.candidate_count == 0
    assert not caplog.records


@pytest.mark.parametrize("key", KERNELS)
def test_one_kernel_without_the_other_is_refused(fakes: Any, bundle: Path, key: str) -> None:
    opened = Bundle.open(bundle)
    without(bundle, key)
    with pytest.raises(BundleError, match=f"no kernel {key}; expected candidates and candidates_merge"):
        TensorRTExecutor(opened)


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("candidates", {"arguments": [["logits_ptr", "*fp32"]]}, "a kernel candidates of logits_ptr"),
        ("candidates_merge", {"arguments": [["key_ptr", "*i64"]]}, "a kernel candidates_merge of key_ptr"),
        (
            "candidates",
            {"constexprs": {"VOCAB": V + 1, "LOG_BLOCK": 3, "LOG_COUNT": LOG_COUNT}},
            "of VOCAB 33, LOG_BLOCK 3, LOG_COUNT 2; expected one of VOCAB 32, LOG_BLOCK 3, LOG_COUNT 2",
        ),
        ("candidates_merge", {"constexprs": {"LOG_BLOCK": 3, "LOG_COUNT": 1}}, "expected one of .*LOG_COUNT 1"),
        ("candidates", {"constexprs": {}}, "of VOCAB None"),
    ],
)
def test_kernels_of_something_else_are_refused(
    fakes: Any, bundle: Path, key: str, changes: dict[str, Any], message: str
) -> None:
    opened = Bundle.open(bundle)
    rewritten(bundle, key, **changes)
    with pytest.raises(BundleError, match=message):
        TensorRTExecutor(opened)
