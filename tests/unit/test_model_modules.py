"""The reference model's parts: initialisation, embeddings, tied weights, outputs, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nemotron_errors import ConfigError, LimitError, RequestError
from support.models import config_dict, random_model, token_ids

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import (
    NemotronForCausalLM,
    NemotronForQuestionAnswering,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
    NemotronModel,
    StaticCache,
)
from nemotron_export.model.decoder import MLP
from nemotron_export.model.layernorm import LayerNorm1P


def _config(**changes: Any) -> NemotronConfig:
    return NemotronConfig.from_dict(config_dict(**changes))


def test_initialisation() -> None:
    torch.manual_seed(0)
    config = _config(attention_bias=True, mlp_bias=True, pad_token_id=7, initializer_range=0.05, hidden_size=256)
    for model in (NemotronForCausalLM(config), NemotronForTokenClassification(config)):
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                assert not parameter.any(), name
            elif "norm" in name:
                assert torch.equal(parameter, torch.ones_like(parameter)), name
            elif parameter.shape[0] > 3:
                assert 0.045 < parameter.std() < 0.055, name
        embedding = model.get_input_embeddings().weight
        assert not embedding[7].any()
        assert embedding[6].any()


def test_layernorm_adds_one_in_the_run_dtype() -> None:
    norm = LayerNorm1P(4).to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.fill_(2**-9)
        norm.bias.fill_(0.5)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.bfloat16)
    # 1 + 2^-9 is no bfloat16: it rounds to 1
    expected = torch.nn.functional.layer_norm(x, (4,), torch.ones(4).bfloat16(), norm.bias, 1e-5)
    assert torch.equal(norm(x), expected)
    wide = LayerNorm1P(4)
    wide.load_state_dict({name: value.float() for name, value in norm.state_dict().items()})
    # float32 keeps the sum, as a float32 run of a bfloat16 checkpoint must
    exact = torch.nn.functional.layer_norm(x.float(), (4,), torch.full((4,), 1 + 2**-9), wide.bias, 1e-5)
    assert torch.equal(wide(x.float()), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mlp_squares_the_rectified(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlp = MLP(_config(mlp_bias=True)).to(dtype)
    x = torch.randn(5, 64).to(dtype)
    assert torch.equal(mlp(x), mlp.down_proj(torch.square(torch.relu(mlp.up_proj(x)))))


def test_tied_embeddings_are_one_tensor() -> None:
    model = NemotronForCausalLM(_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.model.parameters())
    model.set_input_embeddings(torch.nn.Embedding(97, 64))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    untied = NemotronForCausalLM(_config())
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    head = torch.nn.Linear(64, 97, bias=False)
    untied.set_output_embeddings(head)
    assert untied.get_output_embeddings() is head


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("size", "multiple", "expected"), [(120, None, 120), (50, None, 50), (None, 64, 128)])
def test_resize_token_embeddings(tied: bool, size: int | None, multiple: int | None, expected: int) -> None:
    model = random_model(tie_word_embeddings=tied)
    old = model.model.embed_tokens.weight.detach().clone()
    ids = token_ids(1, 6) % 50
    before = model(ids).logits
    embedding = model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    assert embedding is model.get_input_embeddings()
    assert embedding.weight.shape == model.lm_head.weight.shape == (expected, 64)
    assert (model.lm_head.weight is embedding.weight) == tied
    assert model.config.vocab_size == model.model.config.vocab_size == model.lm_head.out_features == expected
    kept = min(expected, 97)
    assert torch.equal(embedding.weight[:kept], old[:kept])
    assert embedding.weight.requires_grad
    after = model(ids, labels=ids)
    assert after.logits.shape[-1] == expected
    torch.testing.assert_close(after.logits[..., :kept], before[..., :kept])
    if expected > 97:
        torch.testing.assert_close(embedding.weight[97:], old.mean(dim=0).expand(expected - 97, -1))
    after.loss.backward()
    assert embedding.weight.grad is not None


def test_resize_draws_new_rows_where_asked_and_refuses_nonsense() -> None:
    model = random_model(pad_token_id=60)
    model.resize_token_embeddings(4000, mean_resizing=False)
    assert 0.012 < model.model.embed_tokens.weight[97:].std() < 0.015
    with pytest.raises(ConfigError, match="pad_token_id = 60"):
        model.resize_token_embeddings(50)
    with pytest.raises(RequestError, match="new_num_tokens = 0"):
        model.resize_token_embeddings(0)
    with pytest.raises(RequestError, match="NemotronModel, which has no lm_head"):
        model.model.set_output_embeddings(torch.nn.Linear(1, 1))
    assert model.model.get_output_embeddings() is None


def test_outputs_by_name_index_and_order() -> None:
    model = random_model()
    ids = token_ids(1, 4)
    out = model(ids, use_cache=False, output_hidden_states=True)
    assert out["logits"] is out.logits is out[0]
    assert len(out) == len(out.to_tuple()) == 2
    logits, states = out
    assert logits is out.logits
    assert states is out.hidden_states
    cached = model.model(ids)
    assert cached.past_key_values.get_seq_length() == 4


def test_state_dict_keys() -> None:
    config = _config(num_hidden_layers=1)
    layer = {
        f"layers.0.{name}"
        for name in (
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
            "self_attn.o_proj.weight",
            "mlp.up_proj.weight",
            "mlp.down_proj.weight",
            "input_layernorm.weight",
            "input_layernorm.bias",
            "post_attention_layernorm.weight",
            "post_attention_layernorm.bias",
        )
    }
    base = layer | {"embed_tokens.weight", "norm.weight", "norm.bias"}
    assert set(NemotronModel(config).state_dict()) == base
    for cls, prefix, head in (
        (NemotronForCausalLM, "model.", {"lm_head.weight"}),
        (NemotronForSequenceClassification, "model.", {"score.weight"}),
        (NemotronForTokenClassification, "model.", {"score.weight", "score.bias"}),
        (NemotronForQuestionAnswering, "transformer.", {"qa_outputs.weight", "qa_outputs.bias"}),
    ):
        assert set(cls(config).state_dict()) == {prefix + name for name in base} | head


def test_refusals() -> None:
    model = random_model()
    ids = token_ids(2, 4)
    with pytest.raises(RequestError, match="neither input_ids nor inputs_embeds"):
        model()
    with pytest.raises(RequestError, match="both input_ids and inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(2, 4, 64))
    with pytest.raises(RequestError, match="output_attentions with attention 'sdpa'"):
        model(ids, output_attentions=True)
    with pytest.raises(ConfigError, match="attention 'flash3'"):
        NemotronModel(_config(), "flash3")
    with pytest.raises(LimitError, match="4 tokens; expected at most 3"):
        model(ids, past_key_values=StaticCache(3))
    with pytest.raises(RequestError, match="2 rows and no pad_token_id"):
        NemotronForSequenceClassification(_config())(ids)
    with pytest.raises(RequestError, match="problem_type 'ranking'"):
        NemotronForSequenceClassification(_config(problem_type="ranking"))(ids[:1], labels=torch.tensor([1]))
