"""``ort-cuda`` bundles on a GPU: no further from fp32 than eager PyTorch in the same dtype on the same GPU.

Shapes: S tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.checks.rules import RMSE_RATIO, SHAPE_RATIO
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.onnxruntime import cuda as onnxruntime_cuda
from nemotron_runtime.executors.onnxruntime.cuda import CUDA_PROVIDER, OnnxRuntimeCudaExecutor
from nemotron_runtime.executors.onnxruntime.placement import cpu_nodes, memcpy_nodes
from nemotron_runtime.executors.onnxruntime.sampler import OnnxRuntimeSampler
from nemotron_runtime.sampling.device import GREEDY, TopCandidates
from support.gpu_models import COMMON, eager_logits, eager_pair, write_random

from nemotron_export.building import build
from nemotron_export.model import NemotronForCausalLM

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.skipif(
        CUDA_PROVIDER not in onnxruntime.get_available_providers(),
        reason="this onnxruntime has no CUDAExecutionProvider",
    ),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU to compare on"),
]

_SHARP = 0.3
V, SLOTS, CHUNK = COMMON["vocab_size"], 2048, 512
_CONFIG = {
    "max_position_embeddings": SLOTS, "hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "partial_rotary_factor": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A bundle, and PyTorch on the same GPU in fp32 and in the bundle's dtype."""

    bundle: Bundle
    session: Any
    models: tuple[NemotronForCausalLM, NemotronForCausalLM]


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder, dtype = tmp_path_factory.mktemp("ort_cuda"), request.param
    checkpoint = write_random(folder / "checkpoint", dtype, **_CONFIG)
    path = build(
        checkpoint, folder / "bundle", target="ort-cuda", max_seq_len=SLOTS, max_batch=3, prefill_chunk=CHUNK,
        parity=False,
    )  # fmt: skip
    bundle = Bundle.open(path, allow_unverified=True)
    assert bundle.manifest.session.cache_dtype == dtype
    with eager_pair(checkpoint, dtype) as models, Engine(OnnxRuntimeCudaExecutor(bundle)) as session:
        yield Built(bundle, session, models)


def ids(count: int, seed: int = 1) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(4, V, count)


def rmse(found: Any, expected: Any) -> float:
    return float(np.sqrt(np.square(np.subtract(found, expected, dtype=np.float64)).mean()))


@pytest.mark.parametrize(("chunk", "bound"), [(CHUNK, RMSE_RATIO), (131, SHAPE_RATIO)])
def test_prefill_whole_and_in_chunks(built: Built, chunk: int, bound: float) -> None:
    prompt = ids(1300)
    exact, low = (eager_logits(model, prompt) for model in built.models)
    own = rmse(low, exact)
    assert own > 0
    built.session.reset(1, len(prompt))
    found = built.session.prefill_at([prompt], [np.arange(len(prompt))], chunk=chunk)[0]
    assert rmse(found, exact) <= bound * own


@pytest.mark.parametrize("length", [16, 1200])
def test_64_greedy_tokens_flip_within_the_margin_alone(built: Built, length: int) -> None:
    prompt = ids(length, seed=length)
    session = built.session
    session.reset(1, length + 64)
    tokens = [int(session.prefill([prompt])[0].argmax())]
    for _ in range(63):
        tokens.append(int(session.decode(tokens[-1:], sampling=GREEDY).tokens[0]))
    # every position is judged behind the tokens that were chosen, so that one flip does not spoil the rest
    text = np.array([*prompt, *tokens[:-1]])
    exact, low = (eager_logits(model, text)[length - 1 :] for model in built.models)
    margins = exact.max(-1) - exact[np.arange(64), tokens]
    assert (margins <= 4 * rmse(low, exact)).all()


def decode(session: Any, slots: int) -> list[npt.NDArray[np.float32]]:
    """Logits of 12 steps of three rows of different lengths."""
    session.reset(3, slots)
    session.prefill([ids(40), ids(3, 2), ids(300, 3)])
    return [session.decode(ids(3, seed=step)).logits.copy() for step in range(12)]


