"""What the TensorRT session refuses, over a CUDA and a TensorRT of numpy: three parts each, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nemotron_errors import BundleError, MissingDependencyError, NemotronError, RequestError, ResourceError
from nemotron_runtime.bundle.folder import Bundle, write_manifest
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from support.cuda_driver import FakeCuda
from support.tensorrt_fakes import WEIGHTS, V, install, installed, make_tensorrt_bundle, toy


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA and TensorRT."""
    with installed(monkeypatch) as both:
        yield both


def refuse(bundle: Path, error: type[NemotronError], match: str) -> NemotronError:
    with pytest.raises(error, match=match) as caught:
        TensorRTExecutor(Bundle.open(bundle))
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
    return caught.value


def rewrite(bundle: Path, **changes: Any) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.tensorrt is not None
    write_manifest(bundle, replace(manifest, tensorrt=replace(manifest.tensorrt, **changes)))


def test_another_tensorrt_another_gpu_and_other_weights_are_refused(fakes: Any, tmp_path: Path) -> None:
    cuda, trt = fakes
    bundle = make_tensorrt_bundle(tmp_path / "a")
    trt.__version__ = "10.7.0"
    refuse(bundle, BundleError, r"found TensorRT 10\.7\.0; expected TensorRT 10\.6\.0")
    trt.__version__ = "10.6.0.post1"
    cuda.capability = (8, 9)
    refuse(bundle, BundleError, r"found A GPU of numpy \(sm_89\); expected a GPU of sm_90")
    cuda.capability = (9, 0)
    refuse(make_tensorrt_bundle(tmp_path / "b", dtype="bfloat16"), BundleError, "nemotron-export convert")
    manifest = Manifest.read(bundle)
    assert manifest.tensorrt is not None
    rewrite(bundle, weights=(replace(manifest.tensorrt.weights[0], shape=(V, 9)), *manifest.tensorrt.weights[1:]))
    refuse(bundle, BundleError, f"found {V * 16} bytes; expected {V * 18} bytes")


def test_engines_that_do_not_load_or_fit_are_refused(fakes: Any, tmp_path: Path) -> None:
    trt = fakes[1]
    bundle = make_tensorrt_bundle(tmp_path)
    trt.renamed = {"query_start": "query_begin"}
    refuse(bundle, BundleError, "inputs missing or unknown: query_begin, query_start")
    trt.renamed = {}
    name = next(iter(WEIGHTS))
    manifest = Manifest.read(bundle)
    assert manifest.tensorrt is not None
    rewrite(bundle, weights=(replace(manifest.tensorrt.weights[0], shape=(8, V)), *manifest.tensorrt.weights[1:]))
    refuse(bundle, BundleError, rf"found {name} of float16 \[{V}, 8\]; expected float16 \[8, {V}\]")
    rewrite(bundle, weights=manifest.tensorrt.weights)
    most = trt.profiles
    trt.profiles = [(1, 16, 4), (3, 16, 4)]
    refuse(bundle, BundleError, "found 2 optimization profiles; expected one")
    trt.profiles, trt.rows = most, 3
    refuse(bundle, BundleError, "found an engine for 3 sequences; expected one for 4")
    engine = bundle / "decode.engine"
    opened = Bundle.open(bundle)
    engine.write_text("no engine")
    with pytest.raises(BundleError, match=r"refuses: Magic tag does not match; expected an engine of TensorRT 10\.6"):
        TensorRTExecutor(opened)


def test_too_little_memory_is_refused_and_gives_back_what_it_took(fakes: Any, tmp_path: Path) -> None:
    cuda, trt = fakes
    bundle = make_tensorrt_bundle(tmp_path, trt)
    cuda.total = 1000
    refuse(bundle, ResourceError, "for the weights")
    cuda.total = 6000
    refuse(bundle, ResourceError, "for the engines' activations")
    cuda.total = 60_000
    with Engine(open_executor(Bundle.open(bundle))) as session:
        with pytest.raises(ResourceError, match="for the KV cache of 4 sequences of 600 tokens"):
            session.reset(4, 600)
        with pytest.raises(RequestError, match="found 4 prompts; expected 0"):
            session.prefill([[1]] * 4)
        session.reset(1, 20)
        np.testing.assert_array_equal(session.prefill([[1, 2, 3]])[0], toy().logits([1, 2, 3])[-1])


def test_a_changed_chunk_is_refused(fakes: Any, tmp_path: Path) -> None:
    bundle = make_tensorrt_bundle(tmp_path)
    shard = tmp_path / "checkpoint" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    refuse(bundle, BundleError, "for chunk")


def test_missing_kernels_are_refused(fakes: Any, tmp_path: Path) -> None:
    bundle = make_tensorrt_bundle(tmp_path)
    opened = Bundle.open(bundle)
    for path in (bundle / "kernels" / "sm_90").glob("*.argmax_combine.*"):
        path.unlink()
    with pytest.raises(BundleError, match="no kernel argmax_combine"):
        TensorRTExecutor(opened)


def test_missing_packages_are_named(fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_tensorrt_bundle(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    error = refuse(bundle, MissingDependencyError, "no tensorrt")
    assert error.remedy == 'pip install "nemotron-export[tensorrt]"'


def test_errors_of_passes_and_plugins_are_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors: list[Exception] = []
    _, trt = install(monkeypatch, cuda=FakeCuda(), plugin_errors=errors)
    bundle = Bundle.open(make_tensorrt_bundle(tmp_path, trt))
    errors.append(KeyError("of a build before"))
    with Engine(open_executor(bundle)) as session:
        session.reset(1, 20)
        trt.fails = "enqueue: no such tactic"
        with pytest.raises(ResourceError, match="a pass that fails: enqueue: no such tactic"):
            session.prefill([[1, 2, 3]])
        session.reset(1, 20)
        errors.append(KeyError("cached_attention_prefill"))
        with pytest.raises(ResourceError, match="cached_attention_prefill") as caught:
            session.prefill([[1, 2, 3]])
        assert isinstance(caught.value.__cause__, KeyError)
        session.reset(1, 20)
        errors.append(BundleError("a kernel", "another", "build again"))
        with pytest.raises(BundleError, match="found a kernel; expected another"):
            session.prefill([[1, 2, 3]])
        session.reset(1, 20)
        np.testing.assert_array_equal(session.prefill([[1, 2, 3]])[0], toy().logits([1, 2, 3])[-1])


def test_a_bundle_without_the_record_is_refused(fakes: Any, tmp_path: Path) -> None:
    bundle = make_tensorrt_bundle(tmp_path)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match="no record of its engines"):
        TensorRTExecutor(replace(opened, manifest=replace(opened.manifest, tensorrt=None)))


def test_the_session_imports_neither_torch_nor_triton_nor_what_it_may_lack() -> None:
    code = """
import sys
blocked = ("torch", "triton", "onnx", "tensorrt", "cuda")
for name in blocked:
    sys.modules[name] = None
import nemotron_plugins.driver.kernel, nemotron_plugins.library, nemotron_runtime.cuda
import nemotron_runtime.executors.tensorrt.executor
print([name for name in sys.modules if name.partition(".")[0] in blocked and sys.modules[name] is not None])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
