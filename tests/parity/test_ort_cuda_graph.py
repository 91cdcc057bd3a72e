"""The graph of ``ort-cuda`` by ONNX Runtime's CPU kernels: judged like any bundle, and its device session's steps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from nemotron_errors import GraphError
from nemotron_graphs.passes.fuse import qkv as pack_qkv
from nemotron_graphs.targets import TARGETS
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.onnxruntime import cuda as onnxruntime_cuda
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor
from nemotron_runtime.executors.onnxruntime.cuda import OnnxRuntimeCudaExecutor
from nemotron_runtime.executors.onnxruntime.sampler import OnnxRuntimeSampler
from nemotron_runtime.sampling.device import GREEDY
from support.checkpoints import write_checkpoint
from support.cuda_graphs import CASES, CPU, on_cpu

from nemotron_export import build
from nemotron_export.building.graph import make_graphs
from nemotron_export.building.limits import choose_limits
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A bundle of the target's graph that names the CPU's provider, which passed the parity protocol."""
    dtype, changes = CASES[request.param]
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ort_cuda")
    write_checkpoint(folder / "checkpoint", torch.float32, **changes)
    with on_cpu("ort-cuda"):
        return build(
            folder / "checkpoint", folder / "bundle", target="ort-cuda", dtype=dtype, max_batch=4, max_seq_len=1400,
            prefill_chunk=512, reference_steps=16,
        )  # fmt: skip


def test_the_graph_passes_the_parity_protocol_on_cpu_kernels(built: Path) -> None:
    report = json.loads((built / "parity.json").read_text())
    assert report["passed"] is True
    assert len(report["rows"]) >= 10
    graph = onnx.load(built / "model.onnx", load_external_data=False).graph
    ops = Counter(node.op_type for node in graph.node)
    # the first norm has no sum in front, the last norm the choice of positions
    assert ops["SkipLayerNormalization"] == 2 * 3 - 1
    assert ops["LayerNormalization"] == 2
    assert ops["GroupQueryAttention"] == 3
    assert ops["ArgMax"] == 1
    assert ops["ReduceMax"] == 0
    assert "total_sequence_length" in {value.name for value in graph.input}
    assert [value.name for value in graph.output][-1] == "tokens"


@pytest.fixture
def device_is_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_DEVICE", ("cpu", 0))
    # every node is on the CPU, which the check would rightly refuse
    monkeypatch.setattr(onnxruntime_cuda, "check_placement", lambda session, where: None)


@pytest.mark.usefixtures("device_is_the_host")
def test_the_device_session_computes_what_the_host_session_does(built: Path) -> None:
    bundle = Bundle.open(built)
    prompts = [np.random.default_rng(n).integers(4, 320, n) for n in (40, 7, 290)]
    with (
        Engine(OnnxRuntimeExecutor(bundle, threads=1)) as host,
        Engine(OnnxRuntimeCudaExecutor(bundle, threads=1)) as device,
    ):
        for slots in (300, 310, 700):
            for session in (host, device):
                session.reset(3, slots)
            expected = host.prefill(prompts)
            np.testing.assert_array_equal(device.prefill(prompts), expected)
            tokens = expected.argmax(-1)
            for step in range(6):
                advance = np.array([True, step < 3, True])
                expected = host.decode(tokens, advance).logits
                if step % 2:
                    np.testing.assert_array_equal(
                        device.decode(tokens, advance, sampling=GREEDY).tokens, expected.argmax(-1)
                    )
                else:
                    np.testing.assert_array_equal(device.decode(tokens, advance).logits, expected)
                tokens[advance] = expected.argmax(-1)
            assert device.lengths_B.tolist() == host.lengths_B.tolist()


@pytest.mark.usefixtures("device_is_the_host")
@pytest.mark.parametrize(
    "filters", [{"top_k": 40}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 100, "top_p": 0.9}], ids=str
)
def test_sampling_among_candidates_writes_what_all_logits_do(
    built: Path, monkeypatch: pytest.MonkeyPatch, filters: dict[str, float]
) -> None:
    bundle, copied, texts = Bundle.open(built), [], []
    record = bundle.manifest.session.candidates
    assert record is not None
    assert (record.count, record.graph in bundle.manifest.files) == (128, True)
    prompts = [np.random.default_rng(n).integers(4, 320, n) for n in (40, 7)]
    real = OnnxRuntimeSampler.logits
    monkeypatch.setattr(OnnxRuntimeSampler, "logits", lambda self: (copied.append(1) if has else None) or real(self))
    for has in (True, False):
        with Engine(OnnxRuntimeCudaExecutor(bundle, threads=1)) as session:
            if not has:
                session.executor.candidate_count = 0
            for seed in range(3):
                params = GenerationParams(temperature=0.3, seed=seed, max_new_tokens=16, **filters)
                texts.append([result.token_ids for result in generate(session, prompts, params)])
    assert texts[:3] == texts[3:]
    assert texts[0] != texts[1]
    # of 3 seeds and 15 steps
    assert len(copied) < 45 / 2


