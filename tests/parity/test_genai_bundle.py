"""What a bundle of a genai target holds, what building one refuses, and the graph for CUDA."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
import torch
from nemotron_errors import BundleError, GraphError, LimitError, MissingDependencyError, RequestError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor
from nemotron_runtime.executors.onnxruntime.genai import GenaiExecutor
from support.checkpoints import ODD, run_blocked, write_checkpoint

from nemotron_export import build


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, torch.bfloat16)
    # generation configs name several ends, and defaults of the search
    settings = {"eos_token_id": [3, 7], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "bos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def quick(checkpoint: Path, output: Path, **options: Any) -> Path:
    return build(checkpoint, output, **{"max_seq_len": 64, "parity": False, "scan": False, **options})


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick(checkpoint, tmp_path_factory.mktemp("genai") / "bundle", target="genai-cpu")


def graph_of(bundle: Path) -> onnx.GraphProto:
    return onnx.load(bundle / "model.onnx", load_external_data=False).graph


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def test_the_config_says_what_genai_must_know(bundle: Path) -> None:
    config = json.loads((bundle / "genai_config.json").read_text(encoding="utf-8"))
    model, search = config["model"], config["search"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("nemotron", 320, 64)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (2, [3, 7], 0)
    decoder = model["decoder"]
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "head_size")
    assert [decoder[name] for name in sizes] == [96, 4, 2, 3, 32]
    assert decoder["session_options"]["provider_options"] == []
    assert search == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_length": 64, "past_present_share_buffer": True,
    }  # fmt: skip
    read = og.GeneratorParams(og.Model(str(bundle))).get_search_options()
    assert {name: read[name] for name in ("do_sample", "max_length", "past_present_share_buffer")} == {
        "do_sample": True, "max_length": 64, "past_present_share_buffer": True,
    }  # fmt: skip
    assert read["temperature"] == pytest.approx(0.7)


def test_the_graph_has_genais_contract(bundle: Path) -> None:
    graph = graph_of(bundle)
    inputs, outputs = ({value.name: dims(value) for value in values} for values in (graph.input, graph.output))
    assert inputs["input_ids"] == ["batch", "tokens"]
    assert inputs["attention_mask"] == ["batch", "total_tokens"]
    assert outputs["logits"] == ["batch", "tokens", 320]
    layers = range(ODD["num_hidden_layers"])  # type: ignore[call-overload]
    caches = [f"{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    assert list(inputs) == ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in caches)]
    assert list(outputs) == ["logits", *(f"present.{name}" for name in caches)]
    assert inputs["past_key_values.2.value"] == ["batch", 2, "past_tokens", 32]
    assert outputs["present.2.value"] == ["batch", 2, "present_tokens", 32]
    types = {value.type.tensor_type.elem_type for value in (*graph.input[:2],)}
    assert types == {onnx.TensorProto.INT64}


def test_the_weights_are_links_inside_the_folder(checkpoint: Path, bundle: Path) -> None:
    weights = bundle / "weights" / "model.safetensors"
    assert os.path.samefile(weights, checkpoint / "model.safetensors")
    assert Manifest.read(bundle).weights.mode == "link"
    external = [t for t in graph_of(bundle).initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    locations = {entry.value for t in external for entry in t.external_data if entry.key == "location"}
    assert locations == {"weights/model.safetensors"}
    assert {t.data_type for t in external} == {onnx.TensorProto.BFLOAT16}
    offsets = [int(entry.value) for t in external for entry in t.external_data if entry.key == "offset"]
    assert len(offsets) == len(set(offsets)) == 4 + 3 * 10
    assert (bundle / "model.onnx").stat().st_size < 400_000


def test_weights_that_moved_away_are_still_found_by_our_runtime(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(bundle, tmp_path / "moved", ignore=shutil.ignore_patterns("model.safetensors")))
    with pytest.raises(BundleError, match="--weights-dir"):
        nemotron_runtime.load(moved, allow_unverified=True)
    with nemotron_runtime.load(moved, weights_dir=checkpoint, allow_unverified=True) as model:
        found = model.generate([5, 6, 7], max_new_tokens=4).token_ids
    with nemotron_runtime.load(bundle, allow_unverified=True) as model:
        assert model.generate([5, 6, 7], max_new_tokens=4).token_ids == found


@pytest.mark.parametrize("target", ["genai-cpu", "genai-cuda"])
def test_weights_by_reference_are_refused_with_the_way_out(checkpoint: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(RequestError) as caught:
        quick(checkpoint, tmp_path / "bundle", target=target, weights="reference")
    assert caught.value.found == "reference"
    assert caught.value.expected.startswith(f"link or copy for target {target}")
    assert "--weights link" in caught.value.remedy
    assert caught.value.where == "--weights"
    assert not (tmp_path / "bundle").exists()


def test_a_head_that_writes_no_text_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="causal-lm for target genai-cpu") as caught:
        quick(checkpoint, tmp_path / "bundle", target="genai-cpu", task="feature-extraction")
    assert caught.value.where == "--task"


def test_a_proof_that_needs_a_gpu_is_refused_before_it_begins(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a parity check of target genai-cuda") as caught:
        quick(checkpoint, tmp_path / "bundle", target="genai-cuda", parity=True)
    assert "--no-parity" in caught.value.remedy


@pytest.mark.parametrize(("target", "dtype"), [("genai-cpu", "bfloat16"), ("genai-cuda", "float32")])
def test_dtypes_of_the_other_target_are_refused(checkpoint: Path, tmp_path: Path, target: str, dtype: str) -> None:
    with pytest.raises(GraphError, match=f"for target {target}"):
        quick(checkpoint, tmp_path / "bundle", target=target, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_graph_for_cuda_computes_in_its_dtype(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    path = quick(checkpoint, tmp_path / "bundle", target="genai-cuda", dtype=dtype, weights="copy")
    onnx.checker.check_model(path / "model.onnx")  # it reads no data through a link
    graph = graph_of(path)
    kinds = Counter((node.domain, node.op_type) for node in graph.node)
    assert kinds["com.microsoft", "GroupQueryAttention"] == 3
    # q, k and v are one product over a weight that ONNX Runtime puts together at load, sums go with the norms behind
    assert kinds["com.microsoft", "FusedMatMul"] == 4 * 3 + 1
    assert (kinds["", "Concat"], kinds["com.microsoft", "SkipLayerNormalization"]) == (3, 2 * 3)
    assert kinds["", "LayerNormalization"] == 1
    expected = {"bfloat16": onnx.TensorProto.BFLOAT16, "float16": onnx.TensorProto.FLOAT16}[dtype]
    computed = {value.type.tensor_type.elem_type for value in (*graph.input[2:], *graph.output[1:])}
    assert computed == {expected}
    # GenAI searches in float32 and takes float16 too
    logits = {"bfloat16": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[dtype]
    assert graph.output[0].type.tensor_type.elem_type == logits
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    # in fp16 relu² and down_proj compute in fp32: nobody measured that its range holds the square
    wide = {onnx.TensorProto.FLOAT} if dtype == "float16" else set()
    # what ONNX Runtime computes at load is float32
    folded = ("/wide", "/sum", "foldable/1", "logits")
    values = [value for value in graph.value_info if not value.name.endswith(folded)]
    found = {value.type.tensor_type.elem_type for value in values} & floats
    assert found <= {expected, onnx.TensorProto.BFLOAT16} | wide
    assert wide <= found
    # a CUDA graph can be captured over nodes of the device alone: data never decides a shape
    assert not {"NonZero", "Where", "If", "Loop", "Range", "ReduceMax"} & {node.op_type for node in graph.node}
    options = json.loads((path / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options["provider_options"] == [{"cuda": {"enable_cuda_graph": "0"}}]
    manifest = Manifest.read(path)
    assert (manifest.dtype, manifest.session.provider) == (dtype, "CUDAExecutionProvider")
    assert manifest.parity.state == "pending"


def test_our_runtime_says_what_a_cuda_folder_needs(checkpoint: Path, tmp_path: Path) -> None:
    path = quick(checkpoint, tmp_path / "half", target="genai-cuda", dtype="float16")
    with pytest.raises(MissingDependencyError, match="CUDAExecutionProvider"):
        nemotron_runtime.load(path, allow_unverified=True)
    path = quick(checkpoint, tmp_path / "brain", target="genai-cuda")
    with pytest.raises(BundleError, match="a bfloat16 cache") as caught:
        nemotron_runtime.load(path, allow_unverified=True)
    assert "ONNX Runtime GenAI" in caught.value.remedy


def test_rows_freeze_and_fill_their_cache_to_the_last_slot(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 320, n) for n in (9, 2, 5)]
    tokens = rng.integers(4, 320, (3, 4))
    with Engine(GenaiExecutor(Bundle.open(bundle, allow_unverified=True), threads=1)) as session:
        alone = []
        for prompt, row in zip(prompts, tokens, strict=True):
            session.reset(1, 13)
            first = session.prefill([prompt])[0]
            alone.append([first, *(session.decode([token]).logits[0].copy() for token in row)])
        session.reset(3, 13)
        found = [[row] for row in session.prefill(prompts)]
        for step in range(4):
            # the second row sits out two steps
            advance = np.array([True, step > 1, True])
            fed = tokens[[0, 1, 2], [step, max(step - 2, 0), step]]
            for b, logits in zip(np.flatnonzero(advance), session.decode(fed, advance).logits, strict=True):
                found[b].append(logits.copy())
        assert session.lengths_B.tolist() == [13, 4, 9]
        with pytest.raises(LimitError, match="full sequence of 13 tokens"):
            session.decode([5, 6, 7])
        np.testing.assert_allclose(session.logits(prompts[0])[-1], alone[0][0], atol=1e-5)
    for b, rows in enumerate(found):
        np.testing.assert_allclose(rows, alone[b][: len(rows)], atol=1e-5 * np.ptp(alone[b]), rtol=0)
    assert [len(rows) for rows in found] == [5, 3, 5]


def test_a_graph_of_the_other_contract_is_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle, allow_unverified=True)
    with pytest.raises(BundleError, match="past_key_values"):
        OnnxRuntimeExecutor(opened)


def test_the_command_line_builds_and_inspects_one(checkpoint: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from nemotron_export.cli.app import app

    path = tmp_path / "bundle"
    command = ["build", str(checkpoint), "-o", str(path), "--target", "genai-cpu", "--max-seq-len", "64", "--no-parity"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "weights by link" in done.output
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert shown.exit_code == 0
    assert "GroupQueryAttention" in shown.stdout
    refused = run_blocked("generate", path, "Hello", "-n", "2")
    assert refused.returncode == 2
    assert "parity pending" in refused.stderr


def test_shards_and_tied_embeddings_load_in_genai(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "whole", torch.bfloat16, tie_word_embeddings=True)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "checkpoint", max_shard_size="200KB")
    shutil.copy(tmp_path / "whole" / "tokenizer.json", tmp_path / "checkpoint")
    path = quick(tmp_path / "checkpoint", tmp_path / "bundle", target="genai-cpu")
    shards = {file.name for file in (path / "weights").glob("*.safetensors")}
    assert len(shards) > 2
    external = [t for t in graph_of(path).initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    locations = {entry.value for t in external for entry in t.external_data if entry.key == "location"}
    assert locations == {f"weights/{name}" for name in shards}
    ids = np.random.default_rng(0).integers(4, 320, 20)
    loaded = og.Model(str(path))
    params = og.GeneratorParams(loaded)
    params.set_search_options(do_sample=False, max_length=52, min_length=52)
    generator = og.Generator(loaded, params)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    # loaded anew: the cast to bf16 rounded the RoPE frequencies too
    oracle = type(model).from_pretrained(tmp_path / "checkpoint", dtype=torch.float32).eval()
    expected = oracle.generate(
        torch.from_numpy(ids)[None], max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0
    )
    assert generator.get_sequence(0).tolist() == expected[0].tolist()
