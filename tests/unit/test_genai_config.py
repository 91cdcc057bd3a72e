"""genai_config.json from configs and generation configs, and what GenAI's targets say of packages and weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nemotron_errors import RequestError
from nemotron_graphs.targets import TARGETS
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.builders import builder_for
from nemotron_export.building.genai import genai_config
from nemotron_export.building.request import BuildRequest
from nemotron_export.building.weight_files import choose_weight_mode
from nemotron_export.config.config import NemotronConfig
from nemotron_export.installation.extras import extra_of, missing_dependency

LIMITS = Limits(max_seq_len=128, max_batch=2, prefill_chunk=64)
SESSION = {"graph": "model.onnx", "provider": "CPUExecutionProvider"}


def made(generation: dict[str, Any] | None = None, session: dict[str, str] = SESSION, **config: Any) -> dict[str, Any]:
    checkpoint: Any = SimpleNamespace(config=NemotronConfig(**config), generation_config=generation or {})
    return genai_config(checkpoint, LIMITS, session)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({}, {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}, (2, 3, 0)),
        ({"eos_token_id": [3, 9]}, {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}, (2, [3, 9], 0)),
        ({"pad_token_id": 5, "bos_token_id": 4}, {"bos_token_id": 2, "eos_token_id": 3}, (4, 3, 5)),
        ({}, {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}, (2, 3, 3)),
        ({"eos_token_id": [7, 8]}, {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}, (2, [7, 8], 7)),
        ({}, {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 0}, (None, 3, 0)),
    ],
)
def test_token_ids(generation: dict[str, Any], config: dict[str, Any], expected: tuple[Any, ...]) -> None:
    model = made(generation, **config)["model"]
    assert tuple(model.get(f"{name}_token_id") for name in ("bos", "eos", "pad")) == expected
    # GenAI's reader has no null
    assert None not in model.values()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {"do_sample": False, "max_length": 128}),
        ({"max_length": 40, "top_k": None, "use_cache": True}, {"do_sample": False, "max_length": 40}),
        (
            {"max_length": 4096, "do_sample": True, "temperature": 0.5, "top_k": 5, "repetition_penalty": 1.1},
            {"do_sample": True, "temperature": 0.5, "top_k": 5, "repetition_penalty": 1.1, "max_length": 128},
        ),
    ],
)
def test_search_defaults(generation: dict[str, Any], expected: dict[str, Any]) -> None:
    assert made(generation)["search"] == {**expected, "past_present_share_buffer": True}


def test_providers() -> None:
    cpu = made()["model"]["decoder"]["session_options"]["provider_options"]
    cuda = made(session={**SESSION, "provider": "CUDAExecutionProvider"})["model"]["decoder"]["session_options"]
    assert cpu == []
    assert cuda["provider_options"] == [{"cuda": {"enable_cuda_graph": "0"}}]


def test_a_missing_package_names_its_extra() -> None:
    assert extra_of("onnxruntime_genai") == "genai"
    error = missing_dependency(ModuleNotFoundError("no", name="onnxruntime_genai"))
    assert error is not None
    assert error.remedy == 'pip install "nemotron-export[genai]"'


@pytest.mark.parametrize(
    ("target", "mode", "chosen"),
    [
        ("ort-cpu", None, "reference"), ("ort-cpu", "copy", "copy"), ("genai-cpu", None, "link"),
        ("genai-cuda", None, "link"), ("genai-cpu", "copy", "copy"), ("onnx", "reference", "reference"),
    ],
)  # fmt: skip
def test_weight_modes(target: str, mode: str | None, chosen: str) -> None:
    assert choose_weight_mode(mode, TARGETS[target]) == chosen


@pytest.mark.parametrize(("target", "mode"), [("genai-cpu", "reference"), ("genai-cpu", "move"), ("ort-cpu", "move")])
def test_weight_modes_that_a_target_cannot_take(target: str, mode: str) -> None:
    with pytest.raises(RequestError) as caught:
        choose_weight_mode(mode, TARGETS[target])
    assert caught.value.where == "--weights"
    assert mode in caught.value.found


def test_what_a_folder_for_genai_cannot_be() -> None:
    embeddings: Any = SimpleNamespace(task="feature-extraction")
    for name, options in (("genai-cpu", {}), ("genai-cuda", {"parity": False})):
        builder = builder_for(BuildRequest(target=name, **options))
        builder.find()
        builder.plan(SimpleNamespace(task="causal-lm"), "float32", LIMITS)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=f"expected causal-lm for target {name}"):
            builder.plan(embeddings, "float32", LIMITS)
    builder_for(BuildRequest(target="ort-cpu")).plan(embeddings, "float32", LIMITS)
    with pytest.raises(RequestError, match=r"a parity check of target genai-cuda.*add --no-parity"):
        builder_for(BuildRequest(target="genai-cuda")).find()
