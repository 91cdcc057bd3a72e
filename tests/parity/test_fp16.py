"""Bundles in fp16: relu² overflows where its input exceeds 255.9, and then computes in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from nemotron_errors import RequestError
from support.checkpoints import write_checkpoint

from nemotron_export import build, check_parity
from nemotron_export.building.fp32_mlp import choose_fp32_mlp_layers
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.fp32_mlp import rectified_maxima, set_fp32_mlp
from nemotron_export.model.load import load_model
from nemotron_export.parity.examine import examine
from nemotron_export.progress import silent

IDS = np.random.default_rng(0).integers(4, 320, 64)


def _checkpoint(folder: Path, *, large_layer: int | None) -> Path:
    """A checkpoint whose up_proj gives values past fp16's square root in one layer; its down_proj makes up for it."""
    oracle = write_checkpoint(folder, torch.float32)
    if large_layer is not None:
        mlp = oracle.model.layers[large_layer].mlp
        with torch.no_grad():
            mlp.up_proj.weight *= 128
            mlp.down_proj.weight /= 128**2
        oracle.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("large_layer", [None, 1])
def test_a_bundle_in_fp16_passes_its_parity(tmp_path: Path, large_layer: int | None) -> None:
    checkpoint = _checkpoint(tmp_path / "checkpoint", large_layer=large_layer)
    bundle = build(checkpoint, tmp_path / "bundle", target="onnx", dtype="float16", max_seq_len=256, max_batch=2)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["parity"]["state"] == "passed"
    assert manifest["dtype"] == manifest["session"]["cache_dtype"] == "float16"
    assert manifest["model"]["fp32_mlp_layers"] == ([] if large_layer is None else [large_layer])
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    wide = [name for node in graph.node for name in node.output if ".mlp.Cast" in name]
    assert {name.split(".")[2] for name in wide} == (set() if large_layer is None else {str(large_layer)})
    assert check_parity(bundle).passed
    if large_layer is not None:
        assert examine(bundle, drift=False).bisection.first is None


def test_without_the_rule_the_square_overflows(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_checkpoint(tmp_path / "checkpoint", large_layer=1))
    fp32, fp16 = (load_model(checkpoint, dtype) for dtype in (torch.float32, torch.float16))
    maxima = rectified_maxima(fp32, [IDS])
    assert maxima[1] > 256 > 128 > max(maxima[0], maxima[2])
    with torch.inference_mode():
        expected = fp32.base_model(torch.from_numpy(IDS)[None]).last_hidden_state
        narrow = fp16.base_model(torch.from_numpy(IDS)[None]).last_hidden_state
        set_fp32_mlp(fp16, [1])
        wide = fp16.base_model(torch.from_numpy(IDS)[None]).last_hidden_state
    assert not torch.isfinite(narrow).all()
    torch.testing.assert_close(wide.float(), expected, atol=0.05, rtol=0.05)


def test_what_cannot_be_measured_is_computed_in_fp32_or_refused(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "checkpoint", large_layer=None)
    bundle = build(folder, tmp_path / "bundle", target="onnx", dtype="float16", max_seq_len=64, parity=False)
    assert json.loads((bundle / "manifest.json").read_text())["model"]["fp32_mlp_layers"] == [0, 1, 2]
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(RequestError, match="larger than memory"):
        choose_fp32_mlp_layers(checkpoint, "float16", 64, measure=True, mode="layerwise", progress=silent)
    assert (
        choose_fp32_mlp_layers(checkpoint, "bfloat16", 64, measure=True, mode="layerwise", progress=silent).layers == ()
    )
