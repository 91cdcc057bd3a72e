"""Every mistake that exporters of this architecture make is caught, and the bisection names where it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.checks.verification import verify
from support.checkpoints import write_checkpoint
from support.mistakes import BODY_MISTAKES, GRAPH_MISTAKES, Mistake, plant

from nemotron_export import build
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model
from nemotron_export.parity.bisect import bisect
from nemotron_export.tracing import trace

CASES = [
    *((name, mistake, target) for target in ("onnx", "ort-cpu") for name, mistake in GRAPH_MISTAKES.items()),
    *((name, mistake, "onnx") for name, mistake in BODY_MISTAKES.items()),
]


class Bench:
    """One checkpoint, its reference, its dialect graph and a good bundle for each target."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(2)
        # the MLP is as wide as the vocabulary, so that a head found by its shape may be the wrong one; norms whose
        # inputs are small, so that an epsilon shows
        write_checkpoint(folder / "checkpoint", torch.bfloat16, intermediate_size=320)
        self.checkpoint = Checkpoint.open(folder / "checkpoint")
        self.model = load_model(self.checkpoint, torch.float32)
        self.dialect: onnx.ModelProto = ir.to_proto(trace(self.checkpoint.config, torch.float32))
        self.bundles = {}
        for target in ("onnx", "ort-cpu"):
            self.bundles[target] = build(folder / "checkpoint", folder / target, target=target, max_batch=4)
        self.ids = np.random.default_rng(0).integers(4, 320, 1100)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("mistakes"))


def _planted(bench: Bench, mistake: Mistake | None, target: str, folder: Path, monkeypatch: Any) -> Path:
    bundle = folder / "bundle"
    shutil.copytree(bench.bundles[target], bundle)
    plant(mistake, ir.from_proto(bench.dialect), bench.checkpoint, bundle, target, monkeypatch)
    return bundle


@pytest.mark.parametrize(
    ("mistake", "target"),
    [(mistake, target) for _, mistake, target in CASES],
    ids=[f"{target}: {name}" for name, _, target in CASES],
)
def test_a_planted_mistake_is_caught_and_named(
    bench: Bench, mistake: Mistake, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _planted(bench, mistake, target, tmp_path, monkeypatch)
    report = verify(bundle)
    assert not report.passed
    opened = Bundle.open(bundle, allow_unverified=True)
    assert opened.manifest.parity.state == "pending", "a bundle that fails is refused from now on"
    found = bisect(opened, [bench.model], bench.ids)
    assert found.first is not None
    assert found.first.stage == mistake.stage
    assert not found.first.passed
    assert found.before <= 1e-5, "what comes before the mistake is right"
    module, _, op = found.first.point.partition(": ")
    assert module.endswith(mistake.module)
    # a fused kernel hides the values inside it: the mistake is then among the ops that it covers
    assert mistake.op in found.ops
    assert op == found.ops[-1]


@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
def test_without_a_mistake_nothing_is_found(
    bench: Bench, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _planted(bench, None, target, tmp_path, monkeypatch)
    assert verify(bundle).passed
    found = bisect(Bundle.open(bundle), [bench.model], bench.ids)
    assert found.first is None
    assert found.before <= 1e-5
    assert len(found.layers) == 2 * (1 + 3 + 2), "embedding, three layers, norm and head, in prefill and decode"
