"""`parity --bisect` and what it adds to parity.json; drift by position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from nemotron_errors import BundleError, ResourceError
from nemotron_runtime.engine.engine import Engine
from support.checkpoints import write_checkpoint
from support.mistakes import GRAPH_MISTAKES, plant
from typer.testing import CliRunner

import nemotron_export.parity.examine as examine_module
from nemotron_export import build
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.cli import app
from nemotron_export.model.executor import EagerExecutor
from nemotron_export.model.load import load_model
from nemotron_export.parity.drift import measure_drift, spread
from nemotron_export.parity.examine import examine
from nemotron_export.tracing import trace


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examine")
    write_checkpoint(folder / "checkpoint", torch.bfloat16)
    return build(folder / "checkpoint", folder / "bundle", max_batch=2, max_seq_len=512)


def test_a_good_bundle(built: Path) -> None:
    done = CliRunner().invoke(app, ["parity", str(built), "--bisect"])
    assert done.exit_code == 0, done.output
    assert "no value leaves PyTorch" in done.output
    document = json.loads((built / "parity.json").read_text())
    assert document["passed"] is True
    assert document["bisection"]["first"] is None
    assert len(document["bisection"]["layers"]) == 12
    assert all(error["passed"] for error in document["bisection"]["layers"])
    assert document["bundle"]["model"]["layers"] == 3
    assert "drift" not in document


def test_drift_is_measured_at_every_prompt(built: Path) -> None:
    found = examine(built, drift=True)
    assert found.drift is not None
    assert [prompt.tokens for prompt in found.drift.prompts] == [5, 16, 33, 448]
    assert all(prompt.max_error.max() < 1e-4 for prompt in found.drift.prompts)
    assert all(prompt.eager_rmse is None for prompt in found.drift.prompts)
    assert found.drift.flips == ()
    document = found.to_dict()["drift"]
    json.dumps(document, allow_nan=False)
    assert document["positions_compared"] == sum(len(p["positions"]) for p in document["prompts"])
    assert 3000 < len(document["scatter"]["reference"]) == len(document["scatter"]["measured"]) <= 4000
    assert len(document["margins"]["compared"]) == document["positions_compared"]


def test_a_bundle_with_a_mistake(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(built.parent / "checkpoint")
    bundle = build(checkpoint.directory, tmp_path / "bundle", max_batch=2, max_seq_len=512)
    dialect: ir.Model = trace(checkpoint.config, torch.float32)
    plant(GRAPH_MISTAKES["gamma without + 1"], dialect, checkpoint, bundle, "ort-cpu", monkeypatch)
    done = CliRunner().invoke(app, ["parity", str(bundle), "--bisect"])
    assert done.exit_code == 1
    assert (
        "First to leave: LayerNorm1P of model.layers.0.input_layernorm, computed by LayerNormalization" in done.output
    )
    assert "error before it 0, after it" in done.output
    as_json = CliRunner().invoke(app, ["parity", str(bundle), "--bisect", "--json"])
    assert as_json.exit_code == 1
    document = json.loads(as_json.stdout)
    assert document == json.loads((bundle / "parity.json").read_text())
    assert document["bisection"]["first"]["layer"] == 0
    assert document["bisection"]["ops"] == ["LayerNorm1P"]
    drift = examine(bundle, drift=True).drift
    assert drift is not None
    assert min(prompt.max_error.max() for prompt in drift.prompts) > 1e-2
    assert drift.flips
    assert not any(flip["allowed"] for flip in drift.flips)
    assert all(flip["margin"] > 0 and flip["reference_text"] is not None for flip in drift.flips)


def test_refusals(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = build(built.parent / "checkpoint", tmp_path / "pending", parity=False, max_seq_len=64)
    with pytest.raises(BundleError, match=r"no reference\.safetensors"):
        examine(pending, drift=False)
    monkeypatch.setattr(examine_module, "available_memory", lambda: 1000)
    with pytest.raises(ResourceError, match="the reference model in float32"):
        examine(built, drift=False)


def test_flips_in_low_precision_are_allowed_within_the_margin(built: Path) -> None:
    checkpoint = Checkpoint.open(built.parent / "checkpoint")
    fp32, bf16 = (load_model(checkpoint, dtype) for dtype in (torch.float32, torch.bfloat16))
    session: Any = Engine(EagerExecutor(bf16, 1, 600))  # type: ignore[arg-type]
    ids = np.random.default_rng(3).integers(4, 320, 500)
    found = measure_drift(session, [fp32, bf16], [ids], None)
    (prompt,) = found.prompts
    assert prompt.eager_rmse is not None
    np.testing.assert_allclose(prompt.rmse, prompt.eager_rmse, rtol=0.5)
    assert prompt.rmse.min() > 0
    bound = 4 * float(np.sqrt(np.mean(np.square(prompt.eager_rmse))))
    assert all(flip["allowed"] == (flip["margin"] <= bound) for flip in found.flips)


@pytest.mark.parametrize(("tokens", "count"), [(1, 12), (2, 12), (7, 12), (1200, 48)])
def test_positions(tokens: int, count: int) -> None:
    found = spread(tokens, count)
    assert found[0] == 0
    assert found[-1] == tokens - 1
    assert len(found) <= count
    assert (np.diff(found) > 0).all()
