"""The eager session: ragged rows, frozen rows, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nemotron_errors import LimitError, RequestError
from nemotron_runtime.engine.engine import Engine
from support.models import random_model, token_ids

from nemotron_export.model.executor import EagerExecutor


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_ragged_rows_equal_single_rows(implementation: str) -> None:
    """Rows of different lengths in one batch, fed in chunks, decoded with one row frozen for a step."""
    model = random_model(attn_implementation=implementation, head_dim=32)
    prompts = [token_ids(1, n, seed=n)[0].numpy() for n in (3, 11, 6)]
    session = Engine(EagerExecutor(model, max_batch=3, max_seq_len=32, prefill_chunk=4))
    session.reset(3, 20)
    prefill = session.prefill(prompts)
    tokens = np.array([5, 6, 7])
    first = session.decode(tokens).logits
    session.decode(tokens, advancing_B=np.array([True, False, True]))
    last = session.decode(tokens).logits
    assert session.lengths_B.tolist() == [6, 13, 9]
    single = Engine(EagerExecutor(model, max_batch=1, max_seq_len=32))
    for row, prompt in enumerate(prompts):
        steps = 2 if row == 1 else 3
        ids = np.concatenate((prompt, np.repeat(tokens[row], steps)))
        expected = single.logits(ids)
        scale = float(np.ptp(expected))
        for found, position in ((prefill, len(prompt) - 1), (first, len(prompt)), (last, len(ids) - 1)):
            assert np.abs(found[row] - expected[position]).max() <= 1e-5 * scale


def test_logits_of_every_position() -> None:
    model = random_model()
    ids = token_ids(1, 9)
    with torch.no_grad():
        expected = model(ids).logits[0].numpy()
    assert np.array_equal(Engine(EagerExecutor(model, 1, 16)).logits(ids[0].numpy()), expected)


def test_training_mode_is_refused() -> None:
    with pytest.raises(RequestError, match=r"call model\.eval\(\) first"):
        EagerExecutor(random_model().train(), 1, 16)


def test_limits() -> None:
    session = Engine(EagerExecutor(random_model(), 1, 8))
    with pytest.raises(LimitError, match="9 tokens"):
        session.reset(1, 9)
    session.reset(1, 4)
    session.prefill([[1, 2, 3, 4]])
    with pytest.raises(LimitError, match="room for another token"):
        session.decode([1])


def test_generate_refuses_what_makes_no_sense() -> None:
    model = random_model()
    ids = token_ids(1, 5)
    with pytest.raises(RequestError, match=r"token ids \[B, S\]"):
        model.generate(ids[0])
    with pytest.raises(RequestError, match="max_length 5"):
        model.generate(ids, max_length=5)
    with pytest.raises(RequestError, match="temperature"):
        model.generate(ids, do_sample=True, temperature=-1.0)


def test_sampling_is_seeded_and_greedy_warns_about_sampling_arguments() -> None:
    model = random_model()
    ids = token_ids(2, 5)
    arguments = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": [], "num_return_sequences": 2}
    once, again = (model.generate(ids, seed=7, **arguments) for _ in range(2))
    assert once.shape == (4, 17)
    assert torch.equal(once, again)
    assert not torch.equal(once, model.generate(ids, seed=8, **arguments))
    with pytest.warns(UserWarning, match="temperature without do_sample"):
        greedy = model.generate(ids, temperature=0.7, max_new_tokens=4)
    assert torch.equal(greedy, model.generate(ids, max_new_tokens=4))
