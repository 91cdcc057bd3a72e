"""The session on a GPU without one: options, placement and refusals, with a recorded onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nemotron_errors import BundleError, MissingDependencyError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.onnxruntime import graph as onnxruntime_graph
from nemotron_runtime.executors.onnxruntime.cuda import OnnxRuntimeCudaExecutor
from nemotron_runtime.executors.onnxruntime.placement import RECORD_PLACEMENT, check_placement, cpu_nodes, memcpy_nodes
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.sampling.device import GREEDY
from support.bundles import make_bundle
from support.recorded_onnxruntime import CPU, CUDA, Recorded, record


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = make_bundle(tmp_path, kind="fused")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["session"] |= {"executor": "onnxruntime-cuda", "device": "cuda", "provider": CUDA, "cuda_graph": True}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return record(monkeypatch)


def test_decode_steps_have_a_graph_of_their_own_and_prefill_none(
    bundle: Bundle, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine(open_executor(bundle)) as session:
        assert isinstance(session.executor, OnnxRuntimeCudaExecutor)
        options = {"device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0"}
        assert recorded.providers == [(CUDA, options)]
        assert recorded.preloaded == 1
        session.reset(1, 20)
        session.prefill([[1, 2, 3]])
        session.decode([4])
        session.decode([5])
        # the same size of cache: the buffers stay, and the graph that holds their addresses
        session.reset(1, 30)
        session.prefill([[1, 2]])
        first = session.decode([6]).logits.copy()
        assert recorded.run_ids == ["-1", "1", "1", "-1", "1"]
        session.reset(2, 30)
        assert recorded.released == [1]
        session.prefill([[1, 2], [3]])
        both = session.decode([6, 7]).logits
        assert recorded.run_ids[5:] == ["-1", "-1", "2"]
        np.testing.assert_allclose(both[0], first[0], atol=1e-5)
    assert recorded.released == [1, 2]
    assert capsys.readouterr().out == ""


def test_without_a_cuda_graph_no_run_is_marked(bundle: Bundle, recorded: Recorded) -> None:
    with Engine(OnnxRuntimeCudaExecutor(bundle, cuda_graph=False)) as session:
        session.reset(1, 20)
        session.prefill([[1, 2, 3]])
        logits = session.decode([4]).logits.copy()
        session.reset(1, 20)
        session.prefill([[1, 2, 3]])
        assert session.decode([4], sampling=GREEDY).tokens.tolist() == logits.argmax(-1).tolist()
    assert recorded.providers[0][1]["enable_cuda_graph"] == "0"
    assert recorded.run_ids == ["none"] * 4
    assert recorded.released == []


def test_nodes_on_the_cpu_are_refused_by_name_unless_allowed(bundle: Bundle, recorded: Recorded) -> None:
    recorded.on_cpu = ("MatMul", "GatherND")
    with pytest.raises(BundleError, match=r"nodes on the CPU: .*(MatMul|GatherND).*--allow-cpu-nodes"):
        OnnxRuntimeCudaExecutor(bundle)
    with Engine(OnnxRuntimeCudaExecutor(bundle, allow_cpu_nodes=True)) as session:
        assert session.executor.cuda_graph is False
    assert recorded.providers[-1][1]["enable_cuda_graph"] == "0"


def test_weights_that_are_files_are_opened_by_onnx_runtime_and_links_are_kept_for_nodes_on_the_cpu(
    bundle: Bundle, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def given_and_logits(allow_cpu_nodes: bool) -> tuple[int, np.ndarray]:
        with Engine(OnnxRuntimeCudaExecutor(bundle, threads=1, allow_cpu_nodes=allow_cpu_nodes)) as session:
            session.reset(1, 8)
            return len(session.executor._session.weights), session.prefill([np.arange(3, 9)])

    given, logits = given_and_logits(True)
    assert given == 0
    # as in a hub's cache: ONNX Runtime refuses to follow a link out of the folder
    (weights,) = bundle.weights_directory.glob("*.safetensors")
    weights.symlink_to(weights.rename(weights.parent.parent / "blob"))
    given, linked = given_and_logits(True)
    assert given > 0
    assert "a link, copied on the host" in caplog.text
    np.testing.assert_array_equal(linked, logits)
    given, on_device = given_and_logits(False)
    assert given == 0
    np.testing.assert_array_equal(on_device, logits)


def test_an_onnxruntime_without_cuda_is_named(bundle: Bundle) -> None:
    with pytest.raises(MissingDependencyError, match=CUDA):
        open_executor(bundle)


def test_cuda_that_does_not_start_is_said_before_a_session_falls_back(
    bundle: Bundle, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(array: Any, device: str, number: int) -> Any:
        raise RuntimeError("CUDA Provider not available, can't get interface for it")

    monkeypatch.setattr(recorded, "OrtValue", SimpleNamespace(ortvalue_from_numpy=refuse), raising=False)
    with pytest.raises(MissingDependencyError, match=r"does not start: Failed to load something.*LD_LIBRARY_PATH"):
        open_executor(bundle)
    monkeypatch.setattr(recorded, "preload_dlls", lambda directory: None, raising=False)
    with pytest.raises(MissingDependencyError, match="does not start: CUDA Provider not available"):
        open_executor(bundle)
    assert recorded.providers == []


def test_shape_arithmetic_may_stay_on_the_host() -> None:
    def node(op_type: str) -> SimpleNamespace:
        return SimpleNamespace(op_type=op_type, name=op_type.lower())

    parts = [
        SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [node("Add")]),
        SimpleNamespace(ep_name=CPU, get_nodes=lambda: [node("Shape"), node("Relu")]),
    ]
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    assert cpu_nodes(session) == ["Relu 'relu'"]
    parts[1].get_nodes = lambda: [node("Shape")]
    check_placement(session, "here")
    parts[1].get_nodes = lambda: [node("Mul")] * 11
    with pytest.raises(BundleError, match=r"11 nodes on the CPU: .* and 3 more"):
        check_placement(session, "here")


def test_the_placement_of_a_real_session(tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path, kind="fused"))
    graph = str(bundle.file(bundle.manifest.session.graph))
    session = onnxruntime_graph.open_graph(bundle, graph, 1, config={RECORD_PLACEMENT: "1"})
    assert any(name.startswith("GroupQueryAttention") for name in cpu_nodes(session))
    with pytest.raises(BundleError, match=r"GroupQueryAttention|MatMul"):
        check_placement(session, "here")


def test_copies_in_a_profile_are_named_once() -> None:
    def event(name: str, op: str, cat: str = "Node") -> dict[str, Any]:
        return {"cat": cat, "name": name, "args": {"op_name": op}}

    profile = [
        event("a_kernel_time", "Add"), event("m_kernel_time", "MemcpyToHost"), event("m_kernel_time", "MemcpyToHost"),
        event("n_kernel_time", "MemcpyFromHost"), event("s", "MemcpyToHost", "Session"), {"cat": "Node"},
    ]  # fmt: skip
    assert memcpy_nodes(profile) == ["m_kernel_time", "n_kernel_time"]
