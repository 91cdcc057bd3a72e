"""The demo ends well on the embedded checkpoint, and says what was measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from nemotron_export import benchmark
from nemotron_export.cli import app


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    # one short round: that it measures is tested, not what
    patch = pytest.MonkeyPatch()
    real = benchmark.decode_benchmark
    patch.setattr(
        benchmark, "decode_benchmark", lambda *args, **kw: real(*args, **kw, prompt_tokens=8, new_tokens=4, rounds=1)
    )
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
    rows = shown["benchmark"]["rows"]
    assert [row["name"].split(",")[0] for row in rows] == [
        "bundle ort-cpu float32",
        "PyTorch eager float32",
        "PyTorch eager bfloat16",
    ]
    assert rows[1]["ratio"] == 1.0
    assert all(row["tokens_per_second"] > 0 and len(row["rounds"]) == 1 for row in rows)
    assert "2 threads" in shown["benchmark"]["machine"]
    assert "torch" in shown["benchmark"]["versions"]
