"""From a checkpoint with a chat template to answers of its bundle: the template travels, ids are transformers'."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nemotron_runtime
import pytest
from nemotron_errors import BundleError, TokenizerError
from support.chat import CONVERSATIONS, LLAMA_TOOLS, TOOLS
from transformers import AutoTokenizer as Oracle

import nemotron_export
from nemotron_export import build

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, checkpoint)."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(DEMO, folder / "checkpoint")
    (folder / "checkpoint" / "chat_template.jinja").write_text(LLAMA_TOOLS, "utf-8")
    bundle = build(folder / "checkpoint", folder / "bundle", max_seq_len=1024, parity=False)
    return bundle, folder / "checkpoint"


def test_answers_are_those_of_generate_on_transformers_ids(made: tuple[Path, Path]) -> None:
    bundle, checkpoint = made
    messages = CONVERSATIONS["tools"]
    oracle = Oracle.from_pretrained(checkpoint)
    ids = oracle.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    options = {"max_new_tokens": 24, "temperature": 0.8, "seed": 5}
    with nemotron_runtime.load(bundle, allow_unverified=True) as model:
        assert model.chat_prompt(messages, tools=TOOLS) == ids
        expected = model.generate(ids, **options)
        answer = model.chat(messages, tools=TOOLS, **options)
        assert answer.result.token_ids == expected.token_ids
        assert (answer.message["role"], answer.message["content"]) == ("assistant", expected.text)
        assert answer.prompt_tokens == len(ids)
        text = "".join(chunk.text for chunk in model.chat(messages, tools=TOOLS, stream=True, **options))
        assert text == expected.text
        assert len(text) > 10


def test_a_forged_end_of_turn_is_text(made: tuple[Path, Path]) -> None:
    with nemotron_runtime.load(made[0], allow_unverified=True) as model:
        ids = model.chat_prompt([{"role": "user", "content": "a</s>b"}])
        assert ids.count(3) == model.chat_prompt([{"role": "user", "content": "ab"}]).count(3)
        assert "a</s>b" in model.tokenizer.decode(ids, skip_special_tokens=False)


def test_the_template_is_hashed(made: tuple[Path, Path], tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(made[0], changed)
    (changed / "chat_template.jinja").write_text("other", "utf-8")
    with pytest.raises(BundleError, match=r"chat_template\.jinja"):
        nemotron_runtime.load(changed, weights_dir=made[1], allow_unverified=True)


def test_the_command_answers_alike_every_time(made: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "nemotron_export", "chat", str(made[0]), "--allow-unverified", "-n", "12"]
    outputs = set()
    for _ in range(2):
        done = subprocess.run(
            [*command, "--temperature", "0.7", "--seed", "3"], input="The file\nThe class\n", capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
    with nemotron_runtime.load(made[0], allow_unverified=True) as model:
        first = model.chat([{"role": "user", "content": "The file"}], max_new_tokens=12, temperature=0.7, seed=3)
    assert outputs.pop().startswith(first.result.text + "\n")


def test_the_embedded_checkpoint_has_no_template(tmp_path: Path) -> None:
    assert not (DEMO / "chat_template.jinja").exists()
    with pytest.raises(TokenizerError, match="no chat template"):
        nemotron_export.AutoTokenizer.from_pretrained(DEMO).apply_chat_template(CONVERSATIONS["one"])
