"""transformers' AutoTokenizer reads the demo's tokenizer as the project does."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from nemotron_runtime.text.tokenizer import Tokenizer
from transformers import AutoTokenizer

DEMO = Path(str(files("nemotron_export") / "assets" / "demo"))
LINES = sorted({line for text in topics.values() for line in text.split("\n")})[::10]


@pytest.fixture(scope="module")
def oracle():
    return AutoTokenizer.from_pretrained(DEMO)


def test_ids_and_text(oracle):
    tokenizer = Tokenizer.from_directory(DEMO)
    assert len(LINES) > 300
    for line in [*LINES, *list(topics.values())[:5]]:
        ids = oracle(line)["input_ids"]
        assert tokenizer.encode(line) == ids, line
        assert tokenizer.encode(line, add_special_tokens=False) == oracle(line, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True) == line


def test_special_ids(oracle):
    ids = (oracle.pad_token_id, oracle.unk_token_id, oracle.bos_token_id, oracle.eos_token_id)
    assert ids == (0, 1, 2, 3)
    assert set(oracle.all_special_ids) == Tokenizer.from_directory(DEMO).special_ids
