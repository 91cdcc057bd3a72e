"""``ort-cuda`` bundles on a GPU: no further from fp32 than eager PyTorch in the same dtype on the same GPU.

Shapes: S tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nemotron_runtime.bundle import Bundle
from nemotron_runtime.parity.rules import RMSE_RATIO, SHAPE_RATIO
from nemotron_runtime.sessions import onnxruntime_cuda
from nemotron_runtime.sessions.onnxruntime_cuda import CUDA_PROVIDER, OnnxRuntimeCudaSession
from nemotron_runtime.sessions.onnxruntime_placement import cpu_nodes, memcpy_nodes
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

V, SLOTS, CHUNK = COMMON["vocab_size"], 2048, 512
_CONFIG = {
    "max_position_embeddings": SLOTS, "hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "partial_rotary_factor": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A bundle, and PyTorch on the same GPU in fp32 and in the bundle's dtype."""

    bundle: Bundle
    session: OnnxRuntimeCudaSession
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
    with eager_pair(checkpoint, dtype) as models, OnnxRuntimeCudaSession(bundle) as session:
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
        tokens.append(int(session.greedy_decode(tokens[-1:])[0]))
    # every position is judged behind the tokens that were chosen, so that one flip does not spoil the rest
    text = np.array([*prompt, *tokens[:-1]])
    exact, low = (eager_logits(model, text)[length - 1 :] for model in built.models)
    margins = exact.max(-1) - exact[np.arange(64), tokens]
    assert (margins <= 4 * rmse(low, exact)).all()


def decode(session: OnnxRuntimeCudaSession, slots: int) -> list[npt.NDArray[np.float32]]:
    """Logits of 12 steps of three rows of different lengths."""
    session.reset(3, slots)
    session.prefill([ids(40), ids(3, 2), ids(300, 3)])
    return [session.decode(ids(3, seed=step)).copy() for step in range(12)]


def test_a_cuda_graph_changes_no_bit_also_of_caches_of_another_size(built: Built) -> None:
    with OnnxRuntimeCudaSession(built.bundle, cuda_graph=False) as plain:
        assert not plain.cuda_graph
        assert built.session.cuda_graph
        for slots in (400, 1000, 400):
            for found, expected in zip(decode(built.session, slots), decode(plain, slots), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_greedy_step_is_the_argmax_of_step(built: Built) -> None:
    session = built.session
    decode(session, 400)
    for seed in range(20):
        tokens, start = ids(3, seed), session.lengths_B
        expected = session.step(tokens, start).argmax(-1)
        np.testing.assert_array_equal(session.greedy_step(tokens, start), expected)


def test_no_node_on_the_cpu_and_no_copy_between_host_and_device(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu_nodes(built.session._session) == []
    real = onnxruntime.SessionOptions

    def profiled() -> Any:
        options = real()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", profiled)
    assert onnxruntime_cuda.import_onnxruntime() is onnxruntime
    with OnnxRuntimeCudaSession(built.bundle, cuda_graph=False) as session:
        decode(session, 400)
        profile = json.loads(Path(session._session.end_profiling()).read_text())
    nodes = [event for event in profile if event.get("cat") == "Node"]
    assert any(event["args"].get("op_name") == "GroupQueryAttention" for event in nodes)
    assert memcpy_nodes(profile) == []
