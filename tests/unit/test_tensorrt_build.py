"""build --target tensorrt, with a GPU, a TensorRT and a compiler of kernels that only take notes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from nemotron_errors import GraphError, MissingDependencyError, NemotronError, RequestError, ResourceError
from nemotron_plugins.launches.launch import CompiledKernel, GridAxis, LaunchRecord
from nemotron_plugins.launches.launch import Gpu as KernelGpu
from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.requests import KernelRequest
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest import Manifest
from support.checkpoints import ODD, write_checkpoint
from support.kernel_requests import ModelSizes
from support.tensorrt_builder import FakeBuilderModule

from nemotron_export.building import build
from nemotron_export.building import tensorrt as building
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.tensorrt import shapes as engine_shapes
from nemotron_export.tensorrt.gpu import Gpu, estimate_device

GPU = Gpu("A GPU of numpy", "sm_90", 132, "570.86.15", 40_000_000_000, 80_000_000_000)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, torch.bfloat16)
    return path


class Fakes:
    def __init__(self) -> None:
        self.trt = FakeBuilderModule()
        self.requests: list[list[KernelRequest]] = []
        self.libraries: list[KernelLibrary] = []
        self.registered = 0
        self.gpus: list[KernelGpu] = []

    def compile(self, requests: list[KernelRequest], gpus: list[KernelGpu], on_done: Any) -> dict[int, KernelLibrary]:
        self.requests.append(requests)
        self.gpus = gpus
        made = {}
        on_done(0, 34)
        on_done(34, 34)
        for gpu in gpus:
            architecture = gpu.architecture
            cubin = f"code for {architecture}".encode()
            record = LaunchRecord(
                kernel="argmax_kernel", entry="argmax", architecture=f"sm_{architecture}", dtype="bfloat16",
                arguments=(), hidden_arguments=(), constexprs={}, grid=(GridAxis(1, ("B",)),), num_warps=4,
                num_stages=1, shared_bytes=0, cluster=(1, 1, 1), scratch_bytes={}, scratch_alignment={},
                fp_fusion=True, pdl=True, triton="3.6.0", cubin_sha256=hashlib.sha256(cubin).hexdigest(),
            )  # fmt: skip
            made[architecture] = KernelLibrary(f"sm_{architecture}", {"argmax": CompiledKernel(cubin, record)})
        return made


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fakes:
    made = Fakes()
    from contextlib import contextmanager, nullcontext

    @contextmanager
    def use_library(library: KernelLibrary) -> Any:
        made.libraries.append(library)
        yield

    def register() -> None:
        made.registered += 1

    plugins = SimpleNamespace(register=register, take_error=lambda: None, use_library=use_library)
    monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
    monkeypatch.setitem(sys.modules, "nemotron_plugins.tensorrt", plugins)
    monkeypatch.setattr(building, "find_gpu", lambda: GPU)
    monkeypatch.setattr(building, "current_gpu", nullcontext)
    monkeypatch.setattr(building, "build_library", made.compile)
    monkeypatch.setattr(building, "default_cache_folder", lambda: tmp_path / "cache")
    return made


def make(checkpoint: Path, output: Path, **options: Any) -> Path:
    limits = {"max_seq_len": 64, "max_batch": 2, "prefill_chunk": 32}
    return build(checkpoint, output, target="tensorrt", parity=False, **{**limits, **options})


def test_a_bundle_holds_two_engines_their_kernels_and_a_record(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = make(checkpoint, tmp_path / "bundle", architectures=["sm_80", "90"], progress=lambda *p: told.append(p))
    opened = Bundle.open(path, allow_unverified=True)
    manifest, record = opened.manifest, opened.manifest.tensorrt
    assert record is not None
    assert (manifest.target, manifest.dtype, manifest.session.executor) == ("tensorrt", "bfloat16", "tensorrt")
    assert (manifest.parity.state, manifest.scan.done) == ("pending", True)
    assert (record.version, record.architecture, record.gpu) == ("10.6.0", "sm_90", GPU.name)
    assert record.driver == GPU.driver
    assert record.kernels == ("sm_90", "sm_80")
    wanted = {record.prefill_engine, record.decode_engine, "graphs/prefill.onnx", "graphs/decode.onnx",
              "kernels/sm_90/argmax.cubin", "kernels/sm_80/argmax.json"}  # fmt: skip
    assert wanted <= set(manifest.files)
    assert KernelLibrary.load(path / "kernels", "sm_80")["argmax"].cubin == b"code for 80"
    graphs = {name: onnx.load(path / f"graphs/{name}.onnx") for name in ("prefill", "decode")}
    outputs = [value.name for value in graphs["decode"].graph.output]
    assert (path / record.decode_engine).read_bytes() == b"plan of " + ", ".join(outputs).encode()
    assert manifest.session.graph == "graphs/decode.onnx"
    assert list(manifest.session.inputs) == [value.name for value in graphs["decode"].graph.input]
    # kernels are those of the GPU, for both engines
    assert fakes.registered == 2
    assert [library.architecture for library in fakes.libraries] == ["sm_90", "sm_90"]
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert [counts for stage, *counts in told if stage == "compile kernels"] == [[0, 34], [34, 34]]
    assert [stage for stage in stages if "engine" in stage] == ["build prefill engine", "build decode engine"]
    assert list((tmp_path / "cache").iterdir())


def test_engines_are_built_for_the_limits(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "bundle")
    prefill, decode = (told.config.profiles for told in fakes.trt.builds)
    (prefill,), (decode,) = prefill, decode
    assert prefill["input_ids"] == ((1, 1), (1, 32), (2, 32))
    assert prefill["logits_index"] == ((1, 1), (1, 1), (2, 16))
    assert decode["input_ids"] == ((1, 1), (1, 1), (2, 1))
    assert "logits_index" not in decode
    heads, dim = ODD["num_key_value_heads"], ODD["head_dim"]
    for shapes in (prefill, decode):
        assert shapes["query_start"] == ((1,), (1,), (2,))
        caches = {name for name in shapes if "_cache." in name}
        assert len(caches) == 2 * ODD["num_hidden_layers"]
        for name in caches:
            assert shapes[name] == ((1, heads, 1, dim), (1, heads, 64, dim), (2, heads, 64, dim))
    for told, shapes in zip(fakes.trt.builds, (prefill, decode), strict=True):
        # what has no shapes here is a weight, whose shape is fixed
        static = {name for name in told.network.inputs if name not in shapes}
        assert "model.layers.0.self_attn.qkv_proj.weight" in static
        assert all(name.endswith((".weight", ".bias")) for name in static)
        assert told.config.features == {"aliased": True}


def test_a_prefill_engine_takes_fewer_rows_where_chunks_are_long(
    fakes: Fakes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_shapes, "_PASS_TOKENS", 500)
    make(checkpoint, tmp_path / "bundle", max_seq_len=256, max_batch=3, prefill_chunk=250)
    (prefill,), (decode,) = (told.config.profiles for told in fakes.trt.builds)
    heads, dim = ODD["num_key_value_heads"], ODD["head_dim"]
    assert (prefill["input_ids"], prefill["query_start"]) == (((1, 1), (1, 250), (2, 250)), ((1,), (1,), (2,)))
    assert prefill["k_cache.0"] == ((1, heads, 1, dim), (1, heads, 256, dim), (2, heads, 256, dim))
    assert prefill["logits_index"] == ((1, 1), (1, 1), (2, 16))
    assert decode["input_ids"] == ((1, 1), (1, 1), (3, 1))


def test_weights_are_named_by_their_places(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    path = make(checkpoint, tmp_path / "bundle")
    record = Manifest.read(path).tensorrt
    assert record is not None
    by_name = {weight.name: weight for weight in record.weights}
    graph = onnx.load(path / "graphs/prefill.onnx").graph
    declared = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.input}
    assert [w.name for w in record.weights] == [n for n in declared if n in by_name]
    packed = by_name["model.layers.1.self_attn.qkv_proj.weight"]
    assert len(packed.parts) == 3
    for weight in record.weights:
        assert weight.shape == declared[weight.name]
        assert sum(part.length for part in weight.parts) == 2 * torch.Size(weight.shape).numel()
    data = (checkpoint / packed.parts[1].file).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:header])["model.layers.1.self_attn.k_proj.weight"]
    assert packed.parts[1].offset == header + entry["data_offsets"][0]


def test_kernels_are_those_that_the_nodes_ask_for(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    path = make(checkpoint, tmp_path / "bundle")
    (requests,) = fakes.requests
    sizes = ModelSizes(
        query_heads=4, kv_heads=2, head_dim=32, rotary_dim=16, hidden=96, intermediate=208, outputs=320, sequences=2,
        capacity=64,
    )  # fmt: skip
    assert set(requests) == set(sizes.requests.values())
    assert len(requests) == len(set(requests))
    assert fakes.gpus == [KernelGpu(90, GPU.multiprocessors)]
    # each node of the stored graphs names its own
    named = {
        attribute.s.decode()
        for name in ("prefill", "decode")
        for node in onnx.load(path / f"graphs/{name}.onnx").graph.node
        if node.domain == "nemotron"
        for attribute in node.attribute
        if attribute.name == "kernel"
    }
    executors = [request for request in requests if request.op in ("Argmax", "TopCandidates")]
    assert named == {request.to_json() for request in requests} - {request.to_json() for request in executors}


def refuse(checkpoint: Path, output: Path, error: type[NemotronError], match: str, **options: Any) -> NemotronError:
    with pytest.raises(error, match=match) as caught:
        make(checkpoint, output, **options)
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
    assert not output.exists()
    return caught.value


def test_what_cannot_be_built_is_refused_before_anything_is_made(
    fakes: Fakes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    refuse(checkpoint, output, GraphError, "in bfloat16; expected float16", dtype="float16")
    refuse(checkpoint, output, GraphError, "dtype float32", dtype="float32")
    refuse(checkpoint, output, RequestError, "'sm_99'; expected sm_80", architectures=["sm_99"])
    monkeypatch.setattr(building, "find_gpu", lambda: Gpu("Old", "sm_75", 40, "1", GPU.free, GPU.total))
    refuse(checkpoint, output, GraphError, r"Old \(sm_75\)")
    monkeypatch.setattr(building, "find_gpu", lambda: Gpu("Small", "sm_90", 40, "1", 600_000_000, 1_000_000_000))
    refuse(checkpoint, output, ResourceError, r"0\.60 GB of 1\.00 GB free on the Small")

    def none() -> Gpu:
        raise MissingDependencyError("no GPU", "one", "--target tensorrt-rtx builds without one")

    monkeypatch.setattr(building, "find_gpu", none)
    # before the checkpoint is looked for, too
    refuse(tmp_path / "nothing", output, MissingDependencyError, "found no GPU")
    assert fakes.trt.builds == []
    with pytest.raises(RequestError, match="--architectures for target ort-cpu"):
        build(checkpoint, output, target="ort-cpu", architectures=["sm_80"], parity=False)


def test_a_failed_or_interrupted_build_leaves_nothing(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    fakes.trt.build_errors = ["Error Code 10: no implementation"]
    output = tmp_path / "here" / "bundle"
    refuse(checkpoint, output, GraphError, "no implementation")
    assert not output.parent.exists()
    fakes.trt.build_errors = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "build decode engine" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(checkpoint, output, progress=progress)
    assert fakes.trt.cancelled_at == 0
    assert not output.parent.exists()


def test_flags_of_other_targets_hold_here(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    make(checkpoint, output, scan=False, weights="link")
    manifest = Manifest.read(output)
    assert (manifest.weights.mode, manifest.scan.done) == ("link", False)
    assert manifest.weights.files[0].chunks is None
    record = manifest.tensorrt
    assert record is not None
    assert {part.file for weight in record.weights for part in weight.parts} == {f.name for f in manifest.weights.files}
    make(checkpoint, output, overwrite=True)
    assert Manifest.read(output).weights.mode == "reference"


def test_weights_inside_the_engines_need_no_weights_file(fakes: Fakes, checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, source)
    with_inputs = Manifest.read(make(source, tmp_path / "inputs"))
    fakes.trt.builds.clear()
    path = make(source, tmp_path / "bundle", embed_weights=True)
    data = (source / "model.safetensors").read_bytes()
    shutil.rmtree(source)
    opened = Bundle.open(path, allow_unverified=True)
    record, apart = opened.manifest.tensorrt, with_inputs.tensorrt
    assert record is not None
    assert apart is not None
    assert (record.embedded, record.weights, opened.manifest.weights.mode) == (True, (), "embedded")
    assert (apart.embedded, with_inputs.weights.mode) == (False, "reference")
    # which weights they are is still known
    assert opened.manifest.weights.files == with_inputs.weights.files
    assert opened.placed_weights() == []
    assert not (path / "weights").exists()
    assert len(fakes.trt.builds) == 2
    for told in fakes.trt.builds:
        assert not [name for name in told.network.inputs if name.endswith(".weight")]
        assert told.constants == {
            f"{weight.name} (constant)": b"".join(data[p.offset : p.offset + p.length] for p in weight.parts)
            for weight in apart.weights
        }


def test_weights_inside_the_engines_are_refused_where_they_make_no_sense(
    fakes: Fakes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    refuse(checkpoint, output, RequestError, "--weights copy and --embed-weights", embed_weights=True, weights="copy")
    for target in ("ort-cpu", "onnx", "tensorrt-rtx", "genai-cpu"):
        with pytest.raises(RequestError, match=f"--embed-weights for target {target}") as caught:
            build(checkpoint, output, target=target, embed_weights=True, parity=False)
        assert all((caught.value.expected, caught.value.remedy))
    needed = estimate_device(Checkpoint.open(checkpoint).config, 0, Limits(64, 2, 32), "bfloat16").memory
    size = Checkpoint.open(checkpoint).num_bytes
    free = needed + size + size // 2
    monkeypatch.setattr(building, "find_gpu", lambda: Gpu("Small", "sm_90", 40, "1", free, GPU.total))
    make(checkpoint, tmp_path / "shared")
    error = refuse(checkpoint, output, ResourceError, "weights 0.00 GB", embed_weights=True)
    assert error.remedy.startswith("leave --embed-weights out: both engines then share one copy")


def test_fp16_checkpoints_are_built_in_fp16(fakes: Fakes, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", torch.float16)
    output = make(tmp_path / "checkpoint", tmp_path / "bundle")
    manifest = Manifest.read(output)
    assert (manifest.dtype, manifest.session.cache_dtype) == ("float16", "float16")
    # nothing was measured: all layers square in fp32
    assert manifest.model.fp32_mlp_layers == (0, 1, 2)
    assert {request.dtype for request in fakes.requests[0]} == {"float16", "float32"}