def test_a_cuda_graph_changes_no_bit_also_of_caches_of_another_size(built: Built) -> None:
    with Engine(OnnxRuntimeCudaExecutor(built.bundle, cuda_graph=False)) as plain:
        assert not plain.executor.cuda_graph
        assert built.session.executor.cuda_graph
        for slots in (400, 1000, 400):
            for found, expected in zip(decode(built.session, slots), decode(plain, slots), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_the_greedy_choice_is_the_argmax(built: Built) -> None:
    session = built.session
    decode(session, 400)
    for seed in range(20):
        tokens, start = ids(3, seed), session.lengths_B
        sampler = session.executor.step(tokens, start, None, GREEDY)
        np.testing.assert_array_equal(sampler.greedy(), sampler.logits().argmax(-1))


def sampled(session: Any, seed: int, filters: dict[str, float]) -> list[tuple[int, ...]]:
    """Three rows of 24 tokens; the random model's logits are close together: a low temperature parts them."""
    params = GenerationParams(temperature=_SHARP, seed=seed, max_new_tokens=24, **filters)  # type: ignore[arg-type]
    return [result.token_ids for result in generate(session, [ids(40), ids(3, 2), ids(300, 3)], params)]


@pytest.mark.parametrize(
    "filters", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 100, "top_p": 0.8}], ids=str
)
def test_sampling_among_candidates_writes_what_all_logits_do(
    built: Built, monkeypatch: pytest.MonkeyPatch, filters: dict[str, float]
) -> None:
    session, copied, found = built.session, [], []
    assert session.executor.candidate_count == 128
    with monkeypatch.context() as counting:
        real = OnnxRuntimeSampler.logits
        counting.setattr(OnnxRuntimeSampler, "logits", lambda self: copied.append(1) or real(self))
        for seed in range(4):
            found.append(sampled(session, seed, filters))
    # 4 seeds of 23 steps: all logits come to the host only where the candidates leave it open, a tie say
    assert len(copied) < 23
    assert found[0] != found[1]
    monkeypatch.setattr(session.executor, "candidate_count", 0)
    assert [sampled(session, seed, filters) for seed in range(4)] == found


def test_candidates_are_the_largest_of_the_steps_logits(built: Built) -> None:
    session = built.session
    decode(session, 400)
    with Engine(OnnxRuntimeCudaExecutor(built.bundle, cuda_graph=False)) as plain:
        decode(plain, 400)
        for seed, temperature in enumerate((1.0, 0.05, 0.7, 0.7, 2.0)):
            tokens, start = ids(3, seed), session.lengths_B
            logits_BV = session.executor.step(tokens, start, None, None).logits().copy()
            for each in (session, plain):
                sampler = each.executor.step(tokens, start, None, TopCandidates(temperature))
                few = sampler.candidates(temperature)
                np.testing.assert_array_equal(sampler.logits(), logits_BV)
                np.testing.assert_array_equal(few.logits, -np.sort(-logits_BV, axis=-1)[:, :128])
                np.testing.assert_array_equal(np.take_along_axis(logits_BV, few.ids, -1), few.logits)
                assert all(len(set(row.tolist())) == 128 for row in few.ids)
                scores_BV = logits_BV.astype(np.float64) / temperature
                np.testing.assert_allclose(few.log_sum, np.logaddexp.reduce(scores_BV, axis=-1), atol=2e-5)


def test_no_node_on_the_cpu_and_no_copy_between_host_and_device(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for opened in (built.session.executor._session, built.session.executor._candidate_session):
        assert cpu_nodes(opened) == []
    real, numbers = onnxruntime.SessionOptions, itertools.count()

    def profiled() -> Any:
        options = real()
        options.enable_profiling = True
        # the time in a file's name has whole seconds
        options.profile_file_prefix = str(tmp_path / f"profile-{next(numbers)}")
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", profiled)
    assert onnxruntime_cuda.import_onnxruntime() is onnxruntime
    with Engine(OnnxRuntimeCudaExecutor(built.bundle, cuda_graph=False)) as session:
        decode(session, 400)
        session.decode(ids(3), sampling=TopCandidates(0.7))
        found = (session.executor._session, session.executor._candidate_session)
        profile, few = (json.loads(Path(each.end_profiling()).read_text()) for each in found)
    nodes = [event for event in profile if event.get("cat") == "Node"]
    assert any(event["args"].get("op_name") == "GroupQueryAttention" for event in nodes)
    assert memcpy_nodes(profile) == []
    assert sum(event.get("args", {}).get("op_name") == "TopK" for event in few) > 0
    assert memcpy_nodes(few) == []
