"""Every class against transformers: outputs, losses and gradients, bit-equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import config_dict, token_ids
from support.oracles import HEADS, assert_outputs_equal, head_pair

heads = pytest.mark.parametrize("head", HEADS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])

CLASSES = {"id2label": {str(i): f"L{i}" for i in range(3)}}
VALUES = config_dict(head_dim=32, attention_bias=True, mlp_bias=True, pad_token_id=0, **CLASSES)


def _inputs(head: str) -> dict[str, Any]:
    """Three rows, two of them padded on the left, and labels for the head."""
    ids = token_ids(3, 9) % 90 + 5
    ids[0, :2] = 0
    ids[2, :4] = 0
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": ids.ne(0).long()}
    if head in ("NemotronForCausalLM", "NemotronForTokenClassification"):
        labels = ids.clone() % (97 if head == "NemotronForCausalLM" else 3)
        inputs["labels"] = labels.masked_fill(ids.eq(0), -100)
    if head == "NemotronForSequenceClassification":
        inputs["labels"] = torch.tensor([2, 0, 1])
    if head == "NemotronForQuestionAnswering":
        inputs |= {"start_positions": torch.tensor([3, 1, 40]), "end_positions": torch.tensor([[5], [2], [8]])}
    return inputs


@torch.no_grad()
@heads
@dtypes
@implementations
def test_outputs_and_loss(head: str, dtype: torch.dtype, implementation: str) -> None:
    ours, oracle = head_pair(head, VALUES, dtype, implementation)
    inputs = _inputs(head) | {"output_hidden_states": True}
    if implementation == "eager":
        inputs["output_attentions"] = True
    found, expected = ours(**inputs), oracle(**inputs)
    assert_outputs_equal(found, expected)
    as_tuple = ours(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(oracle(**inputs, return_dict=False))
    assert list(ours.state_dict()) == list(oracle.state_dict())


@torch.no_grad()
@heads
def test_embeddings_as_input(head: str) -> None:
    ours, oracle = head_pair(head, VALUES)
    inputs = _inputs(head)
    embeds = oracle.get_input_embeddings()(inputs.pop("input_ids"))
    assert_outputs_equal(ours(inputs_embeds=embeds, **inputs), oracle(inputs_embeds=embeds, **inputs))


@heads
@dtypes
@implementations
def test_training_step(head: str, dtype: torch.dtype, implementation: str) -> None:
    """Dropout draws the same noise, and every gradient is the same."""
    values = {**VALUES, "attention_dropout": 0.25, "classifier_dropout": 0.3}
    ours, oracle = head_pair(head, values, dtype, implementation)
    results = []
    for model in (ours.train(), oracle.train()):
        torch.manual_seed(5)
        out = model(**_inputs(head), use_cache=False)
        loss = out.last_hidden_state.float().pow(2).mean() if head == "NemotronModel" else out.loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    (our_loss, our_gradients), (loss, gradients) = results
    assert torch.equal(our_loss, loss)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert torch.equal(our_gradients[name], gradient), name
    assert sum(g.abs().sum() for g in gradients.values()) > 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (None, [1.0, 0.5, 2.0]),
        (None, [[1.0], [0.5], [2.0]]),
        ("regression", [1.0, 0.5, 2.0]),
        (None, [0, 2, 1]),
        ("single_label_classification", [0, 2, -100]),
        (None, [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        ("multi_label_classification", [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        ("regression", [[0.0, 1.5, 1.0], [1.0, -2.0, 0.0], [0.5, 0.0, 0.0]]),
    ],
)
def test_sequence_losses(problem_type: str | None, labels: list[Any]) -> None:
    tensor = torch.tensor(labels)
    classes = 1 if tensor.numel() == 3 and tensor.is_floating_point() else 3
    named = {"id2label": {str(i): f"L{i}" for i in range(classes)}}
    ours, oracle = head_pair("NemotronForSequenceClassification", {**VALUES, **named, "problem_type": problem_type})
    inputs = _inputs("NemotronForSequenceClassification") | {"labels": tensor}
    assert_outputs_equal(ours(**inputs), oracle(**inputs))


@torch.no_grad()
def test_right_padded_and_single_rows_are_pooled_alike() -> None:
    ours, oracle = head_pair("NemotronForSequenceClassification", VALUES)
    ids = token_ids(3, 9) % 90 + 5
    ids[0, 4:] = 0
    ids[1, 7:] = 0
    assert_outputs_equal(ours(ids, ids.ne(0)), oracle(ids, ids.ne(0)))
    unpadded = {**VALUES, "pad_token_id": None}
    ours, oracle = head_pair("NemotronForSequenceClassification", unpadded)
    assert_outputs_equal(ours(ids[2:]), oracle(ids[2:]))
