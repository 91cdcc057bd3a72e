"""A loaded bundle generates, streams and verifies itself."""

from __future__ import annotations

import json

import nemotron_runtime
import numpy as np
import pytest
from nemotron_errors import BundleError, LimitError, RequestError
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.checks.reference import read_reference
from nemotron_runtime.checks.verification import read_report, verify
from support.bundles import TinyModel, make_bundle, make_reference

TINY = TinyModel(positions=256)


@pytest.fixture(scope="module", params=["fused", "portable"])
def model(request, tmp_path_factory):
    with nemotron_runtime.load(make_bundle(tmp_path_factory.mktemp(request.param), kind=request.param), threads=1) as m:
        yield m


class Letters:
    """A tokenizer whose token n is the n-th of a row of printable characters."""

    def encode(self, text, add_special_tokens=True):
        return [2] * add_special_tokens + [ord(c) - 32 for c in text]

    def incremental(self, context):
        return self

    def push(self, token):
        return chr(32 + token)

    def flush(self):
        return ""


@pytest.fixture
def lettered(model, monkeypatch):
    monkeypatch.setattr(model, "tokenizer", Letters())
    return model


def test_greedy_equals_numpy_for_ragged_prompts_in_turns(model):
    prompts = [np.random.default_rng(i).integers(0, TINY.V, n).tolist() for i, n in enumerate((5, 33, 1, 12, 20, 2))]
    results = model.generate(prompts, max_new_tokens=10, ignore_eos=True)
    for prompt, result in zip(prompts, results, strict=True):
        assert list(result.token_ids) == TINY.greedy(prompt, 10)[0].tolist()
        assert result.finish_reason == "length"
    assert model.generate(prompts[1], max_new_tokens=10, ignore_eos=True).token_ids == results[1].token_ids
    assert model.generate(np.array(prompts[1]), max_new_tokens=10, ignore_eos=True).token_ids == results[1].token_ids


def test_the_models_own_eos_ends(model):
    prompt = [1, 2]
    first = int(TINY.logits(prompt)[-1].argmax())
    result = model.generate(prompt, eos_token_ids=first)
    assert (result.token_ids, result.finish_reason) == ((first,), "eos")
    assert model.bundle.manifest.model.eos_token_ids == (3,)


def test_logits(model):
    expected = TINY.logits([5, 6, 7])
    np.testing.assert_allclose(model.logits([5, 6, 7]), expected, atol=2e-5 * np.ptp(expected))


def test_text_stream_adds_up_to_the_result(lettered):
    result = lettered.generate("Hello", max_new_tokens=12, temperature=0.9, top_k=20, seed=4, ignore_eos=True)
    chunks = list(lettered.stream("Hello", max_new_tokens=12, temperature=0.9, top_k=20, seed=4, ignore_eos=True))
    assert "".join(chunk.text for chunk in chunks) == result.text == "".join(chr(32 + t) for t in result.token_ids)
    assert [chunk.token_id for chunk in chunks] == list(result.token_ids)
    assert chunks[-1].finish_reason == result.finish_reason == "length"
    assert result.prompt_token_ids[0] == 2
    bare = lettered.generate("Hello", max_new_tokens=1, add_special_tokens=False)
    assert bare.prompt_token_ids == result.prompt_token_ids[1:]


def test_a_list_of_texts_gives_a_list(lettered):
    results = lettered.generate(["ab", "c"], max_new_tokens=2)
    assert [len(r.prompt_token_ids) for r in results] == [3, 2]
    assert lettered.generate(["ab"], max_new_tokens=2)[0].token_ids == results[0].token_ids
    assert len(lettered.generate("ab", max_new_tokens=2, num_return_sequences=2)) == 2


def test_stop_string(lettered):
    text = lettered.generate("ab", max_new_tokens=8, ignore_eos=True).text
    result = lettered.generate("ab", max_new_tokens=8, ignore_eos=True, stop=text[3:5])
    assert result.finish_reason == "stop"
    assert result.text == text[: text.find(text[3:5])]


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ("text", {}, RequestError, "no tokenizer"),
        (5, {}, RequestError, "int"),
        ([], {}, RequestError, "no tokens"),
        ([[1], []], {}, RequestError, "prompt 1"),
        ([1], {"max_tokens": 3}, RequestError, "max_tokens"),
        ([1], {"temperature": float("nan")}, RequestError, "temperature"),
        ([1] * 200, {"max_new_tokens": 57}, LimitError, r"257 together.*at most 256"),
        ([1], {"stop": "x"}, RequestError, "tokenizer"),
    ],
)
def test_bad_requests(model, prompt, params, error, says):
    with pytest.raises(error, match=says):
        model.generate(prompt, **params)


def test_stream_refuses_at_the_call_and_one_prompt_only(model):
    with pytest.raises(RequestError, match="one prompt"):
        model.stream([[1], [2]])
    with pytest.raises(LimitError):
        model.stream([1], max_new_tokens=1000)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads(tmp_path, threads):
    with pytest.raises(RequestError, match="threads"):
        nemotron_runtime.load(make_bundle(tmp_path), threads=threads)


def test_limits_and_parity_are_told(model):
    assert model.limits == nemotron_runtime.Limits(256, 4, 16)
    assert model.parity.state == "passed"


@pytest.mark.parametrize("kind", ["fused", "portable"])
def test_verify_proves_a_pending_bundle(tmp_path, kind):
    path = make_bundle(tmp_path, kind=kind, parity="pending")
    with pytest.raises(BundleError, match="pending"):
        nemotron_runtime.load(path)
    report = verify(path, threads=1)
    assert report.passed, report.rows
    assert Manifest.read(path).parity.state == "passed"
    assert Manifest.read(path).parity.reason is None
    assert read_report(path).to_dict() == report.to_dict() == json.loads((path / "parity.json").read_text())
    nemotron_runtime.load(path).close()


@pytest.mark.parametrize(("before", "after"), [("pending", "pending"), ("passed", "pending"), ("waived", "waived")])
def test_verify_reports_a_failure_and_never_calls_it_passed(tmp_path, before, after):
    # the reference of another model: everything differs
    path = make_bundle(tmp_path, parity=before, reference=make_reference(TinyModel(seed=1, positions=256)))
    report = verify(path, threads=1)
    assert not report.passed
    parity = Manifest.read(path).parity
    assert parity.state == after
    if after == "pending":
        assert "checks failed" in parity.reason
        with pytest.raises(BundleError, match="checks failed"):
            nemotron_runtime.load(path)


def test_verify_leaves_a_passed_bundle_untouched(tmp_path):
    path = make_bundle(tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert verify(path, threads=1).passed
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_verify_without_a_reference(tmp_path):
    path = make_bundle(tmp_path)
    document = json.loads((path / "manifest.json").read_text())
    del document["files"]["reference.safetensors"]
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"--no-parity.*nemotron-export parity .*nemotron-export\[build\]") as caught:
        verify(path)
    assert f"nemotron-export parity {path}" in caught.value.remedy
    assert "export verify" not in caught.value.remedy


def test_the_bundles_reference_holds_the_models_numbers(tmp_path):
    prompt = read_reference(make_bundle(tmp_path) / "reference.safetensors").prompts[2]
    assert len(prompt.ids) == 40
    np.testing.assert_array_equal(prompt.logits, TINY.logits(prompt.ids)[prompt.positions])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"rows": 3}'])
def test_a_broken_report(tmp_path, content):
    assert read_report(tmp_path) is None
    (tmp_path / "parity.json").write_text(content)
    with pytest.raises(BundleError, match="verify"):
        read_report(tmp_path)