@pytest.mark.parametrize("shape", [
    # layers, hidden, heads, KV heads, head_dim, FFN
    (32, 3072, 24, 8, 128, 9216), (32, 4096, 48, 8, 128, 16384), (32, 4096, 32, 32, 128, 16384),
    (40, 6144, 48, 48, 128, 24576), (32, 6144, 48, 8, 128, 24576), (96, 18432, 96, 8, 192, 73728),
])  # fmt: skip
def test_published_attention_shapes_lower_to_fused_nodes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    layers, _, heads, kv_heads, head_dim, _ = shape
    # the widths that do not reach a node's attributes stay small: a checkpoint is written
    write_checkpoint(
        tmp_path, torch.bfloat16, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=head_dim, hidden_size=8, intermediate_size=8, vocab_size=320,
    )  # fmt: skip
    opened = Checkpoint.open(tmp_path)
    limits = choose_limits(opened.config, 512, 2, 256)
    lowered = make_graphs(opened, TARGETS["ort-cuda"], "bfloat16", limits)
    attentions = [node for node in lowered.main.model.graph if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == layers
    assert all(node.attributes.get_int("do_rotary") == 1 for node in attentions)
    assert sum(node.op_type == "SkipLayerNormalization" for node in lowered.main.model.graph) == 2 * layers - 1
    assert lowered.session["provider"] == "CUDAExecutionProvider"
    assert lowered.session["cache_dtype"] == "bfloat16"
    assert lowered.session["cuda_graph"] is True
    # a bf16 run of a bf16 checkpoint converts no weight but, at load, the norms'; the logits alone widen
    casts = [node.inputs[0].name for node in lowered.main.model.graph if node.op_type == "Cast"]
    norms = [name for name in casts if "norm" in name]
    assert sorted(set(casts) - set(norms)) == ["lengths/last", "logits/narrow"]
    assert len(norms) == 2 * (2 * opened.config.num_hidden_layers + 1)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_gamma_can_be_folded(tmp_path: Path, stored: torch.dtype, dtype: str) -> None:
    write_checkpoint(tmp_path, stored)
    opened = Checkpoint.open(tmp_path)
    graph = make_graphs(opened, TARGETS["ort-cuda"], dtype, choose_limits(opened.config, 512, 2, 256)).main.model.graph
    norms = [node for node in graph if "LayerNormalization" in node.op_type]
    assert len(norms) == 2 * opened.config.num_hidden_layers + 1
    for node in norms:
        gamma = node.inputs[1 if node.op_type == "LayerNormalization" else 2]
        cast = gamma.producer()  # type: ignore[union-attr]
        assert cast is not None
        assert cast.op_type == "Cast"
        total = cast.inputs[0]
        assert total is not None
        # ONNX Runtime folds no sum in a dtype of 16 bits
        assert total.dtype == ir.DataType.FLOAT
        assert total.producer().op_type == "Add"  # type: ignore[union-attr]


def test_a_language_model_alone_has_candidates(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, torch.float32)
    for task, has in (("causal-lm", True), ("feature-extraction", False)):
        opened = Checkpoint.open(tmp_path, task=task)
        lowered = make_graphs(opened, TARGETS["ort-cuda"], "float16", choose_limits(opened.config, 512, 2, 256))
        assert ("candidates" in lowered.session) == has
        assert ("candidates" in lowered.graphs) == has


def test_cpu_nodes_are_allowed_for_this_target_alone() -> None:
    assert TARGETS["ort-cuda"].allowing_cpu_nodes().session["allow_cpu_nodes"] is True
    with pytest.raises(GraphError, match=r"target ort-cpu.*ort-cuda"):
        TARGETS["ort-cpu"].allowing_cpu_nodes()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantized_projections_take_scales_of_the_run_dtype(tmp_path: Path, quantize: str) -> None:
    write_checkpoint(tmp_path / "checkpoint", torch.float32)
    path = tmp_path / "bundle"
    build(tmp_path / "checkpoint", path, target="ort-cuda", dtype="float16", quantize=quantize, parity=False)
    graph = onnx.load(path / "model.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    # four projections a layer, queries, keys and values being one, and lm_head
    assert len(products) == 4 * 3 + 1
    assert sum("qkv_proj" in node.input[1] for node in products) == 3
    casts = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    for node in products:
        # without a parity check relu² and down_proj compute in fp32
        wide = "down_proj" in node.input[1]
        assert casts.get(node.input[2]) == (None if wide else onnx.TensorProto.FLOAT16)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["session"]["provider"] = CPU
    (path / "manifest.json").write_text(json.dumps(manifest))
    ids = np.random.default_rng(0).integers(4, 320, 60)
    with Engine(OnnxRuntimeExecutor(Bundle.open(path, allow_unverified=True), threads=1)) as session:
        found = session.logits(ids)
    with torch.inference_mode():
        exact = load_model(Checkpoint.open(tmp_path / "checkpoint"), torch.float32)(torch.from_numpy(ids)[None])
    expected = exact.logits[0].numpy()
    error = np.sqrt(np.square(found - expected).mean()) / expected.std()
    assert error < {"int8": 0.2, "int4": 0.9}[quantize]


def test_packed_codes_compute_what_three_products_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "checkpoint", torch.float32)
    ids, found = np.random.default_rng(0).integers(4, 320, 60), []
    for name, products in (("packed", 4), ("apart", 6)):
        if name == "apart":
            # no projection is quantized as the pass sees it, and none is expected to be packed
            monkeypatch.setattr(pack_qkv, "_pack_quantized", pack_qkv.pack_projections)
            target = TARGETS["ort-cuda"]
            recipe = replace(target.graphs["model"], forms={})
            monkeypatch.setitem(TARGETS, "ort-cuda", replace(target, graphs={"model": recipe}))
        path = tmp_path / name
        build(tmp_path / "checkpoint", path, target="ort-cuda", dtype="float16", quantize="int4", parity=False)
        graph = onnx.load(path / "model.onnx", load_external_data=False).graph
        assert sum(node.op_type == "MatMulNBits" for node in graph.node) == products * 3 + 1
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["session"]["provider"] = CPU
        (path / "manifest.json").write_text(json.dumps(manifest))
        with Engine(OnnxRuntimeExecutor(Bundle.open(path, allow_unverified=True), threads=1)) as session:
            found.append(session.logits(ids))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3 * np.ptp(found[1]))
