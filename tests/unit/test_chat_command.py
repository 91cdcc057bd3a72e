"""`nemotron-export chat` over a session that answers by a script: its loop, its options, Ctrl-C at a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import nemotron_runtime
import pytest
from nemotron_errors import LimitError, RequestError
from support.chat import TOOLS, scripted_model, write_tokenizer
from typer.testing import CliRunner

from nemotron_export.cli import app
from nemotron_export.cli.conversation import Conversation
from nemotron_export.cli.guard import INTERRUPTED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "bundle")


def talk(model, lines, *, system=None, interactive=False, prompt=None, **params) -> Conversation:
    conversation = Conversation(model, system, interactive=interactive, prompt=prompt or {}, params=params)
    conversation.run(iter(lines))
    return conversation


def test_lines_are_answered_one_by_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scripted_model(folder, "Yes.")
    done = talk(model, ["One\n", "\n", "//two\n", "/quit\n", "three\n"], system="Be kind.")
    assert capsys.readouterr() == ("Yes.\nYes.\n", "")
    yes = {"role": "assistant", "content": "Yes."}
    assert done.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One"},
        yes,
        {"role": "user", "content": "/two"},
        yes,
    ]


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved.json"
    lines = ["One", "/system Sei nett: ä", f"/save {saved}", "/reset", "/help", "/system"]
    done = talk(scripted_model(folder, "Yes."), lines, interactive=True)
    assert done.messages == []
    assert json.loads(saved.read_text("utf-8")) == [
        {"role": "system", "content": "Sei nett: ä"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Yes."},
    ]
    out = capsys.readouterr().out
    for text in ("(system text set)", f"(3 messages in {saved})", "(forgotten)", "Ctrl-C stops", "(no system text)"):
        assert text in out


def test_tools_results_are_given_back(folder: Path) -> None:
    done = talk(scripted_model(folder, '<toolcall> {"name": "f"} </toolcall>'), ["Go", "/tool 21"])
    assert [turn["role"] for turn in done.turns] == ["user", "assistant", "tool", "assistant"]
    assert done.turns[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    ("line", "message"),
    [("/nothing", "/help, /reset"), ("/save", "no file"), ("/save .", "a new file"), ("/tool 1", "tool's message")],
)
def test_mistakes_end_a_script_and_not_a_talk(
    folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = scripted_model(folder, "Yes.")
    with pytest.raises(RequestError, match=message):
        talk(model, [line, "One"])
    done = talk(model, [line, "One"], interactive=True)
    assert [turn["role"] for turn in done.turns] == ["user", "assistant"]
    assert message.split("'")[0] in capsys.readouterr().err


def test_the_oldest_turns_go_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scripted_model(folder, "Yes.", max_seq_len=120)
    done = talk(model, ["first one", "second two", "third three", "fourth four"], system="S", max_new_tokens=8)
    err = capsys.readouterr().err
    assert "the oldest turn dropped: the conversation is past 120 tokens" in err
    assert done.messages[0] == {"role": "system", "content": "S"}
    assert done.turns[0]["role"] == "user"
    assert done.turns[0]["content"] != "first one"
    assert done.turns[-2]["content"] == "fourth four"
    with pytest.raises(LimitError):
        talk(model, ["x y " * 100])


class Interrupting:
    """Sends Ctrl-C while the third token is made."""

    def __init__(self, session, times: int = 1) -> None:
        self._session, self._times, self._passes = session, times, 0

    def row_logits(self, history, row=0):
        self._passes += 1
        if self._passes == 3:
            for _ in range(self._times):
                os.kill(os.getpid(), signal.SIGINT)
        return type(self._session).row_logits(self._session, history, row)


def interrupted(folder: Path, times: int):
    model = scripted_model(folder, "abcdefgh")
    model.engine.executor.row_logits = Interrupting(model.engine.executor, times).row_logits
    return model


def test_ctrl_c_stops_the_answer_and_not_the_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    done = talk(interrupted(folder, 1), ["One", "Two"])
    out, err = capsys.readouterr()
    assert err == "(stopped)\n"
    assert out == "abc\nabcdefgh\n"
    assert [turn["content"] for turn in done.turns] == ["One", "abc", "Two", "abcdefgh"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        talk(interrupted(folder, 2), ["One"])
    assert signal.getsignal(signal.SIGINT) is before


# --- the command


@pytest.fixture
def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = scripted_model(folder, "Yes.")
    monkeypatch.setattr(nemotron_runtime, "load", lambda bundle, **options: model)
    return model


def test_the_command_reads_lines(loaded, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[-1].content }}{{ tools[0].function.name }}{{ documents[0].text }}")
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "doc").write_text("document")
    asked = []
    ask = loaded.chat
    loaded.chat = lambda messages, **options: (asked.append((list(messages), options)), ask(messages, **options))[1]
    arguments = [
        "chat", "bundle", "--system", "S", "--chat-template", str(tmp_path / "t.jinja"), "--tools",
        str(tmp_path / "tools.json"), "--context", str(tmp_path / "doc"), "--temperature", "0", "--stop", "e",
        "-n", "9",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, input="One\nTwo\n")
    assert (result.exit_code, result.stdout) == (0, "Y\nY\n")
    messages, options = asked[1]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert options["stop"] == ("e",)
    assert options["max_new_tokens"] == 9
    assert "top_k" not in options
    assert loaded.tokenizer.decode(loaded.chat_prompt(messages, **{
        name: options[name] for name in ("tools", "context", "chat_template")
    })) == "Twoget_weatherdocument"  # fmt: skip


@pytest.mark.parametrize("option", ["--chat-template", "--tools", "--context"])
def test_files_that_are_missing_or_broken(loaded, tmp_path: Path, option: str) -> None:
    result = CliRunner().invoke(app, ["chat", "bundle", option, str(tmp_path / "missing")], input="One\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such file" in result.stderr
    (tmp_path / "broken").write_text("{{ '", "utf-8")
    if option != "--context":
        result = CliRunner().invoke(app, ["chat", "bundle", option, str(tmp_path / "broken")], input="One\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "remedy" in result.stderr


PROGRAM = """
import sys, time
from pathlib import Path
import nemotron_runtime
from support.chat import scripted_model
from nemotron_export.cli import app

