"""The demo ends well on the embedded checkpoint, and says what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from nemotron_export import bench
from nemotron_export.cli import app


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    # one short round: that it measures is tested, not what
    patch = pytest.MonkeyPatch()
    real = bench.run_bench
    short = {"prompt_tokens": 8, "new_tokens": 4, "rounds": 1, "eager_caches": ("static",)}
    patch.setattr(bench, "run_bench", lambda *args, options, **kw: real(*args, **kw, options=replace(options, **short)))
    result = CliRunner().invoke(app, ["demo", "--json", "--threads", "2"])
    patch.undo()
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_the_bundle_is_proved(shown: dict[str, Any]) -> None:
    assert shown["parity"]["passed"] is True
    # the embedded checkpoint has room for a prompt past 1,000 positions
    assert "1200 tokens" in {row["prompt"] for row in shown["parity"]["rows"]}


def test_texts_are_words(shown: dict[str, Any]) -> None:
    assert len(shown["texts"]) == 2
    for text in shown["texts"]:
        words = text["completion"].split()
        assert len(words) >= 8
        assert text["completion"][0] == " ", "the answer goes on where the prompt ends"
        assert sum(word.strip(".,:;()`-'\"").isalpha() for word in words) >= 0.7 * len(words)


def test_the_bundle_is_measured_beside_both_dtypes_of_pytorch(shown: dict[str, Any]) -> None:
    found = shown["benchmark"]
    assert [backend["name"] for backend in found["contenders"]] == [
        "bundle ort-cpu float32",
        "eager float32, sdpa, static cache",
        "eager bfloat16, sdpa, static cache",
    ]
    for backend in found["contenders"]:
        (measured,) = backend["measurements"]
        assert measured["decode_tokens_per_second"]["median"] > 0
        assert len(measured["decode_tokens_per_second"]["rounds"]) == 1
    assert found["machine"]["threads"] == 2
    assert "torch" in found["versions"]
