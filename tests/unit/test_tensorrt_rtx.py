"""Engines for RTX, built here by NVIDIA's builder, and the same graphs for TensorRT."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from nemotron_errors import BundleError, GraphError, MissingDependencyError, NemotronError, RequestError
from nemotron_plugins.library import KernelLibrary
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.executors.tensorrt import cache as tensorrt_cache
from support import tensorrt_fakes
from support.checkpoints import ODD, write_checkpoint
from support.tensorrt_builder import FakeBuilderModule

from nemotron_export.building import build
from nemotron_export.building import tensorrt as building
from nemotron_export.building.tensorrt_rtx import DEFAULT_ARCHITECTURES
from nemotron_export.tensorrt.gpu import Gpu

rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA has no TensorRT for RTX for this system")
GPU = Gpu("A GPU of numpy", "sm_90", 132, "570.86.15", 40_000_000_000, 80_000_000_000)
SLOTS = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, torch.bfloat16)
    return path


def make(checkpoint: Path, output: Path, target: str = "tensorrt-rtx", **options: Any) -> Path:
    return build(checkpoint, output, target=target, max_seq_len=SLOTS, max_batch=2, prefill_chunk=32,
                 **{"parity": False, **options})  # fmt: skip


def test_engines_for_three_architectures_are_built_without_a_gpu(checkpoint: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    path = make(checkpoint, tmp_path / "bundle", progress=lambda stage, done, total: stages.append(stage))
    opened = Bundle.open(path, allow_unverified=True)
    manifest, record = opened.manifest, opened.manifest.tensorrt_rtx
    assert record is not None
    assert manifest.tensorrt is None
    assert (manifest.target, manifest.session.executor, manifest.dtype) == ("tensorrt-rtx", "tensorrt-rtx", "bfloat16")
    assert (manifest.parity.state, manifest.parity.reason) == ("pending", "built with --no-parity")
    assert tuple(record.engines) == DEFAULT_ARCHITECTURES == ("sm_86", "sm_89", "sm_120")
    assert rtx.__version__.startswith(record.version)
    assert record.cache_capacity == SLOTS
    for architecture, name in record.engines.items():
        # an engine holds no weights, and kernels of its architecture alone
        assert (path / name).stat().st_size > 100_000
        assert f"build {architecture} engine" in stages
    assert len({(path / name).read_bytes() for name in record.engines.values()}) > 1
    graph = onnx.load(path / manifest.session.graph).graph
    weights = {weight.name: weight for weight in record.weights}
    assert {value.name for value in graph.input} > set(weights)
    assert all(len(weight.parts) == 1 for weight in weights.values())
    assert len(weights) == len([name for name in manifest.session.inputs if name.endswith((".weight", ".bias"))])
    with pytest.raises(BundleError, match="engines of TensorRT for RTX"):
        open_executor(opened)


def test_the_builder_stops_when_it_is_told_to(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        if stage == "build sm_89 engine":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(checkpoint, tmp_path / "here" / "bundle", progress=progress)
    assert seen.count("build sm_89 engine") == 1
    assert "build sm_120 engine" not in seen
    assert list(tmp_path.iterdir()) == []


def refuse(checkpoint: Path, output: Path, error: type[NemotronError], match: str, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        make(checkpoint, output, **options)
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
    assert not output.exists()


def test_what_is_refused_before_anything_is_made(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    refuse(checkpoint, output, RequestError, "add --no-parity", parity=True)
    refuse(checkpoint, output, RequestError, "'sm_90'; expected", architectures=["sm_90"])
    refuse(checkpoint, output, GraphError, "expected float16: an engine reads", dtype="float16")
    refuse(checkpoint, output, RequestError, "--no-plugins for target tensorrt-rtx", plugins=False)
    refuse(checkpoint, output, RequestError, "--no-plugins for target ort-cpu", plugins=False, target="ort-cpu")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    refuse(checkpoint, output, MissingDependencyError, r"nemotron-export\[tensorrt-rtx\]")


def test_the_builders_errors_are_ours(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeBuilderModule("1.7.1.116")
    fake.parser_errors = [(27, "node_TensorScatter_30", "TensorScatter", "a cache of unknown length")]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake)
    refuse(checkpoint, tmp_path / "bundle", GraphError, r"TensorScatter 'node_TensorScatter_30' \(node 27\)")
    fake.parser_errors = []
    make(checkpoint, tmp_path / "bundle", architectures=["86", "sm_120", "sm_86"])
    assert [told.config.capabilities for told in fake.builds] == [["SM86"], ["SM120"]]
    prompts, steps = fake.builds[0].config.profiles
    heads, dim = ODD["num_key_value_heads"], ODD["head_dim"]
    assert prompts["input_ids"] == ((1, 1), (1, 32), (2, 32))
    assert steps["input_ids"] == ((1, 1), (1, 1), (2, 1))
    assert steps["logits_index"] == ((1, 1), (1, 1), (2, 1))
    assert prompts["k_cache.0"] == ((1, heads, SLOTS, dim), (1, heads, SLOTS, dim), (2, heads, SLOTS, dim))


class TestNoPlugins:
    """``--target tensorrt --no-plugins``."""

    @pytest.fixture
    def fake(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBuilderModule:
        from contextlib import nullcontext

        made = FakeBuilderModule("10.15.1.29")
        plugins = SimpleNamespace(take_error=lambda: None, use_library=nullcontext, register=pytest.fail)
        monkeypatch.setitem(sys.modules, "tensorrt", made)
        monkeypatch.setitem(sys.modules, "nemotron_plugins.tensorrt", plugins)
        monkeypatch.setattr(building, "find_gpu", lambda: GPU)
        monkeypatch.setattr(building, "current_gpu", nullcontext)
        monkeypatch.setattr(building, "default_cache_folder", lambda: tmp_path / "cache")

        def compile_kernels(requests: Any, gpus: Any, on_done: Any) -> dict[int, KernelLibrary]:
            assert [request.op for request in requests] == ["Argmax", "TopCandidates"], "of no layer"
            return {gpu.architecture: KernelLibrary(f"sm_{gpu.architecture}", {}) for gpu in gpus}

        monkeypatch.setattr(building, "build_library", compile_kernels)
        return made

    def test_a_tensorrt_without_the_layers_is_refused(
        self, fake: FakeBuilderModule, checkpoint: Path, tmp_path: Path
    ) -> None:
        fake.__version__ = "10.6.0.post1"
        refuse(checkpoint, tmp_path / "bundle", MissingDependencyError, r"TensorRT 10\.6\.0; expected 10\.15 or later",
               target="tensorrt", plugins=False)  # fmt: skip

    def test_both_engines_are_built_of_native_layers(
        self, fake: FakeBuilderModule, checkpoint: Path, tmp_path: Path
    ) -> None:
        path = make(checkpoint, tmp_path / "bundle", "tensorrt", plugins=False)
        manifest = Manifest.read(path)
        record = manifest.tensorrt
        assert record is not None
        assert record.cache_capacity == SLOTS
        assert (manifest.session.executor, manifest.target) == ("tensorrt", "tensorrt")
        for name in ("prefill", "decode"):
            model = onnx.load(path / f"graphs/{name}.onnx")
            assert {node.domain for node in model.graph.node} == {""}
            assert "Attention" in {node.op_type for node in model.graph.node}
            assert self.parsed_by_rtx(model)
        for told in fake.builds:
            assert told.config.features == {}
            assert told.network.flags == ["override"]

    def parsed_by_rtx(self, model: onnx.ModelProto) -> bool:
        """TensorRT for RTX has the parser of TensorRT's later versions, and needs no GPU for it."""
        logger = rtx.Logger(rtx.Logger.ERROR)
        builder = rtx.Builder(logger)
        network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = rtx.OnnxParser(network, logger)
        parser.set_flag(rtx.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        parsed = bool(parser.parse(model.SerializeToString()))
        assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
        return parsed

    def test_a_session_makes_caches_of_the_only_length(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        cuda, trt = tensorrt_fakes.install(monkeypatch)
        bundle = tensorrt_fakes.make_tensorrt_bundle(tmp_path, trt, cache_capacity=600)
        with pytest.raises(BundleError, match=r"expected float16 \[-1, 2, 600, 4\]"):
            open_executor(Bundle.open(bundle))
        shape = tensorrt_fakes._Engine.get_tensor_shape

        def fixed(self: Any, name: str) -> tuple[int, ...]:
            found = shape(self, name)
            return (*found[:2], 600, *found[3:]) if "cache" in name else found

        monkeypatch.setattr(tensorrt_fakes._Engine, "get_tensor_shape", fixed)
        made: list[int] = []
        make = tensorrt_cache.DeviceCache._make
        monkeypatch.setattr(
            tensorrt_cache.DeviceCache, "_make", lambda self, rows, slots: (made.append(slots), make(self, rows, slots))
        )
        with Engine(open_executor(Bundle.open(bundle))) as session:
            session.reset(1, 20)
            session.prefill([[1, 2, 3]])
        assert made == [600]
        # such an engine has no plugins, and must not need what those need
        assert trt.registered == 0
        gc.collect()
        assert cuda.leaks() == (0, 0, 0, 0)
