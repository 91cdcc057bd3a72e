"""Truncation and padding of AutoTokenizer as transformers' fast tokenizer does it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers
from nemotron_errors import RequestError, TokenizerError
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import nemotron_export
from nemotron_export import AutoTokenizer
from nemotron_export.checkpoint import Checkpoint

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"
TEXTS = ["A list is a function of strings", "", "x", "café 😀 and\n\nthe <s> rest of </s> it"]


def _folder(path: Path, both_ends: bool = False, **settings: Any) -> Path:
    """The demo's tokenizer with other settings, and maybe with special tokens on both ends."""
    path.mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    if both_ends:
        special = [("<s>", 2), ("</s>", 3)]
        tokenizer.post_processor = TemplateProcessing(single="<s> <s> $A </s>", special_tokens=special)
    tokenizer.save(str(path / "tokenizer.json"))
    config = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
    (path / "tokenizer_config.json").write_text(json.dumps({**config, **settings}), "utf-8")
    return path


CALLS: list[dict[str, Any]] = [
    {"truncation": True, "max_length": 4},
    {"truncation": "longest_first", "max_length": 5},
    {"truncation": "only_first", "max_length": 6},
    {"truncation": "do_not_truncate", "max_length": 4},
    {"truncation": False, "max_length": 4},
    {"truncation": True, "max_length": 3},
    {"truncation": True, "max_length": 1, "add_special_tokens": False},
    {"truncation": True, "max_length": 50},
    {"truncation": True},
    {"max_length": 4},
    {"max_length": 4, "add_special_tokens": False},
    {"padding": "max_length", "max_length": 20},
    {"padding": "max_length", "max_length": 4},
    {"padding": "max_length"},
    {"padding": "max_length", "truncation": True},
    {"padding": "max_length", "truncation": True, "max_length": 5},
    {"padding": "max_length", "truncation": True, "max_length": 5, "padding_side": "right"},
    {"padding": "max_length", "max_length": 5, "add_special_tokens": False},
    {"padding": True, "truncation": True, "max_length": 7},
    {"padding": "longest", "truncation": True, "max_length": 7, "padding_side": "right"},
    {"padding": "longest", "max_length": 3},
    {"padding": True, "max_length": 3},
    {"padding": "do_not_pad", "max_length": 4},
    {"padding": "do_not_pad", "truncation": True, "max_length": 4},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("both_ends", [False, True], ids=["bos", "both-ends"])
@pytest.mark.parametrize("cut", ["right", "left"])
@pytest.mark.parametrize("limit", [9, int(1e30)], ids=["limited", "unlimited"])
def test_rows_are_those_of_transformers(
    tmp_path: Path, call: dict[str, Any], both_ends: bool, cut: str, limit: int
) -> None:
    folder = _folder(tmp_path, both_ends, truncation_side=cut, model_max_length=limit)
    ours = AutoTokenizer.from_pretrained(folder)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert (ours.truncation_side, ours.model_max_length) == (oracle.truncation_side, oracle.model_max_length)
    batch = ours(TEXTS, **call)
    expected = oracle(TEXTS, **call)
    assert batch.input_ids == expected["input_ids"]
    assert batch.attention_mask == expected["attention_mask"]
    for text in TEXTS:
        assert ours(text, **call) == dict(oracle(text, **call))
        assert ours.encode(text, **call) == oracle.encode(text, **call)


def test_tensors() -> None:
    ours, oracle = AutoTokenizer.from_pretrained(DEMO), transformers.AutoTokenizer.from_pretrained(DEMO)
    call: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 6, "return_tensors": "pt"}
    batch, expected = ours(TEXTS, **call), oracle(TEXTS, **call)
    assert batch.input_ids.shape == (4, 6)
    for name in ("input_ids", "attention_mask"):
        assert batch[name].equal(expected[name])
    assert ours.encode(TEXTS[0], **call).equal(oracle.encode(TEXTS[0], **call))


def test_a_calls_side_goes_before_the_tokenizers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    whole = tokenizer.encode(TEXTS[0])
    assert tokenizer.encode(TEXTS[0], max_length=4, truncation_side="left") == [whole[0], *whole[-3:]]
    tokenizer.truncation_side = "left"
    assert tokenizer.encode(TEXTS[0], max_length=4) == [whole[0], *whole[-3:]]
    assert tokenizer.encode(TEXTS[0], max_length=4, truncation_side="right") == whole[:4]


def test_what_does_nothing_warns(tmp_path: Path) -> None:
    folder = _folder(tmp_path, model_max_length=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.warns(UserWarning, match="nothing is cut"):
        assert tokenizer.encode("x", truncation=True) == tokenizer.encode("x")
    with pytest.warns(UserWarning, match="max_length without truncation"):
        tokenizer("x", padding=True, max_length=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("x", padding="max_length", max_length=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"padding": "max"}, "padding: found 'max'; expected True, False, 'longest', 'max_length' or 'do_not_pad'"),
        ({"padding": 1}, "padding: found 1"),
        ({"padding": None}, "padding: found None"),
        ({"truncation": "only_second"}, "truncation: found 'only_second'; expected True, False, 'longest_first'"),
        ({"truncation": 1}, "truncation: found 1"),
        ({"max_length": 0}, "max_length: found 0; expected a whole number of 1 or more"),
        ({"max_length": -1}, "max_length: found -1"),
        ({"max_length": 4.0}, "max_length: found 4.0"),
        ({"max_length": True}, "max_length: found True"),
        ({"truncation_side": "both"}, "truncation_side: found 'both'; expected 'left' or 'right'"),
        ({"padding_side": ""}, "padding_side: found ''"),
        ({"max_length": 2}, "max_length: found max_length 2; expected at least 3, for the special tokens"),
    ],
    ids=str,
)
def test_values_that_are_refused(tmp_path: Path, call: dict[str, Any], message: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_folder(tmp_path, both_ends=True))
    for function in (tokenizer, tokenizer.encode):
        with pytest.raises(RequestError) as caught:
            function("a longer text", **call)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("limit", [0, -5, "512", True, [1]], ids=str)
def test_a_model_max_length_that_is_no_length(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(TokenizerError, match="model_max_length"):
        AutoTokenizer.from_pretrained(_folder(tmp_path, model_max_length=limit))


def test_a_hub_id_brings_the_small_files_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    (tmp_path / "snapshot").mkdir()
    shutil.copy(DEMO / "tokenizer.json", tmp_path / "snapshot")

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert AutoTokenizer.from_pretrained("organisation/a-nemotron").vocab_size == 4096
    Checkpoint.resolve("organisation/a-nemotron")
    small, whole = asked
    assert {"config.json", "tokenizer*", "special_tokens_map.json", "generation_config.json"} < set(small)
    assert not any("safetensors" in pattern for pattern in small)
    assert set(whole) - set(small) == {"*.safetensors", "model.safetensors.index.json"}
