"""Sampling among a graph's candidates on a GPU without one: what runs when, what goes there and what comes back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from nemotron_errors import BundleError
from nemotron_graphs.targets.candidate_graph import CANDIDATES_FILE, candidate_graph
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.onnxruntime.cuda import OnnxRuntimeCudaExecutor
from nemotron_runtime.executors.onnxruntime.sampler import OnnxRuntimeSampler
from nemotron_runtime.sampling.device import TopCandidates
from support.bundles import TinyModel, make_bundle
from support.recorded_onnxruntime import CUDA, Recorded, record

COUNT = 32
LIKE = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 21]>\ng (float[b] x) => (float[b] y) { y = Identity(x) }')


def add(folder: Path, model: ir.Model, count: int = COUNT) -> Bundle:
    """Puts a graph of candidates into a bundle for CUDA."""
    path = folder / CANDIDATES_FILE
    ir.save(model, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["session"] |= {
        "executor": "onnxruntime-cuda", "device": "cuda", "provider": CUDA, "cuda_graph": True,
        "candidates": {"graph": CANDIDATES_FILE, "count": count}
    }  # fmt: skip
    data = path.read_bytes()
    manifest["files"][CANDIDATES_FILE] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return add(make_bundle(tmp_path), candidate_graph(TinyModel.V, COUNT, ir.DataType.FLOAT, LIKE))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return record(monkeypatch)


def prefilled(session: Any, prompts: list[list[int]], slots: int = 20) -> Any:
    session.reset(len(prompts), slots)
    session.prefill(prompts)
    return session


def test_a_step_runs_both_graphs_each_captured_and_released(bundle: Bundle, recorded: Recorded) -> None:
    with Engine(OnnxRuntimeCudaExecutor(bundle)) as session:
        assert recorded.graphs == ["model.onnx", CANDIDATES_FILE]
        # the same options for both
        options = {"device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0"}
        assert recorded.providers == [(CUDA, options)] * 2
        assert session.executor.candidate_count == COUNT
        prefilled(session, [[1, 2, 3]])
        session.decode([4], sampling=TopCandidates(0.7))
        session.decode([5], sampling=TopCandidates(0.7))
        assert recorded.run_ids == ["-1", *["1", f"{CANDIDATES_FILE} 1"] * 2]
        session.decode([6])
        prefilled(session, [[1, 2], [3]])
        # what reads the logits goes first
        assert recorded.released == [f"{CANDIDATES_FILE} 1", 1]
        session.decode([7, 8])
        assert recorded.run_ids[5:] == ["1", "-1", "-1", "2"]
    # of this size no candidates were asked for: there is nothing to release
    assert recorded.released[2:] == [2]


@pytest.mark.parametrize("options", [{"cuda_graph": False}, {"allow_cpu_nodes": True}], ids=str)
def test_without_a_cuda_graph_no_run_is_marked(bundle: Bundle, recorded: Recorded, options: dict[str, bool]) -> None:
    with Engine(OnnxRuntimeCudaExecutor(bundle, **options)) as session:
        prefilled(session, [[1, 2, 3]]).decode([4], sampling=TopCandidates(0.7))
    assert recorded.run_ids == ["none", "none", f"{CANDIDATES_FILE} none"]
    assert recorded.released == []


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 2.0])
def test_candidates_are_those_of_the_steps_logits(bundle: Bundle, recorded: Recorded, temperature: float) -> None:
    prompts, tokens = [[1, 2, 3], [4, 5]], [6, 7]
    with Engine(OnnxRuntimeCudaExecutor(bundle, threads=1)) as session:
        logits_BV = prefilled(session, prompts).decode(tokens).logits.copy()
        prefilled(session, prompts)
        for warm in (1.5, temperature):
            # the same step once more, at another temperature
            sampling = TopCandidates(warm)
            sampler = session.executor.step(np.array(tokens), session.lengths_B, None, sampling)
            found = sampler.candidates(warm)
        np.testing.assert_array_equal(sampler.logits(), logits_BV)
        np.testing.assert_array_equal(found.logits, -np.sort(-logits_BV, axis=-1)[:, :COUNT])
        np.testing.assert_array_equal(np.take_along_axis(logits_BV, found.ids, -1), found.logits)
        scores_BV = logits_BV.astype(np.float64) / temperature
        np.testing.assert_allclose(found.log_sum, np.logaddexp.reduce(scores_BV, axis=-1), atol=1e-5)
        assert found.log_sum.dtype == np.float64


def test_the_temperature_goes_to_the_device_when_it_changes(
    bundle: Bundle, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(OnnxRuntimeCudaExecutor(bundle)) as session:
        prefilled(session, [[1, 2, 3]]).decode([4], sampling=TopCandidates(1.0))
        assert session.executor._device_step is not None
        few = session.executor._device_step.sampler
        sent: list[float] = []
        real = few._temperature_1

        class Noting:
            def update_inplace(self, array: Any) -> None:
                sent.extend(array.tolist())
                real.update_inplace(array)

        monkeypatch.setattr(few, "_temperature_1", Noting())
        for temperature in (1.0, 0.5, 0.5, 2.0, 0.5):
            session.decode([5], sampling=TopCandidates(temperature))
        assert sent == [0.5, 2.0, 0.5]


# filters, and how often all logits are asked for
FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 5}, "never"), ({"top_k": COUNT - 1, "top_p": 0.8}, "never"), ({"top_p": 0.6}, "at times"),
    ({"min_p": 0.2}, "at times"), ({"top_p": 0.999}, "always"), ({"top_k": COUNT + 1}, "always"),
]  # fmt: skip


@pytest.mark.parametrize(("filters", "often"), FILTERS, ids=str)
def test_a_seed_writes_the_same_tokens_with_and_without(
    bundle: Bundle, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], often: str
) -> None:
    prompts, texts = [[1, 2, 3], [4, 5]], []
    asked = {"candidates": 0, "logits": 0}
    for name in asked:
        real = getattr(OnnxRuntimeSampler, name)

        def count(*arguments: Any, name: str = name, real: Any = real) -> Any:
            # not where all logits are what a step is asked for
            asked[name] += has
            return real(*arguments)

        monkeypatch.setattr(OnnxRuntimeSampler, name, count)
    for has in (True, False):
        with Engine(OnnxRuntimeCudaExecutor(bundle, threads=1)) as session:
            if not has:
                session.executor.candidate_count = 0
            texts.append([
                result.token_ids
                for seed in range(3)
                for result in generate(session, prompts, GenerationParams(
                    temperature=0.8, seed=seed, max_new_tokens=12, num_return_sequences=2, **filters
                ))
            ])  # fmt: skip
    assert texts[0] == texts[1]
    assert asked["candidates"] == 3 * 11
    copied = asked["logits"]
    assert {"never": copied == 0, "at times": copied < 3 * 11, "always": copied == 3 * 11}[often]


def test_a_bundle_without_the_graph_loads_as_before(tmp_path: Path, recorded: Recorded) -> None:
    folder = make_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["session"].pop("candidates") is None
    manifest["session"] |= {"executor": "onnxruntime-cuda", "device": "cuda", "provider": CUDA, "cuda_graph": True}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with Engine(OnnxRuntimeCudaExecutor(Bundle.open(folder))) as session:
        assert session.executor.candidate_count == 0
        params = GenerationParams(temperature=0.8, top_k=5, seed=1, max_new_tokens=4)
        assert len(generate(session, [[1, 2]], params)[0].token_ids) > 0
    assert recorded.graphs == ["model.onnx"]


@pytest.mark.parametrize(
    ("model", "count", "says"),
    [
        (candidate_graph(TinyModel.V, 16, ir.DataType.FLOAT, LIKE), COUNT, r"outputs .*\[batch, 16\].*\[batch, 32\]"),
        (candidate_graph(95, COUNT, ir.DataType.FLOAT, LIKE), COUNT, r"inputs .*\[batch, 1, 95\].*\[batch, 1, 96\]"),
        (candidate_graph(96, COUNT, ir.DataType.FLOAT16, LIKE), COUNT, r"inputs .*float16.*logits tensor\(float\)"),
        (LIKE, COUNT, r"inputs x tensor\(float\).*temperature.*build the bundle again"),
    ],
    ids=["count", "vocabulary", "dtype", "other graph"],
)
def test_a_graph_that_does_not_fit_is_refused_at_load(
    tmp_path: Path, recorded: Recorded, model: ir.Model, count: int, says: str
) -> None:
    bundle = add(make_bundle(tmp_path), model, count)
    with pytest.raises(BundleError, match=says):
        OnnxRuntimeCudaExecutor(bundle)


def test_a_broken_graph_and_nodes_on_the_cpu_are_refused_at_load(bundle: Bundle, recorded: Recorded) -> None:
    recorded.on_cpu = ("TopK",)
    with pytest.raises(BundleError, match=r"nodes on the CPU: TopK"):
        OnnxRuntimeCudaExecutor(bundle)
    with Engine(OnnxRuntimeCudaExecutor(bundle, allow_cpu_nodes=True)) as session:
        assert session.executor.candidate_count == COUNT
    bundle.file(CANDIDATES_FILE).write_bytes(b"no graph")
    with pytest.raises(BundleError, match="fails to load"):
        OnnxRuntimeCudaExecutor(bundle, allow_cpu_nodes=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 0}, r"candidates\.count.*0 tokens.*1 to 96"),
        ({"count": 97}, r"97 tokens.*1 to 96"),
        ({"count": "32"}, r"candidates\.count.*str '32'"),
        ({"graph": "model.onnx"}, "another file than the session's graph"),
        ({"graph": "other.onnx"}, "no record of other.onnx"),
        ({"graph": "../candidates.onnx"}, "inside the folder"),
        ({"more": 1}, "unknown keys more"),
        ({"graph": None}, r"candidates\.graph"),
    ],
    ids=str,
)
def test_the_manifests_record_is_strict(bundle: Bundle, changes: dict[str, Any], says: str) -> None:
    document = json.loads((bundle.directory / "manifest.json").read_text())
    assert Manifest.from_dict(document).session.candidates is not None
    document["session"]["candidates"] |= changes
    with pytest.raises(BundleError, match=says):
        Manifest.from_dict(document)


@pytest.mark.parametrize("other", [{"task": "token-classification"}, {"session": {"executor": "genai"}}], ids=str)
def test_only_a_language_model_of_the_row_contract_has_candidates(bundle: Bundle, other: dict[str, Any]) -> None:
    document = json.loads((bundle.directory / "manifest.json").read_text())
    session = document["session"] | other.get("session", {})
    with pytest.raises(BundleError, match=r"session\.candidates.*onnxruntime for causal-lm"):
        Manifest.from_dict({**document, **other, "session": session})
