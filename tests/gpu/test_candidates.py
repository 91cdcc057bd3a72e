"""The largest logits on a GPU: the kernels beside numpy, and text sampled from them beside text from all logits.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from nemotron_runtime.executors.tensorrt.sampler import TensorRTSampler
from nemotron_runtime.sampling.device import GREEDY, Candidates, TopCandidates, find_candidates
from support.candidate_kernels import random_logits, run_candidates
from support.gpu_models import write_random

from nemotron_export.building import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels run on an NVIDIA GPU")

COUNT, ROWS, SLOTS = 128, 3, 512
# past 2048 × 16: a tournament of three launches, as of a real vocabulary
VOCAB = 33003


def check(found: Candidates, logits: np.ndarray, temperature: float) -> None:
    expected = find_candidates(logits, min(COUNT, logits.shape[1]), temperature)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.logits, expected.logits)
    # float32 exponentials and sums; what reads it leaves a share of 1e-4 undecided
    np.testing.assert_allclose(found.log_sum, expected.log_sum, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab", [1, 100, 1000, 50257, 256000])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_they_are_numpy_s(rows: int, vocab: int) -> None:
    logits = random_logits(rows, vocab)
    for temperature in (1.0, 0.3):
        check(run_candidates(logits, temperature, "cuda"), logits, temperature)


def test_equal_logits_infinities_and_nan() -> None:
    logits = random_logits(9, 256000)
    logits[0] = -3.25
    logits[1] = np.where(np.arange(256000) % 2, 0.0, -0.0)
    logits[2, [0, 2047, 2048, 255999]] = 50.0
    logits[3] = np.round(logits[3])
    logits[4] = -np.inf
    logits[5, 3:] = -np.inf
    logits[6, [2400, 7]] = np.nan, np.inf
    logits[7] = np.nan
    logits[8] *= np.float32(1e-39)
    found = run_candidates(logits, 1.0, "cuda")
    check(found, logits, 1.0)
    assert found.ids[4].tolist() == list(range(COUNT))
    # the interpreter's cases, of one block
    check(run_candidates(logits[:, :2500].copy(), 0.5, "cuda"), logits[:, :2500], 0.5)


def test_launches_that_start_early_wait_for_what_they_read() -> None:
    from support.torch_kernels import candidates

    logits = [torch.from_numpy(random_logits(2, 256000, seed=seed)).cuda() for seed in range(20)]
    temperature = torch.tensor([0.7], device="cuda")
    # no host waits between them
    found = [candidates(each, temperature) for each in logits]
    for each, (keys, masses) in zip(logits, found, strict=True):
        again_keys, again_masses = candidates(each, temperature)
        torch.cuda.synchronize()
        assert torch.equal(keys, again_keys)
        assert torch.equal(masses, again_masses)
        assert torch.equal(0xFFFFFFFF - (keys & 0xFFFFFFFF), torch.sort(each, descending=True, stable=True)[1][:, :128])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("tensorrt", reason="an engine needs TensorRT")
    folder = tmp_path_factory.mktemp("candidates")
    checkpoint = write_random(
        folder / "checkpoint", "bfloat16", vocab_size=VOCAB, max_position_embeddings=SLOTS, hidden_size=192,
        intermediate_size=416, num_attention_heads=4, num_key_value_heads=2, head_dim=64, partial_rotary_factor=0.5,
    )  # fmt: skip
    bundle: Path = build(
        checkpoint, folder / "bundle", target="tensorrt", dtype="bfloat16", max_seq_len=SLOTS, max_batch=ROWS,
        prefill_chunk=64, parity=False,
    )  # fmt: skip
    with Engine(open_executor(Bundle.open(bundle, allow_unverified=True))) as opened:
        assert isinstance(opened.executor, TensorRTExecutor)
        yield opened


def prompts(rows: int) -> list[Any]:
    return [np.random.default_rng(b).integers(0, VOCAB, 20 + 7 * b) for b in range(rows)]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_s_are_those_of_its_logits(session: Any, rows: int) -> None:
    assert session.executor.candidate_count == COUNT
    session.reset(rows, 100)
    tokens = session.prefill(prompts(rows)).argmax(-1)
    for step in range(24):
        temperature = 0.2 + step / 20
        outputs = session.decode(tokens, sampling=TopCandidates(temperature))
        found = outputs.candidates
        check(found, outputs.logits, temperature)
        # the largest is the greedy choice, also after steps that run ahead
        tokens = session.decode(found.ids[:, 0], sampling=GREEDY).tokens if step % 3 == 2 else found.ids[:, 0]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("filters", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_sampled_text_is_that_of_all_logits(
    session: Any, monkeypatch: pytest.MonkeyPatch, temperature: float, filters: dict[str, Any], rows: int
) -> None:
    params = [GenerationParams(max_new_tokens=48, temperature=temperature, seed=seed, **filters) for seed in (0, 7)]
    steps: list[Candidates] = []
    whole: list[int] = []
    step, logits = TensorRTSampler.candidates, TensorRTSampler.logits
    with monkeypatch.context() as patch:
        patch.setattr(TensorRTSampler, "candidates", lambda *given: steps.append(step(*given)) or steps[-1])
        patch.setattr(TensorRTSampler, "logits", lambda self: whole.append(len(steps)) or logits(self))
        few = [[g.token_ids for g in generate(session, prompts(rows), each)] for each in params]
    assert len(steps) == 2 * 47
    if "top_k" in filters:
        assert not whole, "128 candidates always decide among 40"
    elif temperature == 0.1:
        assert len(whole) < len(steps), "they decide where the model is sure"
    with monkeypatch.context() as patch:
        patch.setattr(session.executor, "candidate_count", 0)
        assert few == [[g.token_ids for g in generate(session, prompts(rows), each)] for each in params]
    assert few[0] != few[1]