model = scripted_model(Path(sys.argv[1]), "abcdefgh" * 20)
real = model.engine.executor.row_logits
def slow(history, row=0):
    time.sleep(0.02)
    return real(history, row)
model.engine.executor.row_logits = slow
nemotron_runtime.load = lambda bundle, **options: model
app(["chat", "bundle"])
"""


class Terminal:
    """The program at a pseudo-terminal."""

    def __init__(self, folder: Path) -> None:
        self._master, slave = pty.openpty()
        tests = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)], preexec_fn=lambda: os.login_tty(slave),
            env={**os.environ, "PYTHONPATH": str(tests), "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What was shown up to ``text``."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if not select.select([self._master], [], [], 1.0)[0]:
                continue
            try:
                self.shown += os.read(self._master, 4096).decode()
            except OSError:
                raise AssertionError(f"the program ended: {self.shown}") from None
        before, _, self.shown = self.shown.partition(text)
        return before

    def press_until(self, key: str, text: str) -> None:
        """Presses as a person would, again where nothing happens.

        Python's line reader misses a signal that comes between its look at the pending ones and its wait for a key.
        """
        for _ in range(30):
            self.type(key)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                if text in self.shown:
                    return
                if select.select([self._master], [], [], 0.1)[0]:
                    try:
                        self.shown += os.read(self._master, 4096).decode()
                    except OSError:
                        break
        raise AssertionError(f"no {text!r} in {self.shown!r}")

    def close(self) -> int:
        code = self.process.wait(60)
        os.close(self._master)
        return code


@pytest.fixture
def terminal(folder: Path):
    opened = Terminal(folder)
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
        opened.close()


def test_ctrl_c_at_a_terminal_stops_an_answer_then_leaves(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.type("Hello\n")
    terminal.wait_for("abcd")
    terminal.type("\x03")
    assert len(terminal.wait_for("(stopped)")) < 160
    terminal.wait_for("> ")
    terminal.type("Again\n")
    terminal.wait_for("abcdefgh" * 20)
    terminal.wait_for("> ")
    terminal.press_until("\x03", "interrupted")
    assert terminal.close() == INTERRUPTED


def test_ctrl_d_leaves_with_success(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.type("/reset\n")
    terminal.wait_for("(forgotten)")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.close() == 0
