"""Models of every head beside transformers' with the same weights, and the comparison of their outputs."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from nemotron_export import model as ours
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronPreTrainedModel
from support.models import oracle_config, randomize

__all__ = ["HEADS", "assert_outputs_equal", "head_pair"]

HEADS = (
    "NemotronModel",
    "NemotronForCausalLM",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
    "NemotronForQuestionAnswering",
)


def head_pair(
    head: str, values: dict[str, Any], dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[NemotronPreTrainedModel, transformers.PreTrainedModel]:
    """Our model of a class and transformers', with the same random weights, both in eval mode."""
    oracle = getattr(transformers, head)._from_config(
        oracle_config(values), dtype=dtype, attn_implementation=attn_implementation
    )
    randomize(oracle.eval())
    mine = getattr(ours, head)(NemotronConfig.from_dict(values), attn_implementation)
    mine.to(dtype).eval().load_state_dict(oracle.state_dict(), strict=True)
    return mine, oracle


def assert_outputs_equal(found: Any, expected: Any) -> None:
    """All tensors of two outputs are bit-equal, under the same names; caches are left to the steps that use them."""
    wanted = {name: value for name, value in expected.items() if name != "past_key_values"}
    assert {n for n in vars(found) if getattr(found, n) is not None and n != "past_key_values"} == set(wanted)
    for name, value in wanted.items():
        mine = getattr(found, name)
        pairs = zip(mine, value, strict=True) if isinstance(value, tuple) else [(mine, value)]
        for a, b in pairs:
            assert a.dtype == b.dtype, name
            assert torch.isfinite(b).all(), name
            assert torch.equal(a, b), name
