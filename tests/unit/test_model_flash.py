"""What attention 'flash_attention' refuses, and that it lets no kernel but flash run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nemotron_errors import RequestError
from support.models import random_model, token_ids
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from nemotron_export.model import DynamicCache, StaticCache
from nemotron_export.model.flash import flash_attention

KERNEL = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _refused(
    device: str = "cpu", dtype: torch.dtype = torch.bfloat16, mask: Any = None, dropout: float = 0.0, **sizes: int
) -> RequestError:
    size = {"B": 2, "H": 4, "G": 2, "S": 3, "K": 3, "D": 16, **sizes}
    q = torch.zeros(size["B"], size["H"], size["S"], size["D"], dtype=dtype, device=device)
    k = torch.zeros(size["B"], size["G"], size["K"], size["D"], dtype=dtype, device=device)
    with pytest.raises(RequestError) as caught:
        flash_attention(q, k, k, mask, 0.25, dropout, size["K"])
    return caught.value


@pytest.mark.parametrize(
    ("inputs", "found", "expected", "remedy"),
    [
        ({"device": "meta"}, "tensors on meta", "on cpu or cuda", "attn_implementation='sdpa'"),
        ({"dropout": 0.1}, "attention dropout 0.1", "none in PyTorch's flash kernel on the CPU", "model.eval()"),
        ({"S": 0, "K": 0}, "no tokens", "one token or more", "attn_implementation='sdpa'"),
        ({"B": 0}, "no tokens", "one token or more", "attn_implementation='sdpa'"),
        ({"mask": torch.zeros(3, 3, requires_grad=True)}, "requires a gradient", "does not", "detach it"),
        ({"device": "cuda", "dtype": torch.float32}, "float32", "float16 or bfloat16 on CUDA", "load it in one of"),
        ({"device": "cuda", "dtype": torch.float64}, "float64", "float16 or bfloat16 on CUDA", "load it in one of"),
        ({"device": "cuda", "mask": True}, "padded rows or a mask", "no mask on CUDA", "rows of one length"),
        ({"device": "cuda", "D": 320}, "head_dim 320", "at most 256 on CUDA", "attn_implementation='sdpa'"),
    ],
)
def test_inputs_that_are_refused(inputs: dict[str, Any], found: str, expected: str, remedy: str) -> None:
    # stand-ins carry a device without having it, so that CUDA's rules are tested everywhere
    with FakeTensorMode(allow_non_fake_inputs=True):
        mask = torch.ones(3, 3, dtype=torch.bool, device="cuda") if inputs.get("mask") is True else inputs.get("mask")
        error = _refused(**{**inputs, "mask": mask})
    assert error.where == "attn_implementation"
    assert found in error.found
    assert "flash_attention" in error.found
    assert expected in error.expected
    assert remedy in error.remedy
    assert error.remedy.endswith("attn_implementation='sdpa'")


def test_what_no_rule_knows_is_refused_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_available(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(F, "scaled_dot_product_attention", none_available)
    error = _refused()
    assert error.found.startswith("queries [2, 4, 3, 16] in bfloat16, which it does not take")
    assert "attn_implementation='sdpa'" in error.remedy


def test_another_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(RuntimeError, match="out of memory"):
        flash_attention(q, q, q, None, 1.0, 0.0, 2)


@pytest.mark.parametrize("changes", [{}, {"head_dim": 320}], ids=str)
def test_no_other_kernel_runs(changes: dict[str, Any]) -> None:
    model = random_model(attn_implementation="flash_attention", **changes)
    mask = torch.tensor([[1] * 6, [0, 0] + [1] * 4])
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        model(token_ids(2, 6), mask)
        for cache in (DynamicCache(), StaticCache(9)):
            for tokens in (4, 1, 3):  # a prompt, a token, a chunk behind a past
                model(token_ids(2, tokens), past_key_values=cache)
    ran = Counter(event.name for event in profiled.events() if "_attention" in event.name or "softmax" in event.name)
    calls = 2 * 7  # layers and forwards
    assert ran == {"aten::scaled_dot_product_attention": calls, KERNEL: calls}


def test_the_choice_of_kernels_is_set_back() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        random_model(attn_implementation="flash_attention")(token_ids(1, 4))
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()


def test_there_are_no_weights_to_return() -> None:
    model = random_model(attn_implementation="flash_attention")
    with pytest.raises(RequestError, match=r"output_attentions with attention 'flash_attention'.*'eager'"):
        model(token_ids(1, 3), output_attentions=True)


def test_dropout_in_training_is_refused_on_the_cpu() -> None:
    model = random_model(attn_implementation="flash_attention", attention_dropout=0.5)
    model.train()
    with pytest.raises(RequestError, match=r"attention dropout 0\.5"):
        model(token_ids(1, 3))
    assert model.eval()(token_ids(1, 3)).logits.isfinite().all()


def test_gradients_are_those_of_sdpa() -> None:
    gradients = []
    for implementation in ("flash_attention", "sdpa"):
        model = random_model(attn_implementation=implementation)
        model(token_ids(2, 7), labels=token_ids(2, 7)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(gradients[0]) > 10
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
