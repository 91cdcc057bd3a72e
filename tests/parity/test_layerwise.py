"""A reference made with one decoder layer in memory has the bits of the one that the whole model makes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nemotron_errors import CheckpointError, RequestError
from nemotron_runtime.checks.reference import Reference, ReferencePrompt, read_reference, write_reference
from support.models import ODD_CONFIGS, config_dict, randomize

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.load import MODEL_CLASSES
from nemotron_export.parity.greedy_run import run_prompts
from nemotron_export.parity.layerwise import Feed, LayerwiseModel
from nemotron_export.parity.prompts import PromptPlan, plan_prompts
from nemotron_export.parity.reference import reference_for

DTYPES = ("float32", "bfloat16", "float16")
# past 1,000 positions in two of them, short in the others
LENGTHS = {"dynamic": 10, "longrope": 64, "rotary-full": 1300, "yarn": 1300}


@pytest.fixture(autouse=True)
def one_thread():  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _write(folder: Path, task: str = "causal-lm", stored: torch.dtype = torch.bfloat16, **changes: Any) -> Checkpoint:
    if task.endswith("-classification"):
        changes["id2label"] = {"0": "A", "1": "B", "2": "C"}
    config = NemotronConfig.from_dict(config_dict(**changes))
    model = randomize(MODEL_CLASSES[task](config).to(stored))
    # several files, so that a layer's tensors lie in more than one
    save_checkpoint(folder, config, model.state_dict(), task=task, max_shard_size="40KB")
    return Checkpoint.open(folder, task=task)


def _assert_same(found: Reference, expected: Reference, *, last_bits: bool = False) -> None:
    """Equal in every bit, or with `last_bits` but for the last ones of numbers."""
    assert len(found.prompts) == len(expected.prompts) > 0
    for ours, theirs in zip(found.prompts, expected.prompts, strict=True):
        for item in fields(ReferencePrompt):
            a, b = getattr(ours, item.name), getattr(theirs, item.name)
            assert a.dtype == b.dtype
            if last_bits and a.dtype == np.float32:
                np.testing.assert_allclose(a, b, rtol=0, atol=4 * np.finfo(np.float32).eps * np.abs(b).max(initial=0))
            else:
                assert np.array_equal(a, b), (item.name, len(ours.ids))
        assert np.isfinite(ours.logits).all()
    assert found.eager_rmse == expected.eager_rmse
    assert found.task == expected.task


@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_every_odd_config(name: str, tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, **ODD_CONFIGS[name])
    length = LENGTHS.get(name, 96)
    run_dtype = "float32" if length > 1000 else "bfloat16"
    whole, layerwise = (
        reference_for(checkpoint, length, run_dtype, mode=mode, greedy_steps=9) for mode in ("whole", "layerwise")
    )
    _assert_same(layerwise, whole)
    assert max(len(p.ids) for p in whole.prompts) == min(1200, length - len(whole.prompts[0].greedy))
    assert all(len(p.step_logits) >= 2 for p in layerwise.prompts)
    assert len({token for p in whole.prompts for token in p.greedy.tolist()}) > 3
    assert layerwise.judge["model"] == f"{whole.judge['model']}, layer by layer"


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("run", DTYPES)
def test_every_dtype(stored: str, run: str, tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, stored=getattr(torch, stored), head_dim=32)
    whole, layerwise = (reference_for(checkpoint, 90, run, mode=mode) for mode in ("whole", "layerwise"))
    assert (whole.eager_rmse is None) == (run == "float32")
    assert (len(whole.prompts[0].greedy), len(layerwise.prompts[0].greedy)) == (45, 8)
    again = reference_for(checkpoint, 90, run, mode="layerwise", greedy_steps=45)
    # other words are recorded of why there are so many steps
    _assert_same(again, whole)


@pytest.mark.parametrize("task", [task for task in MODEL_CLASSES if task != "causal-lm"])
@pytest.mark.parametrize("run", ["float32", "bfloat16"])
def test_every_head(task: str, run: str, tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, task, attention_bias=True, mlp_bias=True, pad_token_id=0)
    whole, layerwise = (reference_for(checkpoint, 200, run, mode=mode) for mode in ("whole", "layerwise"))
    _assert_same(layerwise, whole)
    assert layerwise.prompts[0].logits.shape[-1] == {"feature-extraction": 64, "question-answering": 2}.get(task, 3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("vocabulary", "rows"), [(97, 64), (320, 64), (1001, 128), (4096, 4032)])
def test_the_head_in_slices(threads: int, vocabulary: int, rows: int, tmp_path: Path) -> None:
    torch.set_num_threads(threads)
    checkpoint = _write(tmp_path, vocab_size=vocabulary)
    plan = plan_prompts(vocabulary, 64, greedy_steps=6)
    made = []
    for size in (rows, vocabulary // 64 * 64 + 64):
        with LayerwiseModel(checkpoint, torch.float32, len(plan.prompts), head_slice_rows=size) as model:
            made.append(Reference(run_prompts(model, plan, lambda done, total: None)))
    # a CPU's matrix kernels may round by the shape: an Intel Xeon does so with two threads at the odd width
    _assert_same(*made, last_bits=True)


def test_a_pass_costs_one_reading_of_each_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _write(tmp_path, num_hidden_layers=3)
    read: list[str] = []
    into = LayerwiseModel._fill

    def fill(self: LayerwiseModel, module: torch.nn.Module, prefix: str) -> None:
        read.append(prefix)
        into(self, module, prefix)

    monkeypatch.setattr(LayerwiseModel, "_fill", fill)
    reference_for(checkpoint, 64, "bfloat16", mode="layerwise", greedy_steps=5)
    one_pass = [*(f"model.layers.{index}." for index in range(3)), "model.norm."]
    # the prompts, four tokens that are fed, and all of the low-precision run
    assert read == one_pass * 6


def test_known_tokens_of_a_row_go_through_in_one_pass(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path)
    feeds = [Feed(np.arange(5), np.array([4])), Feed.token(7), Feed.token(9, output=False), Feed.token(11)]
    with LayerwiseModel(checkpoint, torch.float32, 1) as model:
        together = model.feed([feeds])[0]
    with LayerwiseModel(checkpoint, torch.float32, 1) as model:
        apart = [model.feed([[feed]])[0][0] for feed in feeds]
    assert [len(output) for output in together] == [1, 1, 0, 1]
    assert all(map(torch.equal, together, apart))


def test_the_plan_says_how_many_steps_and_why(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path / "checkpoint")
    layerwise = reference_for(checkpoint, 200, "float32", mode="layerwise")
    assert any("8 greedy steps, not 64: made layer by layer" in note for note in layerwise.judge["notes"])
    asked = reference_for(checkpoint, 200, "float32", mode="whole", greedy_steps=3)
    assert any("3 greedy steps, not 64: --reference-steps" in note for note in asked.judge["notes"])
    write_reference(tmp_path / "reference.safetensors", layerwise)
    assert read_reference(tmp_path / "reference.safetensors").judge["model"].endswith("layer by layer")
    plan = PromptPlan((np.arange(3),), 2, "stored", ())
    assert len(reference_for(checkpoint, 200, "float32", mode="layerwise", plan=plan).prompts[0].greedy) == 2


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path)
    with pytest.raises(RequestError, match="--reference: found 'half'; expected one of auto, whole, layerwise"):
        reference_for(checkpoint, 64, "float32", mode="half")
    with pytest.raises(RequestError, match="--reference-steps: found 0; expected at least 1"):
        reference_for(checkpoint, 64, "float32", mode="layerwise", greedy_steps=0)


def test_a_file_that_shrank_or_went_is_named(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path)
    path = checkpoint.shards[-1].path
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match=f"{path.name}: .*found {len(data) - 10} bytes; expected at least"):
        reference_for(checkpoint, 64, "float32", mode="layerwise", greedy_steps=1)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name}: .*No such file"):
        reference_for(checkpoint, 64, "float32", mode="layerwise", greedy_steps=1)
