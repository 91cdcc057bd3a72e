"""The loop of `nemotron-export chat`: lines in, answers out, and the commands in between."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nemotron_errors import NemotronError, RequestError

from nemotron_export.cli.console import print_error

if TYPE_CHECKING:
    from nemotron_runtime import Model

__all__ = ["Conversation"]

_HELP = """\
/system TEXT  set the system text; without TEXT there is none
/tool TEXT    give what a called tool returned, and go on
/reset        forget the conversation, keep the system text
/save FILE    write the messages as JSON
/quit         leave (or Ctrl-D)
//TEXT        a message that begins with a slash
Ctrl-C stops an answer; at an empty prompt it leaves."""


@dataclass
class Conversation:
    """One conversation with a model.

    Attributes:
        interactive: a person types: errors do not end the program, and commands say what they did.
        prompt: keyword arguments of ``Model.chat_prompt`` (tools, context, chat_template).
        params: sampling parameters.
    """

    model: Model
    system: str | None
    interactive: bool
    prompt: dict[str, Any]
    params: dict[str, Any]
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The system text, where there is one, and the turns."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def run(self, lines: Iterator[str]) -> None:
        """Answers line by line until there is none, or one says /quit.

        Raises:
            NemotronError: a line that cannot be answered, where input is no terminal.
        """
        for line in lines:
            try:
                if not self.take(line.rstrip("\r\n")):
                    return
            except NemotronError as error:
                if not self.interactive:
                    raise
                print_error(error)

    def take(self, line: str) -> bool:
        """Takes one line; False where it asks to leave.

        Raises:
            NemotronError: an unknown command, or a message that cannot be answered; the turns stay as they were.
        """
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._ask("user", line)
        elif line.startswith("//"):
            self._ask("user", line[1:])
        else:
            name, _, argument = line[1:].partition(" ")
            if name == "quit":
                return False
            self._command(name, argument.strip())
        return True

    def _command(self, name: str, argument: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(_HELP), "reset": self._reset, "save": self._save, "system": self._set_system,
            "tool": lambda text: self._ask("tool", text),
        }  # fmt: skip
        if name not in commands:
            known = ", ".join(f"/{each}" for each in (*commands, "quit"))
            raise RequestError(f"/{name}", known, "begin with // to send a slash", where="command")
        commands[name](argument)

    def _reset(self, _: str) -> None:
        self.turns = []
        self._say("(forgotten)")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._say("(system text set)" if text else "(no system text)")

    def _save(self, name: str) -> None:
        if not name:
            raise RequestError("no file", "/save FILE", "name a file", where="/save")
        try:
            with open(name, "x", encoding="utf-8") as file:
                json.dump(self.messages, file, indent=2, ensure_ascii=False)
                file.write("\n")
        except (OSError, ValueError) as error:
            found = getattr(error, "strerror", None) or str(error)
            raise RequestError(found, "a new file", "choose another name", where=str(Path(name))) from error
        self._say(f"({len(self.messages)} messages in {name})")

    def _ask(self, role: str, text: str) -> None:
        before = list(self.turns)
        self.turns.append({"role": role, "content": text})
        try:
            self._make_room()
            answer, reason = self._answer()
        except BaseException:
            self.turns = before
            raise
        if not answer and reason == "cancelled":
            self.turns = before
            return
        from nemotron_runtime.chat import parse_tool_calls

        content, calls = parse_tool_calls(answer)
        message = {"role": "assistant", "content": content}
        self.turns.append({**message, "tool_calls": calls} if calls else message)

    def _make_room(self) -> None:
        """Drops the oldest turns until the prompt and an answer fit; the last turn stays in any case."""
        most, dropped = self.model.limits.max_seq_len, 0
        room = self.params.get("max_new_tokens") or min(512, most // 4)
        while True:
            tokens = len(self.model.chat_prompt(self.messages, **self.prompt))
            later = [i for i, turn in enumerate(self.turns) if i and turn["role"] == "user"]
            if tokens + room <= most or not later:
                break
            self.turns = self.turns[later[0] :]
            dropped += 1
        if dropped:
            turns = "the oldest turn" if dropped == 1 else f"the {dropped} oldest turns"
            print(f"({turns} dropped: the conversation is past {most} tokens)", file=sys.stderr, flush=True)

    def _answer(self) -> tuple[str, str | None]:
        pieces, reason = [], None
        with _stoppable() as stopped:
            stream = self.model.chat(self.messages, stream=True, cancelled=stopped, **self.prompt, **self.params)
            for chunk in stream:
                pieces.append(chunk.text)
                reason = chunk.finish_reason
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if reason in ("cancelled", "length"):
            ended = "stopped" if reason == "cancelled" else "cut off at the limit of new tokens"
            print(f"({ended})", file=sys.stderr, flush=True)
        return "".join(pieces), reason

    def _say(self, text: str) -> None:
        if self.interactive:
            print(text, flush=True)


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Yields what the first Ctrl-C sets; a second one interrupts."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
