"""Spans of tokens in their text, by both kinds of tokenizer."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from nemotron_errors import TokenizerError
from nemotron_runtime.text.tokenizer import Tokenizer

TEXTS = ("Größe über 世界 def f", " two  blanks ", "", "\N{GRINNING FACE} x")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The embedded checkpoint's tokenizer.json, and its tokenizer.model alone."""
    folder, source = tmp_path_factory.mktemp("sentencepiece"), Path(str(files("nemotron_export") / "assets" / "demo"))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return Tokenizer.from_directory(source), Tokenizer.from_directory(folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_encode_and_spans_cover_the_text(
    both: tuple[Tokenizer, ...], text: str, special: bool
) -> None:
    for tokenizer in both:
        found = tokenizer.encode_spans(text, add_special_tokens=special)
        assert list(found.ids) == tokenizer.encode(text, special)
        assert len(found.ids) == len(found.spans) == len(found.texts)
        own = [span for span, owner in zip(found.spans, found.texts, strict=True) if owner == 0]
        assert len(own) == len(tokenizer.encode(text, False))
        covered = {at for begin, end in own for at in range(begin, end)}
        assert all(at in covered for at, sign in enumerate(text) if not sign.isspace())


def test_pairs_agree(both: tuple[Tokenizer, ...]) -> None:
    found = [tokenizer.encode_spans("Wo?", "Größe hier") for tokenizer in both]
    assert found[0] == found[1]
    assert [owner for owner in found[0].texts if owner is not None][-1] == 1
    assert found[0].texts.count(None) == 2


def test_refused_texts(both: tuple[Tokenizer, ...]) -> None:
    for tokenizer in both:
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizer.encode_spans("fine", "\ud800")
