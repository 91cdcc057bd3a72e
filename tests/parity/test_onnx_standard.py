"""Target `onnx` with its weights in the bundle is plain ONNX: checked in full, and run by ONNX's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import onnx
import onnx.checker
import onnx.reference
import onnx.shape_inference
import onnxruntime
import pytest
import torch
from support.checkpoints import write_checkpoint

from nemotron_export import build

CONFIGS: dict[str, dict[str, Any]] = {
    "odd heads, bf16": {"dtype": torch.bfloat16},
    "biases, tied, one KV head, full rotary": {
        "dtype": torch.float32, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
        "num_key_value_heads": 1, "partial_rotary_factor": 1.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standard")
    changes = dict(request.param)
    write_checkpoint(folder / "checkpoint", changes.pop("dtype"), num_hidden_layers=2, **changes)
    made = build(folder / "checkpoint", folder / "bundle", target="onnx", weights="copy", max_seq_len=128)
    (folder / "checkpoint").rename(folder / "elsewhere")
    return made


def feed(model: onnx.ModelProto, prompt: np.ndarray, slots: int) -> dict[str, np.ndarray]:
    n = len(prompt)
    values = {"input_ids": prompt[None], "query_start": np.zeros(1, np.int64), "logits_index": np.arange(n)[None]}
    for value in model.graph.input:
        if "_cache." in value.name:
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            values[value.name] = np.zeros((1, dims[1], slots, dims[3]), np.float32)
    return values


def test_the_checker_and_strict_inference_accept_it(bundle: Path) -> None:
    path = str(bundle / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    known = {value.name for value in inferred.graph.value_info if value.type.tensor_type.HasField("shape")}
    outputs = {value.name for value in inferred.graph.output}
    assert all(name in known or name in outputs for node in inferred.graph.node for name in node.output)


def test_onnx_reference_and_plain_onnx_runtime_give_the_same_numbers(bundle: Path) -> None:
    prompt = np.random.default_rng(0).integers(4, 320, 9)
    with nemotron_runtime.load(bundle) as ours:
        expected = ours.logits(prompt)
    path = str(bundle / "model.onnx")
    model = onnx.load(path)
    values = feed(model, prompt, 12)
    span = expected.max() - expected.min()
    # no help of ours: the file by its path, as any user of ONNX Runtime opens it
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert np.abs(plain.run(["logits"], values)[0][0] - expected).max() <= 1e-5 * span
    (reference,) = onnx.reference.ReferenceEvaluator(model).run(["logits"], values)
    assert np.abs(np.asarray(reference, np.float32)[0] - expected).max() <= 1e-5 * span
