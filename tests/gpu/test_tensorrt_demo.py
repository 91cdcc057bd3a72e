"""The embedded checkpoint, which was trained: from the checkpoint to text on a GPU, judged along the text it writes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import nemotron_runtime
import numpy as np
import pytest
import torch
from nemotron_runtime.bundle.manifest import Manifest
from support.gpu_models import eager_logits, eager_pair
from typer.testing import CliRunner

from nemotron_export.building import build
from nemotron_export.cli import app

pytest.importorskip("tensorrt")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="engines run on an NVIDIA GPU")

PROMPTS = ("If the file does not exist,", "This module provides", "Returns the number of")
TOKENS = 96
# of the parity protocol: by so many RMSE a choice may be off where the run dtype cannot tell two tokens apart
MARGIN = 4.0


@pytest.fixture(scope="module")
def checkpoint() -> Iterator[Path]:
    with as_file(files("nemotron_export") / "assets" / "demo") as source:
        yield source


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkpoint, tmp_path_factory.mktemp("demo") / "bundle", target="tensorrt")


def test_its_build_passes_parity(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert (manifest.parity.state, manifest.dtype) == ("passed", "bfloat16")


def test_its_text_is_what_fp32_would_write_or_bf16_cannot_tell_from_it(bundle: Path, checkpoint: Path) -> None:
    with nemotron_runtime.load(bundle) as model:
        results = model.generate(list(PROMPTS), max_new_tokens=TOKENS)
        assert model.tokenizer
        prompts = [np.array(model.tokenizer.encode(prompt)) for prompt in PROMPTS]
    with eager_pair(checkpoint, "bfloat16") as models:
        for prompt, result in zip(prompts, results, strict=True):
            tokens = np.array(result.token_ids)
            assert len(tokens) >= 4
            text = np.concatenate([prompt, tokens[:-1]])
            exact, low = (eager_logits(model, text)[-len(tokens) :] for model in models)
            margins = exact.max(-1) - exact[np.arange(len(tokens)), tokens]
            assert margins.max() <= MARGIN * np.sqrt(np.square(low - exact).mean())
            # most of a trained model's choices are clear
            assert (margins == 0).mean() > 0.9


def test_the_command_line_writes_the_same_text_and_talks(bundle: Path, tmp_path: Path) -> None:
    with nemotron_runtime.load(bundle) as model:
        (expected,) = model.generate([PROMPTS[0]], max_new_tokens=32)
    runner = CliRunner()
    written = runner.invoke(app, ["generate", str(bundle), PROMPTS[0], "-n", "32"])
    assert written.exit_code == 0, written.output
    assert expected.text.strip() in written.output
    # a base model has no template of its own
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (tmp_path / "plain.jinja").write_text(template, "utf-8")
    talking = ["chat", str(bundle), "--chat-template", str(tmp_path / "plain.jinja"), "-n", "24"]
    talked = runner.invoke(app, talking, input=f"{PROMPTS[0]}\n")
    assert talked.exit_code == 0, talked.output
    with nemotron_runtime.load(bundle) as model:
        answer = model.chat([{"role": "user", "content": PROMPTS[0]}], chat_template=template, max_new_tokens=24)
    assert answer.result.text.strip()
    assert answer.result.text.strip() in talked.output
