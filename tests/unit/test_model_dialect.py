"""The dialect path against the reference path: prefill, cached decode, ragged rows, positions past 1000."""

from __future__ import annotations

import pytest
import torch
from nemotron_errors import GraphError
from support.models import ODD_CONFIGS, config_dict, random_model, token_ids

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import DynamicCache, NemotronForCausalLM, rope_tables

TOLERANCE = 1e-5  # of the logit range; ten times stricter than what artefacts are held to
TABLED = {k: v for k, v in ODD_CONFIGS.items() if k not in ("dynamic", "longrope")}


def _caches(model: NemotronForCausalLM, rows: int, slots: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    c = model.config
    shape = (rows, c.num_key_value_heads, slots, c.head_dim)
    # rubbish, which attention must never read
    return tuple([torch.full(shape, 1e3, dtype=model.dtype) for _ in model.model.layers] for _ in "kv")  # type: ignore[return-value]


def _assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, 0) for name in TABLED), *((name, 1500) for name in ("wide-heads", "rotary-96", "yarn"))],
)
def test_prefill_and_decode(name: str, start: int) -> None:
    """Both paths see the same tokens; the positions before ``start`` hold one long, common prefix."""
    model = random_model(**TABLED[name], num_hidden_layers=1 if start else 2)
    rows, slots = 2, start + 12
    k_caches, v_caches = _caches(model, rows, slots)
    cos, sin = rope_tables(model.config, slots)
    ids = token_ids(rows, slots)
    cache = DynamicCache()
    for begin, end in ((0, start), (start, start + 6), (start + 6, start + 7), (start + 7, start + 10)):
        if begin == end:
            continue
        expected = model(ids[:, begin:end], past_key_values=cache).logits
        size = end - begin
        found, k_caches, v_caches = model.forward_dialect(
            ids[:, begin:end],
            torch.full((rows,), begin),
            torch.full((rows,), size),
            torch.arange(size).expand(rows, -1),
            cos,
            sin,
            k_caches,
            v_caches,
        )
        _assert_close(found, expected)
    for layer, keys in enumerate(cache.keys):
        _assert_close(k_caches[layer][:, :, : keys.shape[2]], keys)
        _assert_close(v_caches[layer][:, :, : keys.shape[2]], cache.values[layer])


@torch.no_grad()
def test_ragged_rows() -> None:
    """Right-padded rows that stand at different slots give what each gives alone."""
    model = random_model(head_dim=32)
    cos, sin = rope_tables(model.config, 32)
    lengths, steps = [5, 2, 7], [1, 3, 2]
    ids = token_ids(3, 10)
    k_caches, v_caches = _caches(model, 3, 32)
    last = torch.tensor(lengths)[:, None] - 1
    first, k_caches, v_caches = model.forward_dialect(
        ids[:, :7], torch.zeros(3, dtype=torch.int64), torch.tensor(lengths), last, cos, sin, k_caches, v_caches
    )
    more = torch.stack([ids[row, n : n + 3] for row, n in enumerate(lengths)])
    second, *_ = model.forward_dialect(
        more, torch.tensor(lengths), torch.tensor(steps), torch.tensor(steps)[:, None] - 1, cos, sin, k_caches, v_caches
    )
    for row in range(3):
        alone = model(ids[row : row + 1, : lengths[row] + steps[row]]).logits[0]
        _assert_close(first[row, 0], alone[lengths[row] - 1])
        _assert_close(second[row, 0], alone[-1])


@torch.no_grad()
def test_logits_index_gathers_each_row() -> None:
    model = random_model()
    cos, sin = rope_tables(model.config, 16)
    ids = token_ids(2, 6)
    index = torch.tensor([[5, 0, 2], [1, 1, 4]])
    lengths = torch.full((2,), 6)
    found, *_ = model.forward_dialect(ids, torch.zeros_like(lengths), lengths, index, cos, sin, *_caches(model, 2, 8))
    expected = model(ids).logits
    _assert_close(found, torch.stack([expected[row, index[row]] for row in range(2)]))


@torch.no_grad()
def test_bf16_runs_in_bf16() -> None:
    model = random_model(torch.bfloat16)
    cos, sin = rope_tables(model.config, 16, torch.bfloat16)
    ids = token_ids(2, 6)
    arguments = (torch.zeros(2, dtype=torch.int64), torch.full((2,), 6), torch.arange(6).expand(2, -1), cos, sin)
    found, k_caches, _ = model.forward_dialect(ids, *arguments, *_caches(model, 2, 8))
    assert found.dtype == k_caches[0].dtype == torch.bfloat16
    expected = model(ids).logits.float()
    assert (found.float() - expected).abs().max() <= 0.03 * (expected.max() - expected.min())


@pytest.mark.parametrize(("name", "limit"), [("dynamic", 10), ("longrope", 10)])
def test_tables_past_the_constant_frequencies_are_refused(name: str, limit: int) -> None:
    config = NemotronConfig.from_dict(config_dict(**ODD_CONFIGS[name]))
    with pytest.raises(GraphError, match=f"at most {limit}"):
        rope_tables(config, limit + 1)
    cos, sin = rope_tables(config, limit)
    assert cos.shape == sin.shape == (limit, config.rotary_dim // 2)
    longer, _ = rope_tables(config, limit + 8, max_seq_len=limit)
    assert torch.equal(longer[:limit], cos)


def test_tables_are_the_reference_path_s_cos_and_sin() -> None:
    for name, changes in TABLED.items():
        model = random_model(**changes)
        cos, sin = rope_tables(model.config, 40, torch.bfloat16)
        expected = model.model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), torch.arange(40)[None])
        half = model.config.rotary_dim // 2
        assert torch.equal(cos, expected[0][0, :, :half]), name
        assert torch.equal(sin, expected[1][0, :, half:]), name
