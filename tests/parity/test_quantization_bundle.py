"""Quantized bundles end to end: the embedded checkpoint and an odd one, judged, replayed, and caught when spoiled."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import onnx
import pytest
import torch
from nemotron_errors import BundleError, RequestError
from nemotron_formats.weights import Int4
from nemotron_runtime.bundle.folder import Bundle, write_manifest
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.bundle.records import WeightsFile
from nemotron_runtime.checks.checking import check
from nemotron_runtime.checks.perplexity import measure_nll, perplexity
from nemotron_runtime.checks.reference import read_reference
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.open import open_executor
from support.checkpoints import run_blocked, write_checkpoint

from nemotron_export import build
from nemotron_export.checkpoint import read_header
from nemotron_export.parity.check import check_parity
from nemotron_export.parity.examine import examine
from nemotron_export.quantization import QUANTIZED_FILE

LIMITS: dict[str, Any] = {"max_seq_len": 256, "max_batch": 4, "prefill_chunk": 64}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """head_dim 32, hidden 96 (no multiple of 64 or 128), biases everywhere, tied embeddings."""
    path = tmp_path_factory.mktemp("odd") / "checkpoint"
    write_checkpoint(path, torch.bfloat16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    return path


@pytest.fixture(scope="module", params=["int8", "int4"])
def odd_bundle(request: pytest.FixtureRequest, odd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / request.param
    return build(odd_checkpoint, output, quantize=request.param, weights="copy", **LIMITS)


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = Path(str(files("nemotron_export") / "assets" / "demo"))
    return build(demo, tmp_path_factory.mktemp("bundle") / "demo", quantize="int4", **LIMITS)


def _rows(path: Path) -> list[dict[str, Any]]:
    report = json.loads((path / "parity.json").read_text())
    assert report["passed"]
    return list(report["rows"])


def test_the_demo_in_four_bits_keeps_its_perplexity(demo_bundle: Path) -> None:
    (row,) = (row for row in _rows(demo_bundle) if row["check"] == "perplexity ratio")
    assert 0.98 < row["measured"] <= row["tolerance"] == 1.10
    reference = read_reference(demo_bundle / "reference.safetensors")
    assert reference.judge["text"] == "eval.txt beside the checkpoint"
    # its own kind of text: far from the 4,096 of a model that knows nothing
    assert perplexity(text.nll for text in reference.texts) < 100
    stored = json.loads((demo_bundle / "manifest.json").read_text())["quantization"]
    assert (stored["format"], stored["method"]) == ("int4-g32", "scale search")
    assert "lm_head.weight" in stored["tensors"]
    with nemotron_runtime.load(demo_bundle) as model:
        text = model.generate("If the file does not exist,", max_new_tokens=12).text
    assert text.strip()


def test_the_odd_bundle_holds_codes_of_every_projection(odd_bundle: Path) -> None:
    assert _rows(odd_bundle)
    model = onnx.load(odd_bundle / "model.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 3 * 6 + 1
    # biases of every projection but lm_head
    assert sum(len(node.input) == 6 for node in nodes) == 18
    assert not any(node.op_type in ("FusedMatMul", "Gemm", "MatMul") for node in model.graph.node)
    names = {initializer.name for initializer in model.graph.initializer}
    # the lookup of the tied embedding reads the stored rows
    assert "model.embed_tokens.weight" in names
    assert "model.embed_tokens.weight.codes" in names
    assert not any(name.endswith("_proj.weight") for name in names)


def test_bisection_allows_what_rounding_does(odd_bundle: Path) -> None:
    found = examine(odd_bundle, drift=False).bisection
    assert found.first is None
    # rounding shows, and stays below its bound
    assert 1e-4 < found.before < max(error.tolerance for error in found.layers) <= 0.5


def test_perplexity_is_that_of_the_logits(odd_bundle: Path) -> None:
    ids = np.arange(100, dtype=np.int64) * 7 % 320
    with Engine(open_executor(Bundle.open(odd_bundle))) as session:
        found = measure_nll(session, ids)
        logits = torch.from_numpy(session.logits(ids)[:-1])
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none").numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert perplexity([found, found]) == pytest.approx(float(np.exp(expected.mean())), rel=1e-3)


def test_verify_needs_no_torch_and_parity_repeats(odd_bundle: Path, odd_checkpoint: Path) -> None:
    done = run_blocked("verify", odd_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert any(row["check"] == "perplexity ratio" for row in json.loads(done.stdout)["rows"])
    report = check_parity(odd_bundle, checkpoint=odd_checkpoint)
    assert report.passed
    (row,) = (row for row in report.rows if row.check == "stored reference, perplexity off")
    assert row.measured < 1e-4


def test_layer_by_layer_gives_the_same_text_values(odd_bundle: Path, odd_checkpoint: Path) -> None:
    report = check_parity(odd_bundle, checkpoint=odd_checkpoint, reference="layerwise")
    assert report.passed


def test_parity_makes_the_reference_of_a_bundle_without_one(odd_checkpoint: Path, tmp_path: Path) -> None:
    path = build(odd_checkpoint, tmp_path / "bundle", quantize="int8", parity=False, **LIMITS)
    with pytest.raises(BundleError, match="parity pending"):
        nemotron_runtime.load(path)
    assert check_parity(path).passed
    assert Manifest.read(path).parity.state == "passed"
    assert read_reference(path / "reference.safetensors").texts


def _without_digests(path: Path) -> Manifest:
    """So that only the judge can see what was spoiled; :func:`_spoil` belongs to tests of the judge alone."""
    manifest = Manifest.read(path)
    assert manifest.quantization is not None
    file = manifest.quantization.file
    open_file = WeightsFile(file.name, file.size, file.header_sha256, None)
    return Manifest.from_dict(
        {**manifest.to_dict(), "quantization": {**manifest.to_dict()["quantization"], "file": open_file.__dict__}}
    )


def _double(path: Path, tensor: str, count: int | None = None) -> None:
    entry = read_header(path / QUANTIZED_FILE).tensors[f"{tensor}.scales"]
    scales = np.memmap(path / QUANTIZED_FILE, np.float32, "r+", entry.offset, (entry.length // 4,))
    scales[:count] *= 2
    scales.flush()


@pytest.fixture
def spoilt(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "spoilt"))


def test_one_doubled_scale_is_refused_at_loading(spoilt: Path) -> None:
    _double(spoilt, "model.layers.3.mlp.down_proj.weight", 1)
    with pytest.raises(BundleError, match="for chunk 0"):
        nemotron_runtime.load(spoilt)


def test_loading_hashes_what_it_reads(demo_bundle: Path, tmp_path: Path) -> None:
    """Of the checkpoint: the embedding and the norms, not the projections that the codes replace."""
    path = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    weights = tmp_path / "weights"
    weights.mkdir()
    file = weights / "model.safetensors"
    shutil.copy(Bundle.open(demo_bundle).weights_directory / file.name, file)
    document = Manifest.read(path).to_dict()
    document["weights"]["chunk_bytes"] = size = 4096
    for record, place in ((document["weights"]["files"][0], file), (document["quantization"]["file"], None)):
        data = (place or path / QUANTIZED_FILE).read_bytes()
        record["chunks"] = [hashlib.sha256(data[i : i + size]).hexdigest() for i in range(0, len(data), size)]
    write_manifest(path, Manifest.from_dict(document))
    entries = read_header(file).tensors

    def flip(name: str) -> None:
        entry = entries[name]
        with open(file, "r+b") as handle:
            handle.seek(entry.offset + entry.length // 2)
            byte = handle.read(1)
            handle.seek(-1, 1)
            handle.write(bytes([byte[0] ^ 1]))

    flip("model.layers.2.mlp.up_proj.weight")
    with nemotron_runtime.load(path, weights_dir=weights) as model:
        assert model.generate("The", max_new_tokens=2).token_ids
    for name in ("model.embed_tokens.weight", "model.layers.5.input_layernorm.bias"):
        flip(name)
        with pytest.raises(BundleError, match="for chunk"):
            nemotron_runtime.load(path, weights_dir=weights)
        flip(name)


@pytest.mark.parametrize(
    "tensor",
    ["lm_head.weight", "model.layers.0.self_attn.v_proj.weight", "model.layers.3.mlp.down_proj.weight"],
)
def test_doubled_scales_of_one_tensor_fail_the_judge(spoilt: Path, tensor: str) -> None:
    write_manifest(spoilt, _without_digests(spoilt))
    reference = read_reference(spoilt / "reference.safetensors")
    with Engine(open_executor(Bundle.open(spoilt))) as session:
        assert check(session, reference, "float32", weight_format=Int4(32)).passed
    _double(spoilt, tensor)
    with Engine(open_executor(Bundle.open(spoilt))) as session:
        report = check(session, reference, "float32", weight_format=Int4(32))
    assert not report.passed
    (row,) = (row for row in report.rows if row.check == "perplexity ratio")
    assert not row.passed


def test_nan_fails_every_row_of_numbers(spoilt: Path) -> None:
    write_manifest(spoilt, _without_digests(spoilt))
    entry = read_header(spoilt / QUANTIZED_FILE).tensors["model.layers.0.mlp.up_proj.weight.scales"]
    scales = np.memmap(spoilt / QUANTIZED_FILE, np.float32, "r+", entry.offset, (entry.length // 4,))
    scales[:] = np.nan
    scales.flush()
    with Engine(open_executor(Bundle.open(spoilt))) as session:
        report = check(session, read_reference(spoilt / "reference.safetensors"), "float32", weight_format=Int4(32))
    assert report.rows
    assert not any(row.passed for row in report.rows)


def test_a_text_of_ones_own(odd_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("What I measure with is my own prose. " * 8, encoding="utf-8")
    path = build(odd_checkpoint, tmp_path / "bundle", quantize="int4", group_size=64, eval_text=text, **LIMITS)
    reference = read_reference(path / "reference.safetensors")
    assert reference.judge["text"] == "mine.txt"
    assert [len(each.ids) for each in reference.texts] == [256, 8 * 37 + 1 - 256]
    assert Manifest.read(path).quantization.format == "int4-g64"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"eval_text": "x.txt"}, "--eval-text"),
        ({"quantize": "int4", "eval_text": "missing.txt"}, "missing.txt"),
        ({"quantize": "int4", "eval_text": "x.txt", "parity": False}, "--eval-text"),
    ],
)
def test_refused_texts(odd_checkpoint: Path, tmp_path: Path, options: dict[str, Any], where: str) -> None:
    with pytest.raises(RequestError) as caught:
        build(odd_checkpoint, tmp_path / "bundle", **options, **LIMITS)
    assert where in str(caught.value.where)
    assert not (tmp_path / "bundle").exists()


def test_a_classifier_is_judged_without_text(tmp_path: Path) -> None:
    from transformers import NemotronForSequenceClassification

    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(checkpoint, torch.bfloat16, cls=NemotronForSequenceClassification, num_labels=3)
    path = build(checkpoint, tmp_path / "bundle", quantize="int8", **LIMITS)
    record = Manifest.read(path).quantization
    assert record is not None
    assert record.skipped == {
        "model.embed_tokens.weight": "a step reads one row of it", "score.weight": "a head of few outputs",
    }  # fmt: skip
    assert not any("perplexity" in row["check"] for row in _rows(path))
