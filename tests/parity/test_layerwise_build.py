"""A bundle whose reference was made layer by layer: built, recorded, repeated by the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nemotron_errors import RequestError
from nemotron_runtime.checks.reference import read_reference
from support.checkpoints import write_checkpoint
from typer.testing import CliRunner

from nemotron_export import check_parity
from nemotron_export.cli.app import app


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layerwise")
    write_checkpoint(folder / "checkpoint", torch.bfloat16)
    arguments = ["build", str(folder / "checkpoint"), "-o", str(folder / "bundle"), "--max-seq-len", "96"]
    result = CliRunner().invoke(app, [*arguments, "--max-batch", "2", "--reference", "layerwise"])
    assert result.exit_code == 0, result.output
    assert "greedy, 8 tokens differing" in result.stdout
    return folder / "bundle"


def test_the_reference_says_how_it_was_made(bundle: Path) -> None:
    judge = read_reference(bundle / "reference.safetensors").judge
    assert judge["model"] == "eager PyTorch, float32, sdpa, dynamic cache, layer by layer"
    assert judge["greedy_steps"] == 8
    assert any("8 greedy steps, not 64" in note for note in judge["notes"])
    assert json.loads((bundle / "parity.json").read_text())["bundle"]["target"] == "ort-cpu"


@pytest.mark.parametrize("mode", ["whole", "layerwise"])
def test_parity_repeats_it_either_way(bundle: Path, mode: str) -> None:
    report = check_parity(bundle, reference=mode)
    assert report.passed
    compared = [row for row in report.rows if row.check.startswith("stored reference")]
    assert compared
    # not zero: sums round by the number of threads, which a session in the same process may change
    assert all(row.measured <= 1e-6 for row in compared)


def test_another_number_of_steps_than_stored_is_refused(bundle: Path) -> None:
    with pytest.raises(RequestError, match="--reference-steps: found 5; expected 8, as many as the stored reference"):
        check_parity(bundle, reference_steps=5)
