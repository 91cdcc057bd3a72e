"""The report of real bundles: documents fit the schema, and the page says what the checks and the bisection found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import onnx_ir as ir
import pytest
import torch
from support.checkpoints import write_checkpoint
from support.mistakes import GRAPH_MISTAKES, plant

import nemotron_export.parity.report as report
from nemotron_export import build
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.parity.examine import examine
from nemotron_export.parity.report import render_html
from nemotron_export.parity.verdict import amend, verify_bundle
from nemotron_export.tracing import trace

SCHEMA = json.loads((Path(report.__file__).parent / "schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("report")
    write_checkpoint(folder / "checkpoint", torch.bfloat16)
    bundle = build(folder / "checkpoint", folder / "small.bundle", target="ort-cpu", max_seq_len=160, max_batch=2)
    return Checkpoint.open(folder / "checkpoint"), bundle


def test_a_bundle_that_passes(made: tuple[Checkpoint, Path]) -> None:
    _, bundle = made
    validator = jsonschema.Draft202012Validator(SCHEMA)
    plain = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    validator.validate(plain)
    assert "There are no plots" not in render_html(amend(bundle, examine(bundle, drift=True).to_dict()))
    document = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    validator.validate(document)
    html = render_html(document)
    assert ">PASSED</strong>" in html
    assert "small.bundle" in html
    assert "No value leaves PyTorch" in html
    points = len(document["drift"]["scatter"]["reference"])
    assert html.count(f'data-points="{points}"') == 2
    dots = sum(len(prompt["positions"]) for prompt in document["drift"]["prompts"]) + len(
        document["bisection"]["layers"]
    )
    assert html.count("<circle") == dots
    assert "so there are no plots" in render_html(plain)


def test_a_bundle_that_fails(made: tuple[Checkpoint, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, good = made
    bundle = tmp_path / "bad.bundle"
    shutil.copytree(good, bundle)
    mistake = GRAPH_MISTAKES["relu without the square"]
    dialect = ir.from_proto(ir.to_proto(trace(checkpoint.config, torch.float32)))
    plant(mistake, dialect, checkpoint, bundle, "ort-cpu", monkeypatch)
    assert not verify_bundle(bundle).passed
    document = amend(bundle, examine(bundle, drift=True).to_dict())
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    html = render_html(document)
    assert ">FAILED</strong>" in html
    assert '<b id="first-op">relu²</b>' in html
    assert '<code id="first-module">model.layers.0.mlp</code>' in html
    assert "first past the tolerance: layers.0, prefill" in html
