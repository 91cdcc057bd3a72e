"""``generate``'s stop strings, bad words, streamers and stored settings against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nemotron_errors import RequestError
from support.models import causal_pair, config_dict, token_ids

import nemotron_export

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"
PROMPTS = ["Complete the paragraph: our solar system is", "The function returns", "A list of numbers"]


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any, Any, Any]:
    loaded: list[Any] = []
    for package in (nemotron_export, transformers):
        loaded.append(package.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32))
        loaded.append(package.AutoTokenizer.from_pretrained(str(DEMO)))
    return tuple(loaded)  # type: ignore[return-value]


class _Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.clone())

    def end(self) -> None:
        self.given.append("end")


@pytest.mark.parametrize("stop", [".", [".\n"], ["the", " a"], ["no such text"], ["e"]], ids=str)
def test_stop_strings(demo: tuple[Any, Any, Any, Any], stop: str | list[str]) -> None:
    ours, our_tokenizer, theirs, their_tokenizer = demo
    batch = our_tokenizer(PROMPTS, padding=True, return_tensors="pt")
    found = ours.generate(**batch, max_new_tokens=24, stop_strings=stop, tokenizer=our_tokenizer)
    expected = theirs.generate(**batch, max_new_tokens=24, stop_strings=stop, tokenizer=their_tokenizer)
    assert torch.equal(found, expected)
    free = ours.generate(**batch, max_new_tokens=24)
    assert torch.equal(found, free) is (stop == ["no such text"])


def test_bad_words(demo: tuple[Any, Any, Any, Any]) -> None:
    ours, tokenizer, theirs, _ = demo
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    free = ours.generate(**batch, max_new_tokens=16)
    start = batch.input_ids.shape[1]
    words = [
        [int(free[0, start])],  # the first new token, alone
        free[1, start : start + 2].tolist(),  # two that follow each other
        free[2, start - 1 : start + 1].tolist(),  # one that begins in the prompt
        free[1, start + 4 : start + 8].tolist(),
    ]
    found = ours.generate(**batch, max_new_tokens=16, bad_words_ids=words)
    assert torch.equal(found, theirs.generate(**batch, max_new_tokens=16, bad_words_ids=words))
    for row in range(3):
        assert not torch.equal(found[row], free[row])


def test_bad_words_longer_than_the_text() -> None:
    ours, oracle = causal_pair(config_dict(eos_token_id=None))
    ids = token_ids(2, 2)
    arguments: dict[str, Any] = {"max_new_tokens": 12, "bad_words_ids": [[1, 2, 3, 4, 5, 6], *[[i] for i in range(60)]]}
    found = ours.generate(ids, pad_token_id=0, repetition_penalty=1.3, **arguments)
    expected = oracle.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, repetition_penalty=1.3, **arguments
    )
    assert torch.equal(found, expected)
    assert int(found[:, 2:].min()) >= 60


def test_sampling_never_draws_a_bad_word() -> None:
    ours, _ = causal_pair(config_dict(eos_token_id=None))
    words = [[i] for i in range(90)]
    found = ours.generate(token_ids(1, 3), do_sample=True, max_new_tokens=50, bad_words_ids=words, seed=1, top_p=0.99)
    assert int(found[:, 3:].min()) >= 90
    assert len(set(found[0, 3:].tolist())) > 1


@pytest.mark.parametrize("rows", [1, 3])
def test_an_object_streams_what_transformers_streams(demo: tuple[Any, Any, Any, Any], rows: int) -> None:
    ours, tokenizer, theirs, _ = demo
    batch = tokenizer(PROMPTS[:rows], padding=True, return_tensors="pt")
    free = ours.generate(**batch, max_new_tokens=10)
    ending = [int(free[0, -6]), 3]
    recorders = _Recorder(), _Recorder()
    for model, recorder in zip((ours, theirs), recorders, strict=True):
        model.generate(**batch, max_new_tokens=10, eos_token_id=ending, streamer=recorder)
    found, expected = (recorder.given for recorder in recorders)
    assert len(found) == len(expected) > 4
    assert found.pop() == expected.pop() == "end"
    assert all(map(torch.equal, found, expected))


def test_transformers_own_streamer_prints_the_answer(
    demo: tuple[Any, Any, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, tokenizer, theirs, their_tokenizer = demo
    inputs = tokenizer.encode(PROMPTS[0], return_tensors="pt")
    printed = []
    for model in (ours, theirs):
        model.generate(inputs, max_new_tokens=12, streamer=transformers.TextStreamer(their_tokenizer))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert PROMPTS[0] in printed[0]


def test_a_function_gets_the_new_tokens_of_every_step(demo: tuple[Any, Any, Any, Any]) -> None:
    ours, tokenizer, _, _ = demo
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    steps: list[torch.Tensor] = []
    out = ours.generate(**batch, max_new_tokens=6, streamer=steps.append)
    assert torch.equal(torch.stack(steps, dim=1), out[:, batch.input_ids.shape[1] :])


def test_several_answers_per_prompt(demo: tuple[Any, Any, Any, Any]) -> None:
    ours, tokenizer, theirs, _ = demo
    batch = tokenizer(PROMPTS[:2], padding=True, return_tensors="pt")
    arguments: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    found = ours.generate(**batch, seed=5, **arguments)
    expected = theirs.generate(**batch, **arguments)
    start = batch.input_ids.shape[1]
    assert found.shape == expected.shape
    assert torch.equal(found[:, :start], expected[:, :start])
    for rows in (found[:3], found[3:]):
        assert len({tuple(row.tolist()) for row in rows}) == 3
    assert torch.equal(found, ours.generate(**batch, seed=5, **arguments))


def test_stored_settings_take_the_place_of_arguments() -> None:
    ours, oracle = causal_pair(config_dict(eos_token_id=None))
    ids = token_ids(2, 5)
    stored = {"max_new_tokens": 11, "repetition_penalty": 1.4, "eos_token_id": [*range(0, 97, 5)], "pad_token_id": 0}
    ours.generation_config = dict(stored)
    oracle.generation_config = transformers.GenerationConfig(**stored)
    mask = torch.ones_like(ids)
    assert torch.equal(ours.generate(ids, mask), oracle.generate(ids, attention_mask=mask))
    given = {"max_new_tokens": 5, "repetition_penalty": 1.0, "eos_token_id": 1}
    assert torch.equal(ours.generate(ids, mask, **given), oracle.generate(ids, attention_mask=mask, **given))
    ours.generation_config["do_sample"] = True
    drawn = {tuple(ours.generate(ids[:1], mask[:1], seed=seed, **given)[0].tolist()) for seed in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop_strings": "."}, "tokenizer: found stop_strings and NoneType"),
        ({"stop_strings": ""}, "strings that are not empty"),
        ({"bad_words_ids": []}, "bad_words_ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[97]]}, "ids from 0 to 96"),
        ({"bad_words_ids": [[True]]}, "bad_words_ids"),
        ({"streamer": 5}, "streamer: found an object of int"),
        ({"num_beams": 4}, "found num_beams"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    ours, _ = causal_pair(config_dict())
    with pytest.raises(RequestError, match=message):
        ours.generate(token_ids(1, 3), max_new_tokens=2, **arguments)
