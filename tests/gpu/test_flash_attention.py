"""attention 'flash_attention' on CUDA beside PyTorch's math kernel, and what it refuses there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nemotron_errors import RequestError
from torch.nn.attention import SDPBackend, sdpa_kernel

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import DynamicCache, NemotronForCausalLM, StaticCache

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="PyTorch's flash kernel needs an NVIDIA GPU of compute capability 8.0 or more",
)

CONFIG: dict[str, Any] = {
    "model_type": "nemotron",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
# RMS error over the RMS of the logits
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
CHUNKS = ((0, 5), (5, 6), (6, 10), (10, 33))


def _model(implementation: str, dtype: torch.dtype, **changes: Any) -> NemotronForCausalLM:
    torch.manual_seed(0)
    model = NemotronForCausalLM(NemotronConfig.from_dict({**CONFIG, **changes}), implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15 if parameter.ndim == 2 else 0.3)
    return model.to("cuda", dtype).eval()


def _ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 97, (rows, tokens), generator=torch.Generator().manual_seed(1)).cuda()


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    difference = (ours.float() - theirs.float()).square().mean().sqrt()
    return float(difference / theirs.float().square().mean().sqrt())


HEADS = [{}, {"head_dim": 20}, {"head_dim": 192}, {"head_dim": 256}, {"num_key_value_heads": 1}]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("changes", [*HEADS, {"num_key_value_heads": 4}], ids=str)
@torch.no_grad()
def test_logits_are_those_of_the_math_kernel(changes: dict[str, Any], dtype: torch.dtype) -> None:
    flash, sdpa = _model("flash_attention", dtype, **changes), _model("sdpa", dtype, **changes)
    ids = _ids(3, 33)
    with sdpa_kernel(SDPBackend.MATH):
        expected = sdpa(ids, use_cache=False).logits
    for mask in (None, torch.ones_like(ids)):
        assert _error(flash(ids, mask, use_cache=False).logits, expected) < TOLERANCE[dtype]
    for cache in (DynamicCache(), StaticCache(40)):
        for start, end in CHUNKS:
            ours = flash(ids[:, start:end], past_key_values=cache).logits
            assert _error(ours, expected[:, start:end]) < TOLERANCE[dtype], (start, end)


def test_generate() -> None:
    model = _model("flash_attention", torch.bfloat16)
    answer = model.generate(_ids(2, 9), max_new_tokens=12, eos_token_id=[])
    assert answer.shape == (2, 21)
    teacher = model(answer[:, :-1]).logits[:, 8:]
    chosen = teacher.gather(-1, answer[:, 9:, None])[..., 0]
    assert bool((teacher.amax(-1) - chosen <= 0.03 * teacher.abs().max()).all())


@pytest.mark.parametrize(
    ("changes", "dtype", "inputs", "found"),
    [
        ({}, torch.float32, {}, "float32"),
        ({"head_dim": 320}, torch.bfloat16, {}, "head_dim 320"),
        ({}, torch.bfloat16, {"attention_mask": [[0, 1, 1, 1], [1, 1, 1, 1]]}, "padded rows or a mask"),
        ({}, torch.bfloat16, {"attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]]}, "padded rows or a mask"),
        ({}, torch.bfloat16, {"position_ids": [[0, 1, 0, 1], [0, 1, 2, 3]]}, "padded rows or a mask"),
    ],
)
def test_inputs_that_are_refused(
    changes: dict[str, Any], dtype: torch.dtype, inputs: dict[str, list[list[int]]], found: str
) -> None:
    model = _model("flash_attention", dtype, **changes)
    tensors = {name: torch.tensor(rows).cuda() for name, rows in inputs.items()}
    with pytest.raises(RequestError, match=found) as caught:
        model(_ids(2, 4), use_cache=False, **tensors)
    assert "attn_implementation='sdpa'" in caught.value.remedy


def test_rows_of_different_lengths_are_refused_by_generate() -> None:
    model = _model("flash_attention", torch.bfloat16)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).cuda()
    with pytest.raises(RequestError, match="padded rows or a mask"):
        model.generate(_ids(2, 4), mask, max_new_tokens=2)
