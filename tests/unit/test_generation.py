"""The generation loop over a session that checks how it is driven."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from nemotron_errors import LimitError, RequestError
from nemotron_runtime.engine.generation import GenerationParams, GenerationRun, generate
from nemotron_runtime.text.stopping import StopMatcher
from support.toy_engine import ToyEngine

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [21]]


class LetterDecoder:
    """Token 0 is 'a', 1 is 'b', and so on."""

    def __init__(self, context):
        self.context = context

    def push(self, token_id):
        return chr(ord("a") + token_id)

    def flush(self):
        return ""


def greedy_by_hand(session, prompt, steps):
    history, new = list(prompt), []
    for _ in range(steps):
        new.append(int(session.row_logits(history).argmax()))
        history.append(new[-1])
    return new


def run(session, prompts=PROMPTS, **params):
    return generate(session, prompts, GenerationParams(**params), decoder=LetterDecoder)


def test_greedy_rows_of_different_lengths_equal_each_row_alone():
    session = ToyEngine()
    results = run(session, max_new_tokens=9)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert list(result.token_ids) == greedy_by_hand(session, prompt, 9)
        assert result.finish_reason == "length"
        assert result.prompt_token_ids == tuple(prompt)
        assert result.text == "".join(chr(ord("a") + t) for t in result.token_ids)


def test_each_row_is_decoded_behind_its_own_prompt():
    made = []
    params = GenerationParams(max_new_tokens=1, num_return_sequences=2)

    def make(context):
        made.append(context)
        return LetterDecoder(context)

    generate(ToyEngine(), PROMPTS[:2], params, decoder=make)
    assert made == [list(PROMPTS[0])] * 2 + [list(PROMPTS[1])] * 2


def test_prompts_past_the_chunk_are_fed_in_chunks():
    session = ToyEngine(prefill_chunk=8)
    run(session, max_new_tokens=1)
    assert session.calls == [(3, 8), (3, 8), (3, 1)]


def test_more_prompts_than_rows_run_in_micro_batches_and_keep_their_order_and_noise():
    prompts = [[i, i + 1] for i in range(7)]
    settings = {"max_new_tokens": 5, "temperature": 1.0, "seed": 3}
    micro_batches = run(ToyEngine(max_batch=2), prompts, **settings)
    together = run(ToyEngine(max_batch=7), prompts, **settings)
    assert [r.token_ids for r in micro_batches] == [r.token_ids for r in together]
    assert [r.prompt_token_ids for r in micro_batches] == [tuple(p) for p in prompts]


def test_a_seed_repeats_and_no_seed_is_told():
    first = run(ToyEngine(), temperature=1.0, max_new_tokens=12)
    again = run(ToyEngine(), temperature=1.0, max_new_tokens=12, seed=first[0].seed)
    other = run(ToyEngine(), temperature=1.0, max_new_tokens=12, seed=first[0].seed ^ 1)
    assert [r.token_ids for r in again] == [r.token_ids for r in first]
    assert [r.token_ids for r in other] != [r.token_ids for r in first]


def test_num_return_sequences_draws_each_answer_of_its_own():
    results = run(ToyEngine(), [[1, 2]], temperature=1.0, max_new_tokens=12, seed=0, num_return_sequences=3)
    assert len({r.token_ids for r in results}) == 3


def test_eos_ends_a_row_and_the_others_go_on():
    session = ToyEngine()
    alone = [greedy_by_hand(session, prompt, 12) for prompt in PROMPTS]
    eos = (alone[0][4], 31)
    results = run(session, max_new_tokens=12, eos_token_ids=eos)
    for tokens, result in zip(alone, results, strict=True):
        ends = [i for i, token in enumerate(tokens) if token in eos]
        expected = tokens[: ends[0] + 1] if ends else tokens
        assert list(result.token_ids) == expected
        assert result.finish_reason == ("eos" if ends else "length")
        assert len(result.text) == len(expected) - bool(ends), "the end token has no text"
    assert results[0].finish_reason == "eos"


def test_ignore_eos_goes_on_and_min_new_tokens_forbids_it():
    script = [7, 3, 8, 3, 9, 3]
    plain = run(ToyEngine(script=script), [[1]], max_new_tokens=6, eos_token_ids=3)[0]
    assert (plain.token_ids, plain.finish_reason) == ((7, 3), "eos")
    ignored = run(ToyEngine(script=script), [[1]], max_new_tokens=6, eos_token_ids=3, ignore_eos=True)[0]
    assert (ignored.token_ids, ignored.finish_reason) == (tuple(script), "length")
    later = run(ToyEngine(script=script), [[1]], max_new_tokens=6, eos_token_ids=3, min_new_tokens=2)[0]
    assert later.token_ids[1] != 3
    assert (later.token_ids[3], len(later.token_ids), later.finish_reason) == (3, 4, "eos")


def test_stop_token_ends_without_its_text():
    result = run(ToyEngine(script=[7, 3, 8]), [[1]], max_new_tokens=3, stop_token_ids=[3])[0]
    assert (result.token_ids, result.text, result.finish_reason) == ((7, 3), "h", "stop")


@pytest.mark.parametrize(
    ("stop", "text"), [("de", "abc"), ("cde", "ab"), (("zz", "e"), "abcd"), ("a", ""), ("ef", "abcd"), ("g", "abcdef")]
)
def test_stop_string_is_cut_also_where_tokens_split_it(stop, text):
    result = run(ToyEngine(script=[0, 1, 2, 3, 4, 5, 6, 7]), [[9]], max_new_tokens=8, stop=stop)[0]
    assert (result.text, result.finish_reason) == (text, "stop")


def test_events_never_show_text_of_a_stop_string_and_add_up_to_the_text():
    events = []
    params = GenerationParams(max_new_tokens=6, stop=("cdx", "f"))
    session = ToyEngine(script=[0, 1, 2, 3, 4, 5])
    result = generate(session, [[9]], params, on_token=events.append, decoder=LetterDecoder)[0]
    assert [e.text for e in events] == ["a", "b", "", "", "cde", ""]
    assert "".join(e.text for e in events) == result.text == "abcde"
    assert [e.finish_reason for e in events] == [None] * 5 + ["stop"]
    assert [e.token_id for e in events] == list(result.token_ids)


def test_text_held_for_a_stop_string_is_given_at_the_end():
    result = run(ToyEngine(script=[0, 1]), [[9]], max_new_tokens=2, stop="bc")[0]
    assert (result.text, result.finish_reason) == ("ab", "length")


def test_cancel_by_event_and_by_callable():
    event = threading.Event()
    seen = []

    def on_token(token):
        seen.append(token)
        if len(seen) == 4:
            event.set()

    params = GenerationParams(max_new_tokens=20)
    results = generate(ToyEngine(), PROMPTS[:2], params, on_token=on_token, cancelled=event)
    assert [r.finish_reason for r in results] == ["cancelled", "cancelled"]
    assert [len(r.token_ids) for r in results] == [2, 2]
    assert [e.token_id for e in seen[4:]] == [None, None]
    early = generate(ToyEngine(), PROMPTS, params, cancelled=lambda: True)
    assert [(r.finish_reason, r.token_ids) for r in early] == [("cancelled", ())] * 3


def test_an_abandoned_run_counts_as_cancelled():
    session = ToyEngine()
    run = GenerationRun(session, [[1]], GenerationParams(max_new_tokens=5))
    iterator = iter(run)
    first = next(iterator)
    iterator.close()
    assert run.results()[0].token_ids == (first.token_id,)
    assert run.results()[0].finish_reason == "cancelled"


def test_timings_count_tokens():
    timings = run(ToyEngine(), [[1, 2, 3]], max_new_tokens=4)[0].timings
    assert (timings.prompt_tokens, timings.new_tokens) == (3, 4)
    assert timings.prefill_tokens_per_second > 0
    assert timings.decode_tokens_per_second > 0


@pytest.mark.parametrize(
    ("prompts", "params", "error", "says"),
    [
        ([], {}, RequestError, "no prompts"),
        ([[]], {}, RequestError, "no tokens"),
        ([[32]], {}, RequestError, "token id 32"),
        ([[-1]], {}, RequestError, "token id -1"),
        ([[1.5]], {}, RequestError, "float64"),
        ([["a"]], {}, RequestError, "integer token ids"),
        ([[1, 2]], {"max_new_tokens": 63}, LimitError, "65 together.*at most 64.*max-seq-len"),
        ([[1]], {"stop_token_ids": 99, "max_new_tokens": 1}, RequestError, "stop_token_ids.*99"),
    ],
)
def test_bad_requests_name_numbers_and_remedy(prompts, params, error, says):
    with pytest.raises(error, match=says):
        run(ToyEngine(), prompts, **params)


def test_stop_strings_need_a_decoder():
    with pytest.raises(RequestError, match="tokenizer"):
        generate(ToyEngine(), [[1]], GenerationParams(stop="x", max_new_tokens=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (float("nan"), float("inf"), -1, "1", None, True)),
        *(("top_k", v) for v in (-1, 1.5, True)),
        *(("top_p", v) for v in (0, 1.1, float("nan"))),
        *(("min_p", v) for v in (-0.1, 1.1)),
        *(("repetition_penalty", v) for v in (0, -1, float("inf"))),
        *(("max_new_tokens", v) for v in (0, -3, 2.0, None)),
        *(("min_new_tokens", v) for v in (-1, 129)),
        *(("seed", v) for v in (-1, 2**64, 1.0)),
        *(("stop", v) for v in ("", 3, ["a", ""])),
        *(("stop_token_ids", v) for v in (-1, "3", [1.0])),
        ("ignore_eos", 1),
        ("num_return_sequences", 0),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(RequestError) as caught:
        GenerationParams(**{name: value})
    assert caught.value.where == name


def test_session_logits_equal_the_row_by_hand_in_chunks():
    session = ToyEngine(prefill_chunk=4)
    ids = np.arange(10)
    logits = session.logits(ids)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [session.row_logits(ids[: i + 1]) for i in range(10)])


def test_session_refuses_past_its_limits():
    session = ToyEngine(max_seq_len=10, max_batch=2)
    with pytest.raises(LimitError, match=r"3 sequences.*max-batch"):
        session.reset(3, 5)
    with pytest.raises(LimitError, match=r"11 tokens.*max-seq-len"):
        session.logits(range(11))
    session.reset(1, 2)
    session.prefill([[1, 2]])
    with pytest.raises(LimitError, match="full sequence of 2 tokens"):
        session.decode([3])
    session.decode([3], np.array([False]))
    assert session.lengths_B.tolist() == [2]


def test_prefill_again_goes_on_after_what_the_rows_hold():
    session = ToyEngine()
    session.reset(2, 20)
    session.prefill([[1, 2, 3], [4]])
    session.decode([5, 6])
    logits = session.prefill([[7], [8, 9]])
    np.testing.assert_array_equal(logits[0], session.row_logits([1, 2, 3, 5, 7]))
    np.testing.assert_array_equal(logits[1], session.row_logits([4, 6, 8, 9]))
    assert session.lengths_B.tolist() == [5, 4]


def test_padding_of_ragged_rows_stays_inside_the_cache():
    session = ToyEngine()
    session.reset(2, 8)
    session.prefill([[1], [4, 5, 6, 7, 8, 9]])
    logits = session.prefill([[2, 3, 4, 5], [1]])
    np.testing.assert_array_equal(logits[0], session.row_logits([1, 2, 3, 4, 5]))
    np.testing.assert_array_equal(logits[1], session.row_logits([4, 5, 6, 7, 8, 9, 1]))
    session.reset(2, 6)
    session.prefill([[1], [4, 5, 6, 7, 8]])
    with pytest.raises(LimitError, match="room to pad"):
        session.prefill([[2, 3, 4], [1]])


def test_stop_matcher_takes_the_first_of_several():
    matcher = StopMatcher(["bcd", "c"])
    assert matcher.push("ab") == ("a", False)
    assert matcher.push("cd") == ("", True)
