"""A script written for transformers prints the same with another import line: the quickstart of Nemotron's page."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import nemotron_export
from nemotron_export.model import placement

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"

IMPORTS = "from transformers import AutoTokenizer, AutoModelForCausalLM, infer_device"
SNIPPET = f"""
import torch
{IMPORTS}

# Load the tokenizer and model
tokenizer  = AutoTokenizer.from_pretrained(model_path)

device = infer_device()
dtype  = torch.bfloat16
model  = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, device_map=device)

# Prepare the input text
prompt = 'Complete the paragraph: our solar system is'
inputs = tokenizer.encode(prompt, return_tensors='pt').to(model.device)

# Generate the output
outputs = model.generate(inputs, max_length=20)

# Decode and print the output
output_text = tokenizer.decode(outputs[0])
print(output_text)
"""


class _TheirModels:
    """transformers' class; its device_map needs a further package, and the CPU needs no map."""

    @staticmethod
    def from_pretrained(path: str, dtype: torch.dtype, device_map: str) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device_map)


# not every release of transformers has infer_device at its top
THEIRS = SimpleNamespace(
    AutoTokenizer=transformers.AutoTokenizer, AutoModelForCausalLM=_TheirModels, infer_device=lambda: "cpu"
)


def _run(imports: str, names: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    assert SNIPPET.count(IMPORTS) == 1
    scope: dict[str, Any] = {"model_path": str(DEMO), **names}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(SNIPPET.replace(IMPORTS, imports), scope)
    return printed.getvalue(), scope


def test_the_quickstart_prints_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "device_count", lambda kind: int(kind == "cpu"))
    ours, scope = _run("from nemotron_export import AutoTokenizer, AutoModelForCausalLM, infer_device", {})
    theirs, oracle = _run("", vars(THEIRS))
    assert isinstance(scope["model"], nemotron_export.NemotronForCausalLM)
    assert isinstance(oracle["model"], transformers.NemotronForCausalLM)
    assert scope["model"].dtype == oracle["model"].dtype == torch.bfloat16
    assert ours == theirs
    assert ours.startswith("<s> Complete the paragraph: our solar system is ")
    assert torch.equal(scope["outputs"], oracle["outputs"])
    assert scope["outputs"].shape == (1, 20)
