"""`nemotron-export chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from nemotron_errors import RequestError

from nemotron_export.cli.conversation import Conversation
from nemotron_export.cli.options import (
    AllowUnverified,
    BundleArgument,
    MinP,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    WeightsDir,
    given_params,
    open_model,
)

__all__ = ["chat"]


def chat(
    bundle: BundleArgument,
    system: Annotated[str | None, typer.Option(help="The system text.")] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Jinja chat template, instead of the bundle's.")
    ] = None,
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="A list of JSON schemas of functions to call.")
    ] = None,
    context: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A text to answer from; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("-n", "--max-new-tokens", min=1, help="Of an answer; 512 or what fits by default.")
    ] = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    threads: Threads = None,
) -> None:
    """Talk with a bundle, without torch. Ctrl-C stops an answer; /help lists the commands.

    Where stdin is no terminal, each of its lines is a message, and the answers go to stdout. Ctrl-D and /quit leave
    with exit code 0, Ctrl-C at the prompt with 130.
    """
    from nemotron_runtime.chat import read_template

    prompt: dict[str, Any] = {
        "chat_template": None if chat_template is None else read_template(chat_template),
        "tools": None if tools is None else _read_json(tools),
        "context": [_read(path) for path in context or ()] or None,
    }
    params = given_params(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    interactive = sys.stdin.isatty()
    with open_model(bundle, weights_dir, allow_unverified, threads) as model:
        # what cannot chat is refused before the first message
        model.chat_prompt([{"role": "user", "content": "?"}], **prompt)
        conversation = Conversation(model, system, interactive=interactive, prompt=prompt, params=params)
        conversation.run(_typed() if interactive else iter(sys.stdin))


def _typed() -> Iterator[str]:
    """Lines typed at a prompt, until Ctrl-D."""
    # line editing and history, where Python has it
    with suppress(ImportError):
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise RequestError(found, "a text in UTF-8", "name another file", where=str(path)) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise RequestError(f"no JSON ({error})", "a list of JSON schemas", "correct it", where=str(path)) from error
